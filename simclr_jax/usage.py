"""What a door says to `--help`: its docstring and its own flags, in 80 columns."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from absl import flags

HELP = {"--help", "-help", "-h", "--helpshort", "-helpshort", "--helpfull", "-helpfull", "-?"}
WIDTH = 80
COLUMN = 28  # where the texts of flags begin
# What stands for the value of a flag, by the name of its parser.
VALUES = {
    "ConfigFileFlagParser": "RECIPE",
    "Path": "PATH",
    "Paths": "PATHS",
    "Number": "NUMBER",
    "Whole": "NUMBER",
    "IntegerParser": "NUMBER",
    "FloatParser": "NUMBER",
    "ListParser": "A,B",
}
REPEATED = r";\s+repeat this option"  # what absl adds to the text of a flag that may be repeated
FIELDS = ("--config.GROUP.FIELD=VALUE", "Any field of the recipe; `simclr fields` lists them.")


def text(door: ModuleType, called: str, said: Mapping[str, str] | None = None) -> str:
    """Return the help of a door.

    Args:
      door: its module, imported.
      called: how the user calls it.
      said: what its docstring calls doors, and what to call them instead.
    """
    about = renamed(door.__doc__ or "", said or {})
    parts = [f"usage: {called} [--FLAG=VALUE ...]", *map(_paragraph, _paragraphs(about))]
    return "\n\n".join([*parts, "\n".join(["flags:", *_flags(door)])])


def renamed(about: str, said: Mapping[str, str]) -> str:
    """Return a text with other names of doors: `said` is from each name to the one to give."""
    for old, new in said.items():
        about = re.sub(rf"{re.escape(old)}\b", new, about)
    return about


def first_line(path: Path) -> str:
    """Return the first line of the docstring of a module, which is not imported."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def of(door: ModuleType) -> list[flags.Flag]:
    """Return the flags that a door defines, in its own order."""
    return flags.FLAGS.get_key_flags_for_module(door)


def forget(found: list[flags.Flag]) -> None:
    """Take flags away again, so that another door can define its own of the same names."""
    for flag in found:
        delattr(flags.FLAGS, flag.name)


def form(flag: flags.Flag) -> str:
    """Return how a flag is written: `--name=VALUE`, or `--[no]name` of a switch."""
    if flag.boolean:
        return f"--[no]{flag.name}"
    return f"--{flag.name}={VALUES.get(type(flag.parser).__name__, 'TEXT')}"


def entry(name: str, meaning: str, column: int = COLUMN, width: int = WIDTH) -> list[str]:
    """Return the lines of a name and, in a column to its right, of what it means."""
    lines = textwrap.wrap(meaning, width - column, break_on_hyphens=False)
    first = lines.pop(0) if lines and len(name) + 2 <= column else ""
    return [f"{name:<{column}}{first}".rstrip(), *(" " * column + line for line in lines)]


def _flags(door: ModuleType) -> list[str]:
    found = of(door)
    rows = [(form(flag), _meaning(flag)) for flag in found]
    if any(form(flag) == "--config=RECIPE" for flag in found):
        rows.insert(1 + next(i for i, row in enumerate(rows) if "RECIPE" in row[0]), FIELDS)
    rows.append(("--help", "Show this."))
    return [line for name, meaning in rows for line in entry(f"  {name}", meaning)]


def _meaning(flag: flags.Flag) -> str:
    rule = getattr(flag.parser, "syntactic_help", "")
    limited = type(flag.parser).__name__ in ("Number", "Whole")
    limits = f" {rule[:1].upper()}{rule[1:]}." if limited else ""
    given = (flag.default_as_str or "").strip("'") if flag.default and not flag.boolean else ""
    default = f" Default: {given}." if given else ""
    about = re.split(REPEATED, flag.help or "")[0]
    several = " It may be repeated." if isinstance(flag, flags.MultiFlag) else ""
    return " ".join(f"{about}{limits}{default}{several}".split())


def _paragraphs(about: str) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in textwrap.dedent(about).strip().splitlines():
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [lines for lines in found if lines]


def _paragraph(lines: list[str]) -> str:
    if not lines[0].startswith(" "):
        return textwrap.fill(" ".join(lines), WIDTH, break_on_hyphens=False)
    joined = "\n".join(line.strip() for line in lines).replace("\\\n", "")
    return "\n".join(_example(line) for line in joined.splitlines())


def _example(line: str) -> str:
    """Return a command in lines of 80 columns that a shell reads as one."""
    if "#" in line:
        return f"    {line}"  # a backslash behind a remark would be a part of it
    return " \\\n".join(
        textwrap.wrap(
            " ".join(line.split()),
            WIDTH - 2,
            initial_indent="    ",
            subsequent_indent="        ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    )


def called(door: ModuleType) -> str:
    """Return how the user has called the door that runs as the program."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.partition(".")[0] == "simclr_jax":
        return f"python -m {spec.name}"
    return f"python {sys.argv[0]}"
