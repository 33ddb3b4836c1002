"""NumPy archives (`.npz`), read as if they were damaged or a stranger's.

What an archive claims to hold is looked at before memory is taken for it; nothing in it is run.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from etils import epath
from numpy.lib import format as npy

from simclr_jax import documents, errors, files
from simclr_jax.closing import Closing
from simclr_jax.documents import Unfit
from simclr_jax.errors import BadFile, UserError

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
SHARE = 0.8  # of the memory that is free, which arrays may take
HEADERS: dict[tuple[int, int], Callable] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


def read(
    path: epath.PathLike,
    names: Iterable[str] | None = None,
    remedy: str = "restore or remove it",
) -> dict[str, np.ndarray]:
    """Return arrays of an archive.

    Args:
      path: of the archive.
      names: of the arrays that are wanted, as far as they are there; None for all of them.
      remedy: what a user can do about an archive that cannot be used.

    Raises:
      FileNotFoundError: if there is no such file.
      BadFile: if it is no whole archive of plain arrays, or they would not fit into memory.
      UserError: if it cannot be read for a reason that is not its own.
    """
    try:
        with Closing() as stack:
            if files.is_local(path):
                file: IO[bytes] = stack.enter(_opened(path, remedy))
            else:
                file = io.BytesIO(documents.content(path, remedy, int(free_memory() * SHARE)))
            return _arrays(stack.enter(zipfile.ZipFile(file)), names)
    except (UserError, FileNotFoundError):
        raise
    except Unfit as error:
        reason = str(error)
    except MemoryError as error:
        raise UserError(
            f"{documents.shown(path)} cannot be read (its arrays do not fit into memory): "
            f"{errors.remedy(errno.ENOMEM)} and start again"
        ) from error
    except Exception as error:  # a damaged archive fails in any of NumPy's and zipfile's ways
        # A damaged one sends zipfile to places that are none: the system says EINVAL.
        if getattr(error, "errno", None) not in {None, *errors.OF_THE_FILE}:
            raise errors.unreadable(documents.shown(path), error, remedy) from error
        reason = " ".join(str(error).split()) or type(error).__name__
    raise BadFile(f"{documents.shown(path)} is no archive to use ({reason}): {remedy}")


def _opened(path: epath.PathLike, remedy: str) -> IO[bytes]:
    try:
        place = Path(path).expanduser()
        documents.check_kind(place)
        return place.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(documents.shown(path)) from error
    except (OSError, ValueError) as error:
        raise errors.unreadable(documents.shown(path), error, remedy) from error


def _arrays(archive: zipfile.ZipFile, names: Iterable[str] | None) -> dict[str, np.ndarray]:
    held = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    if len(held) < len(archive.infolist()):
        raise Unfit("two of its arrays have one name")
    wanted = held if names is None else [name for name in names if name in held]
    claimed, free = 0, free_memory() * SHARE
    for name in wanted:
        with archive.open(held[name]) as member:
            size = _claimed(member, name, held[name].file_size)
        if (claimed := claimed + size) > free:
            raise Unfit(
                f"it claims {claimed / 1e9:.3g} GB with {name}, and {free / 1e9:.3g} GB are free"
            )
    found = {}
    for name in wanted:
        with archive.open(held[name]) as member:
            found[name] = npy.read_array(member, allow_pickle=False)
            if member.read(1):  # to its end, where zipfile looks at the checksum
                raise Unfit(f"{name} is longer than it says")
    return found


def _claimed(member: IO[bytes], name: str, size: int) -> int:
    """Return the bytes of an array, by its header, which must be those that follow it."""
    version = npy.read_magic(member)
    if version not in HEADERS:
        raise Unfit(f"{name} has the version {version} of NumPy's format")
    shape, _, dtype = HEADERS[version](member)
    if dtype.hasobject:
        raise Unfit(f"{name} has Python objects, which would be run")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != size - member.tell():
        raise Unfit(f"{name} claims {claimed} bytes and has {size - member.tell()}")
    return claimed


def free_memory() -> int:
    """Return the bytes of memory that can be had without swapping, of the machine and of its part.

    A container, or a job of a cluster, may have less than its machine; who takes more is killed.
    """
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError):
        said = [line for line in _lines(PROC / "meminfo") if line.startswith("MemAvailable:")]
        whole = min([whole, *[int(line.split()[1]) * 1024 for line in said]])
    return min([whole, *_left_in_groups()])


def _left_in_groups() -> Iterator[int]:
    """Yield what is left to each control group (version 2) that this process is in."""
    with contextlib.suppress(OSError):
        lines = _lines(PROC / "self" / "cgroup")
        for name in [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]:
            for group in (GROUPS / name, *(GROUPS / name).parents):
                # A group without a limit says "max"; its files may be another's to read.
                with contextlib.suppress(OSError, ValueError):
                    limit = int((group / "memory.max").read_text())
                    used = int((group / "memory.current").read_text())
                    stat = dict(line.split() for line in _lines(group / "memory.stat"))
                    yield max(limit - used + int(stat.get("inactive_file", 0)), 0)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()
