"""Runs a door: reads its flags, turns what a user got wrong into one line, leaves with a code."""

from __future__ import annotations

import itertools
import os
import re
import resource
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from logging import LogRecord
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from simclr_jax import background, flag_kinds, shipped, usage
from simclr_jax.errors import UserError, flush, nearest, of_the_system, printable, say, show


def run(main: Callable[[], int | None]) -> None:
    """Run a door: parse flags, call `main`, exit with its code; a user's mistake is one line.

    Flags and recipes are read while flags are parsed, so their mistakes (a misspelt field, a wrong
    type, a missing file) surface there, as whatever absl and ml_collections raise.

    Args:
      main: of the door, whose docstring is its help. If the door has a function `arguments`, that
        makes of what the user gave what is parsed; it may raise `UserError`.
    """
    door = sys.modules[main.__module__]
    debug = "--debug" in sys.argv or "--debug=true" in sys.argv

    def parse(argv: list[str]) -> list[str]:
        logging.set_verbosity(logging.ERROR)
        if usage.HELP & {*argv[1:]}:
            show(usage.text(door, usage.called(door)))
            sys.exit(0)
        given = argv
        try:
            given = getattr(door, "arguments", list)(argv)
            argv[:] = sys.argv[:] = _with_recipe(given)
            rest = flags.FLAGS(argv)
            _load_recipe()
        except Exception as error:  # whatever the code of a recipe may raise
            if debug:
                raise
            _exit(_swallowed(given) or _explain(error))
        expanded = ["", *flags.FLAGS.read_flags_from_files(given[1:], force_gnu=False)]
        if wrong := _swallowed(expanded) or _given_wrongly(usage.of(door)):
            _exit(wrong)
        if len(rest) > 1:
            _exit(f'"{rest[1]}" is no flag: every argument has the form --name=value')
        return rest

    def guarded(_: list[str]) -> int | None:
        if not any(argument.startswith(("--verbosity", "-v")) for argument in sys.argv):
            logging.set_verbosity(logging.WARNING)  # libraries have much to say about their inside
        logging.get_absl_handler().setFormatter(Notes())
        try:
            _allow_files()
            code = main()
            sys.stdout.flush()  # what it printed last may find the disk full
            return _leaving(code)
        except KeyboardInterrupt:
            return _leaving(130)
        except Exception as error:
            if debug or (said := of_the_system(error)) is None:
                if not background.left():
                    raise
                traceback.print_exc()  # and not wait for work that nobody wants any more
                return _leaving(1)
            _exit(str(said), said.code)

    app.run(guarded, flags_parser=parse)


class Notes(logging.PythonFormatter):
    """Shows what this package logs as doors show notes, and what others log as absl does."""

    def format(self, record: LogRecord) -> str:
        """Return a line without time, thread and place where it is ours."""
        if Path(record.pathname).is_relative_to(HERE):
            return f"note      {printable(record.getMessage())}"
        return super().format(record)


HERE = Path(__file__).parent


def _given_wrongly(given: Iterable[flags.Flag]) -> str:
    """Return what is wrong with how flags were given, or "".

    An empty value is a variable of the shell that is not set: it would pass for the default. Of two
    values the last would count, and nobody can tell which was meant.
    """
    for flag in given:
        if not flag.present or flag.name == "config":
            continue
        several = isinstance(flag, flags.MultiFlag)
        values = flag.value if several or isinstance(flag.value, list) else [flag.value]
        if not values or any(value == "" for value in values):
            return f"--{flag.name} is empty, or a part of it: give it a value, or leave it out"
        if flag.present > 1 and not several and not flag.boolean:
            return f"--{flag.name} is given {flag.present} times: give it once"
    return ""


def _swallowed(argv: Sequence[str]) -> str:
    """Return what is wrong where a flag without a value took the next flag for it, or ""."""
    for given, following in itertools.pairwise(argv[1:]):
        name, after = _flag_name(given), _flag_name(following.partition("=")[0])
        if "=" not in given and after and name in flags.FLAGS and not flags.FLAGS[name].boolean:
            return f"--{name} needs a value{_rule(name)}; what follows it is --{after}"
    return ""


def _flag_name(argument: str) -> str:
    """Return the name in `--name`, `-name` or `--noname`, "" if there is no such flag."""
    found = re.fullmatch(r"--?((?:no)?([\w.]+))", argument)
    names = found.groups() if found else ()
    fields = [name for name in names if name.startswith("config.") and "config" in flags.FLAGS]
    return next((name for name in names if name in flags.FLAGS), "") or next(iter(fields), "")


LEAST_FILES, MANY_FILES = 32, 4096


