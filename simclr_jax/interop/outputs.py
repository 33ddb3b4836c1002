"""Where an export is written: aside, and moved to its place when it has been checked."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from simclr_jax import files
from simclr_jax.closing import Closing
from simclr_jax.errors import UserError


def place(out: str, suffixes: tuple[str, ...]) -> Path:
    """Return the path of an export to be, once it is sure that it can be written.

    Args:
      out: what the user asked for.
      suffixes: of a file; none: it is a directory.

    Raises:
      UserError: if there is something already, it has another suffix, or cannot be written.
    """
    if not files.is_local(out):
        raise UserError(f"--out={out} is not on this machine: write it here, and copy it")
    path = Path(files.expand_home(out)).absolute()
    if suffixes and path.suffix not in suffixes:
        raise UserError(f"--out={out} must end in {' or '.join(suffixes)}")
    if os.path.lexists(path):
        raise UserError(f"--out={out} is there already: remove it, or name another")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--out={out} cannot be written: name a place in a directory of yours")
    return path


@contextlib.contextmanager
def aside(out: Path) -> Iterator[Path]:
    """Yield a path beside `out` to write to, which becomes `out` when the block ends well.

    Whether it is a file or a directory is for who writes it to decide.

    Raises:
      UserError: if the disk does not take it.
    """
    room = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    with Closing(lambda: shutil.rmtree(room, ignore_errors=True)), files.explaining(out):
        room.mkdir()
        yield room / out.name
        if os.path.lexists(out):  # since `place` looked
            raise UserError(f"--out={out} is there already: remove it, or name another")
        (room / out.name).replace(out)


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files below a directory."""
    found = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in found)
