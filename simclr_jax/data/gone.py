"""Data that are gone, and may come back, told from files that are bad."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from simclr_jax import documents, errors, files
from simclr_jax.data.formats import BadImage
from simclr_jax.errors import Unreachable, UserError

# What the system says of a file that is at fault itself. After anything else the next is no better.
OF_THE_FILE = errors.OF_THE_FILE | errors.OF_RIGHTS
BACK = (
    "bring them back, or mount their disk again, or name where they are now; nothing is lost, and "
    "the same command continues from the last save"
)


def trouble(path: Path, what: str, error: OSError) -> UserError:
    """Return what to tell a user about a file or directory that the system does not give."""
    lasts = error.errno in OF_THE_FILE | errors.OF_THE_PROGRAM  # until somebody puts it right
    reason, remedy = error.strerror or error, errors.remedy(error.errno)
    return (UserError if lasts else Unreachable)(
        f"{documents.shown(path)} {what}: {reason}: {remedy}"
    )


def is_gone(root: Path, path: str = "") -> bool:
    """Tell whether a directory is gone, or is an empty mount point, or `path` in it is elsewhere.

    A file below it may be missing by itself. Where a link on the way to it leads nowhere, the disk
    that the link led to is gone.

    Args:
      root: a directory that had something in it.
      path: of a file below it that cannot be read.

    Raises:
      UserError: if this program may open no more files.
    """
    try:
        with os.scandir(root) as entries:
            if next(entries, None) is None:
                return True
    except OSError as error:
        if error.errno in errors.OF_THE_PROGRAM:
            raise trouble(root, "cannot be listed", error) from error
        return True
    links = [root / parent for parent in Path(path).parents if (root / parent).is_symlink()]
    return not all(link.exists() for link in links)


def leads_off(file: Path) -> bool:
    """Tell whether a file is a link into a directory that is not there.

    Of a file that was there once, its disk is gone; a link may have led nowhere from the start.
    """
    return file.is_symlink() and not Path(os.path.realpath(file)).parent.is_dir()


def not_read(
    root: Path, name: str, error: OSError, is_lost: Callable[[], bool] = lambda: False
) -> Exception:
    """Return what to raise where an image cannot be read.

    Args:
      root: the directory of all images.
      name: of the file below it, or of the image.
      error: what the system says.
      is_lost: tells whether the image is known to be on a disk that is gone.
    """
    path, reason = root / name, error.strerror or str(error)
    if error.errno in errors.OF_THE_PROGRAM:
        return trouble(path, "cannot be read", error)
    if error.errno not in OF_THE_FILE:
        return Unreachable(
            f"{documents.shown(path)} cannot be read at the moment ({reason}), which is not "
            "the file's fault: check the disk or mount; the same command continues from the "
            "last save"
        )
    if is_gone(root, name) or is_lost():
        return unreachable(root, name)
    return BadImage(reason)


def unreachable(root: Path, name: str = "") -> Unreachable:
    """Return what to tell of data that are gone, and the file that was missed first."""
    missed = f" (missed first: {documents.shown(name)})" if name else ""
    return Unreachable(f"the images of {documents.shown(root)} are gone{missed}: {BACK}")


def check(path: str) -> None:
    """Raise `Unreachable` if the data of a run that has begun are not where they were.

    Args:
      path: `data.path`; in a bucket it is looked at by whoever reads it.
    """
    if not path or not files.is_local(path):
        return
    place = Path(path).expanduser()
    try:
        place.stat()
        is_there = not place.is_dir() or not is_gone(place)
    except OSError:
        is_there = False
    if not is_there:
        raise Unreachable(f"data.path={path} is not there any more, or is empty: {BACK}")