def _allow_files() -> None:
    """Raise the limit of open files as far as that is ours to do.

    Raises:
      UserError: if it is so low that modules could not even be imported.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(MANY_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < LEAST_FILES:
        raise UserError(
            f"only {wanted} files may be open at a time: raise that limit (ulimit -n 1024)"
        )


def _with_recipe(argv: list[str]) -> list[str]:
    """Return arguments in which the recipe is a file: its `~` replaced, its name by its path."""
    found = list(argv)
    for i, argument in enumerate(argv):
        name, equals, recipe = argument.partition("=")
        if name not in ("--config", "-config"):
            continue
        if equals:
            found[i] = f"{name}={shipped.find(flag_kinds.at_home(recipe))}"
        elif i + 1 < len(argv):
            found[i + 1] = shipped.find(argv[i + 1])  # whose `~` the shell has replaced
    return found


def recipe_path() -> str:
    """Return the file named by --config on the command line, or ""."""
    return argument(sys.argv, "config").partition(":")[0]


def argument(argv: list[str], name: str) -> str:
    """Return the value of a flag on a command line that is not parsed yet, or ""."""
    for given, following in reversed([*zip(argv, [*argv[1:], ""], strict=True)]):
        flag, equals, value = given.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            return value if equals else following
    return ""


def _load_recipe() -> None:
    """Open the recipe now: ml_collections defers a missing file until the first use of a field."""
    if "config" in flags.FLAGS and flags.FLAGS["config"].present:
        config = flags.FLAGS.config
        if config is None or isinstance(config, dict):
            raise TypeError("get_config() must return a ConfigDict")
        _ = config.seed


EXAMPLE = "configs/digits.py"


def no_recipe(path: str) -> str:
    """Return what to say of a recipe that is neither a file nor the name of one of ours."""
    hint = nearest(shipped.name_of(path), shipped.names())
    return (
        f'recipe "{path}" is no file, and none of that name comes along{hint}: give a Python file '
        f"such as {EXAMPLE}, or a name that `simclr recipes` lists"
    )


# What Python says to a value of the wrong type, and what to tell the user.
WRONG_TYPE = {
    "invalid literal for int": "it must be a whole number",
    "could not convert string to float": "it must be a number",
    "Non-boolean argument": "it must be True or False",
}


def _rule(name: str) -> str:
    """Return how a flag is written, and what it may be or where that is said."""
    if name.startswith("config."):
        return f": --{name}=VALUE, and `simclr fields` lists what it may be"
    if name not in flags.FLAGS:
        return ""
    flag = flags.FLAGS[name]
    ours = type(flag.parser).__module__ == flag_kinds.__name__
    return f": {usage.form(flag)}" + (f", {flag.parser.syntactic_help}" if ours else "")


def _explain(error: Exception) -> str:
    path = recipe_path()
    text = str(error).strip()
    if isinstance(error, UserError):
        return text
    if isinstance(error, ValueError) and text.startswith("there is no home"):
        return f"--config: {text}"
    if "Traceback" in text:  # ml_collections puts the whole of it into the message
        return f'recipe "{path}" raised {text.splitlines()[-1]} (--debug shows where)'
    text = " ".join(text.replace("\\n", " ").replace("\\'", "'").split())
    if isinstance(error, flags.Error):
        said = next((said for said in WRONG_TYPE if said in text), None)
        if said:
            flag = text.removeprefix("flag ").partition(": ")[0]
            return f"{flag} has the wrong type: {WRONG_TYPE[said]}"
        if bare := re.fullmatch(r"Missing value for flag --?([\w.]+)", text):
            return f"--{bare[1]} needs a value{_rule(bare[1])}"
        text = text.removeprefix("flag ")
        return f"{text} (see --help)" if isinstance(error, flags.UnrecognizedFlagError) else text
    if unread := re.match(r"Could not parse '([^']*)'", text):
        return f'recipe "{path}" has no field "{unread[1]}": `simclr fields` lists them'
    if isinstance(error, OSError) and not Path(path).is_file():
        return no_recipe(path)
    if "get_config" in text and isinstance(error, AttributeError):
        return f'recipe "{path}" has no get_config(): see {EXAMPLE} for the shape of a recipe'
    if isinstance(error, KeyError | AttributeError):
        return _explain_field(text, path)
    return f'recipe "{path}" raised {type(error).__name__}: {text} (--debug shows where)'


def _explain_field(text: str, path: str) -> str:
    if text.strip("\"'").startswith("Attribute <class"):  # a field of what is no recipe
        return f'recipe "{path}": get_config() must return a ConfigDict, see {EXAMPLE}'
    misspelt = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
    locked = re.search(r'Key "(\w+)" does not exist', text)  # assigned to inside a recipe
    if misspelt:
        meant, said = misspelt.groups()
        hint = f' (did you mean "{meant}"?)'
    elif locked:
        said, present = locked[1], text.partition("Other fields present")[2]
        hint = nearest(said, re.findall(r"'(\w+)':", present))
    else:
        said, hint = text.strip("\"'"), ""
    return (
        f'recipe "{path}" has no field "{said}"{hint}: `simclr fields` lists them, from recipes.py'
    )


def _exit(message: str, code: int = 1) -> NoReturn:
    say(message)
    flush()
    sys.exit(_leaving(code))


def _leaving(code: int | None) -> int | None:
    """Return an exit code; where a compiler is at work for nobody, leave with it at once."""
    if background.left():
        flush()
        os._exit(code or 0)
    return code
