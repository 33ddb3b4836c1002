"""JSON that runs leave on disk, read as if it were damaged or a stranger's.

A document carries a checksum of its own content, so that a flipped bit is never read as another
number. Documents of versions without it, and a stranger's, are held to their schema alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from etils import epath

from simclr_jax import buckets, errors, files
from simclr_jax.errors import BadFile, printable

T = TypeVar("T")

SEAL = "crc32"  # of the rest of the document
LARGEST = 2**28  # bytes of a document, of which nobody knows better
LARGEST_FILE = 2**31  # of a file of lines, such as a log
DEEPEST = 64  # levels of one within the other: who walks through them must not run out of stack


class Unfit(Exception):
    """Some text is not the document that it should be; the message says in what way."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return content with its checksum as the last key; numbers that JSON lacks become null."""
    plain = {name: value for name, value in finite(content).items() if name != SEAL}
    return {**plain, SEAL: _checksum(plain)}


def parse(text: str | bytes, schema: type[T], largest: int = LARGEST) -> T:
    """Return what a document says, without its checksum.

    Args:
      text: JSON; bytes are UTF-8.
      schema: the type of the content, as msgspec takes it: a `TypedDict`, `dict[str, float]`, ...
      largest: how many bytes it may have.

    Raises:
      Unfit: if it is not JSON, was altered since it was written, or is not of the type.
    """
    try:
        if len(text) > largest:
            raise Unfit(_too_large(len(text), largest))
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        found = json.loads(
            text, parse_float=_number, parse_int=_whole, parse_constant=lambda _: None
        )
    except UnicodeDecodeError as error:
        raise Unfit("it is not UTF-8") from error
    except RecursionError as error:
        raise Unfit("it is nested too deeply") from error
    except ValueError as error:
        raise Unfit(f"it is not JSON: {error}") from error
    if _deeper(found, DEEPEST):
        raise Unfit("it is nested too deeply")
    if isinstance(found, dict) and SEAL in found:
        seal = found.pop(SEAL)
        if seal != _checksum(found):
            raise Unfit("it was altered since it was written")
    try:
        return msgspec.convert(found, schema)
    except UnicodeError as error:  # of half a character in a name, which no file of ours has
        raise Unfit("a name in it is no text") from error
    except msgspec.ValidationError as error:
        raise Unfit(" ".join(str(error).split())) from error


def line(content: Mapping[str, Any]) -> str:
    """Return a document as one line with its end, for files that grow."""
    return json.dumps(sealed(content)) + "\n"


def write(path: epath.PathLike, content: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write a document, whole or not at all; without `indent` in a line, for one that is long.

    Raises as `files.write_atomically`.
    """
    separators = (",", ":") if indent is None else None
    text = json.dumps(sealed(content), indent=indent, separators=separators)
    files.write_atomically(path, text + "\n")


def read(
    path: epath.PathLike,
    schema: type[T],
    remedy: str = "restore or remove it",
    largest: int = LARGEST,
) -> T:
    """Return what the document in a file says; see `parse`.

    One that is larger than it may be is not read at all.

    Raises:
      FileNotFoundError: if there is no such file.
      BadFile: if it is no such document, or none at all.
      UserError: if it cannot be read for a reason that is not its own.
    """
    try:
        return parse(content(path, remedy, largest), schema, largest)
    except Unfit as error:
        raise BadFile(f"{shown(path)} cannot be used ({error}): {remedy}") from error


def content(
    path: epath.PathLike, remedy: str = "restore or remove it", largest: int = LARGEST_FILE
) -> bytes:
    """Return the bytes of a file that may be anything.

    Raises:
      FileNotFoundError: if there is no such file.
      BadFile: if it has more bytes than `largest`, or is a directory, a pipe or a device.
      UserError: if it cannot be read for a reason that is not its own: it is closed to us, or on a
        failing disk.
    """
    local = files.is_local(path)
    reaching = contextlib.nullcontext() if local else buckets.reaching(path, (FileNotFoundError,))
    try:
        with reaching:
            size = check_kind(path) if local else epath.Path(path).stat().length
            if size > largest:
                raise BadFile(
                    f"{shown(path)} cannot be used ({_too_large(size, largest)}): {remedy}"
                )
            return epath.Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(shown(path)) from error
    except (OSError, ValueError) as error:  # the latter for a name that no file can have
        raise errors.unreadable(shown(path), error, remedy) from error


def check_kind(path: epath.PathLike) -> int:
    """Return the bytes of a local file.

    Raises:
      OSError: for a pipe or a device in its place: one may wait for it for ever.
    """
    found = Path(path).stat()
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise OSError(errno.EINVAL, "it is a pipe or a device")
    return found.st_size


def shown(path: epath.PathLike) -> str:
    """Return a path on one line: control characters, and bytes that are no UTF-8, are escaped."""
    return printable(os.fspath(path))


def _too_large(size: int, largest: int) -> str:
    return f"it has {size} bytes, of at most {largest}"


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is out of range")
    return value


def _whole(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"{text[:20]}... is out of range")
    return int(text)


def _deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        inner = [
            held
            for outer in level
            if isinstance(outer, dict | list)
            for held in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not (level := inner):
            return False
    return True


def finite(value: Any) -> Any:
    """Return a value as JSON can say it: names are strings, a number that it lacks is null."""
    if isinstance(value, Mapping):
        return {str(name): finite(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [finite(held) for held in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x}"
