"""The one way to tell a user what to change, and the shell that prints it.

`UserError` is for what a user can get wrong: it ends the program in one line on stderr with exit
code 1. So does what the system refuses, wherever it does. Everything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import math
import os
import re
import resource
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from simclr_jax import background, flag_kinds, shipped, usage


class UserError(Exception):
    """Something the user can put right: the message names the thing, the value and the remedy.

    `code` is the exit code of the program.
    """

    code = 1


class Unreachable(UserError):
    """Something does not answer that later may: a disk, a bucket, another process.

    Launch scripts give the same command again after this exit code.
    """

    code = os.EX_TEMPFAIL


class Diverged(UserError):
    """Training has left the finite numbers: the rate is too high."""


class BadFile(UserError):
    """A file is at fault itself, by what it is or what it holds.

    Who can do without one file catches this alone. Any other `UserError` is the disk's
    (`Unreachable`), the program's or its rights': a file that is given up for that is lost though
    nothing is wrong with it.
    """


def printable(text: str) -> str:
    """Return text on one line: what is no character to print, or none at all, is escaped.

    Names of files, and whatever else is a stranger's, could otherwise move the terminal's cursor,
    or end a program that writes UTF-8.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# What a user can do about what the system says; without a line here: look at the disk.
REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there",
    errno.ENOENT: "see that it is there",
    errno.EROFS: "make it writable, or name another directory",
    errno.EACCES: "see to the rights there, or name another",
    errno.EPERM: "see to the rights there, or name another",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs: all files that the system may open are open",
    errno.ENOMEM: "free memory",
    errno.EAGAIN: "raise the limit of processes and threads (ulimit -u)",
    errno.EPIPE: "keep its reader running",
}
# What the system says of this program, and of no file: the same file can be read by another.
OF_THE_PROGRAM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
OF_RIGHTS = {errno.EACCES, errno.EPERM}  # a file that is closed to us may be whole
# Of a file that is at fault itself. After anything else, the disk or mount is.
OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG} | {
    errno.EINVAL,
    errno.ENXIO,
    errno.EFBIG,
}


def remedy(number: int | None) -> str:
    """Return what a user can do about an error number of the system."""
    return REMEDIES.get(number or 0, "check that disk")


def unreadable(
    what: str,
    error: Exception,
    remedy_of_file: str = "restore or remove it",
    remedy_of_disk: str = "check the disk or mount",
) -> UserError:
    """Return what to say of something that cannot be read; its class tells what is at fault.

    Args:
      what: cannot be read.
      error: the system's, or a ValueError for a name that no file can have.
      remedy_of_file: what a user can do if it is the file itself: it is a `BadFile` then.
      remedy_of_disk: and if it is a disk or mount: it is `Unreachable` then.
    """
    number = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    said = f"{what} cannot be read ({reason or type(error).__name__})"
    if number in OF_THE_PROGRAM | OF_RIGHTS:
        return UserError(f"{said}: {remedy(number)} and start again")
    if number in OF_THE_FILE or not isinstance(error, OSError):
        return BadFile(f"{said}: {remedy_of_file}")
    return Unreachable(f"{said}: {remedy_of_disk}")


def of_the_system(error: BaseException) -> UserError | None:
    """Return what to say of an error that is the system's and of no code, or None.

    It is for what nobody has foreseen: whoever knows what a file is for says it better.
    """
    if isinstance(error, UserError):
        return error
    number = getattr(error, "errno", None) if isinstance(error, OSError) else None
    where = getattr(error, "filename", None)
    if number is not None and (where is not None or number in REMEDIES):
        place = os.fsdecode(where) if isinstance(where, str | bytes) else "a file"
        said = f"{place}: {os.strerror(number)}: {remedy(number)}"
    elif isinstance(error, MemoryError):
        said = f"there is not enough memory ({str(error) or 'MemoryError'}): free some, or use less"
    elif isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        said = f"no thread can be started: {remedy(errno.EAGAIN)}"
    else:
        return None
    return UserError(f"{' '.join(said.split())} and start again (--debug shows where)")


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `' (did you mean "x"?)'` for the choice most like `name`, or `''`."""
    match = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f' (did you mean "{match[0]}"?)' if match else ""


def choose(what: str, value: object, choices: Iterable) -> None:
    """Raise `UserError` listing `choices` unless `value` is one of them."""
    names = [str(choice) for choice in choices]
    if str(value) not in names:
        hint = nearest(str(value), names)
        raise UserError(f'{what} is "{value}"{hint}: choose one of {", ".join(names)}')


def number(flag: str, text: str, above: float = -math.inf) -> float:
    """Return the number that a part of a flag with commas holds.

    Raises:
      UserError: if it is none, not finite, or not above `above`.
    """
    try:
        value = float(text)
    except ValueError:
        raise UserError(f'{flag} has "{text}", which is no number') from None
    if not (math.isfinite(value) and value > above):
        more = "" if above == -math.inf else f", above {above:g}"
        raise UserError(f'{flag} has "{text}": give a finite number{more}')
    return value


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
        try:
            given = getattr(door, "arguments", list)(argv)
            argv[:] = sys.argv[:] = _with_recipe(given)
            rest = flags.FLAGS(argv)
            _load_recipe()
        except Exception as error:  # whatever the code of a recipe may raise
            if debug:
                raise
            _exit(_explain(error))
        if len(rest) > 1:
            _exit(f'"{rest[1]}" is no flag: every argument has the form --name=value')
        if wrong := _given_wrongly(usage.of(door)):
            _exit(wrong)
        return rest

    def guarded(_: list[str]) -> int | None:
        if not any(argument.startswith(("--verbosity", "-v")) for argument in sys.argv):
            logging.set_verbosity(logging.WARNING)  # libraries have much to say about their inside
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


def say(message: str) -> None:
    """Print what a user has to put right, if that can be printed."""
    with contextlib.suppress(OSError):
        print(f"error: {printable(message)}", file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print what was asked for; that its reader has gone away is no mistake."""
    with contextlib.suppress(BrokenPipeError):
        print(text, flush=True)
    flush()


def flush() -> None:
    """Hand over what was printed; what nobody takes is dropped.

    Else Python would try once more at its end, and print a traceback of that.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
