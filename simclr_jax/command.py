"""The command `simclr`: every door by a short name.

    simclr train --config=digits
    simclr probe --help

`python -m simclr_jax` is the same command.
"""

from __future__ import annotations

import importlib
import platform
import sys
from importlib import metadata
from types import ModuleType

from simclr_jax import completion, entry, errors, shipped, usage

# By what a person calls it: the module of each door. This is the one table of them.
DOORS = {
    "train": "main",
    "probe": "linear_probe",
    "transfer": "transfer",
    "embed": "embed",
    "search": "search",
    "report": "report",
    "convert": "convert",
    "export": "export",
    "plan": "plan",
    "pack": "pack",
    "doctor": "doctor",
    "recipes": "list_recipes",
    "fields": "list_fields",
}
COMPLETION = "completion"
VERSION = ("--version", "version")


def main() -> int:
    """Run the door that the first argument names; return the exit code."""
    name, rest = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if name == "help":
        name, rest = (rest[:1] or ["--help"])[0], ["--help"]
    if name in DOORS:
        door = load(name)
        if not usage.HELP & {*rest}:
            sys.argv[:] = [f"simclr {name}", *rest]
            entry.run(door.main)  # ends the program
        said = usage.text(door, f"simclr {name}", commands())
    elif name in usage.HELP:
        said = overview()
    elif name in VERSION:
        said = version()
    elif name == COMPLETION and (usage.HELP & {*rest} or not rest):
        said = completion.ABOUT
    elif name == COMPLETION and len(rest) == 1 and rest[0] in completion.SHELLS:
        said = completion.script(rest[0], flags_of_all(), shipped.names())
    else:
        return _refuse(name, rest)
    errors.show(said)
    return 0


def _refuse(name: str, rest: list[str]) -> int:
    if name == COMPLETION:
        errors.say(f'"{" ".join(rest)}" is no shell: choose one of {", ".join(completion.SHELLS)}')
        return 1
    known = [*DOORS, COMPLETION]
    hint = errors.nearest(name, known)
    errors.say(f'"{name}" is no command of simclr{hint}: choose one of {", ".join(known)}')
    return 1


def load(name: str) -> ModuleType:
    """Import the door that a person calls `name`."""
    return importlib.import_module(f"simclr_jax.{DOORS[name]}")


def commands() -> dict[str, str]:
    """Return how the docstring of a door calls each door, and what that is as a command."""
    return {f"python -m simclr_jax.{module}": f"simclr {name}" for name, module in DOORS.items()}


def overview() -> str:
    """Return the help of the command, without importing a door."""
    about = {
        name: usage.renamed(usage.first_line(shipped.PACKAGE / f"{module}.py"), commands())
        for name, module in DOORS.items()
    }
    about[COMPLETION] = "Print a script that makes a shell complete these."
    lines = [line for name in about for line in usage.entry(f"  {name}", about[name], column=14)]
    return "\n".join(
        (
            "usage: simclr COMMAND [--FLAG=VALUE ...]\n",
            "Pretrain image encoders without labels, judge them and use them.\n",
            "commands:",
            *lines,
            "",
            "`simclr COMMAND --help` has the flags of each, `simclr --version` the version.",
            "A first run, in minutes on a CPU: simclr train --config=digits",
        )
    )


def version() -> str:
    """Return the versions of the package, of JAX and of Python."""
    try:
        own = metadata.version("simclr-jax")
    except metadata.PackageNotFoundError:
        own = f"(not installed: {shipped.PACKAGE})"
    return f"simclr_jax {own}, JAX {metadata.version('jax')}, Python {platform.python_version()}"


def flags_of_all() -> dict[str, list[str]]:
    """Return the forms of the flags of each door, for the completion of a shell.

    Doors have flags of the same name, so those of each are forgotten before the next.
    """
    found = {}
    for name in DOORS:
        defined = usage.of(load(name))
        found[name] = [usage.form(flag) for flag in defined]
        usage.forget(defined)
    return found


if __name__ == "__main__":
    sys.exit(main())
