"""The one way to tell a user what to change; `entry.run` prints it.

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
import sys
from collections.abc import Iterable


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
