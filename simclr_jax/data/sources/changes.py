"""Whether files are still those that a run began with: their sizes and times.

Times count in whole seconds, which every file system and archive keeps. `cp -a`, `rsync -a` and
`tar` keep them; a plain `cp` gives new ones, which alone prove nothing and are said as such.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from simclr_jax import documents

T = TypeVar("T")

THREADS = 32  # many, for a network file system answers each of them slowly
PART = 1024  # files that a thread looks at in one go
NONE = 2**32 - 1  # as size and time: there is no such file


def look_at(root: Path, paths: Sequence[str]) -> np.ndarray:
    """Return size and time of files below `root`, uint32 `[m, 2]`, each modulo 2^32."""

    prefix = f"{root}{os.sep}"
    found = by_threads(lambda path: _one(prefix + path), paths)
    return (np.array(found, np.int64).reshape(-1, 2) & 0xFFFFFFFF).astype(np.uint32)


def by_threads(look: Callable[[str], T], paths: Sequence[str]) -> list[T]:
    """Return what `look` finds at each of many files, in order."""

    def part(some: Sequence[str]) -> list[T]:
        return [look(path) for path in some]

    parts = [paths[at : at + PART] for at in range(0, len(paths), PART)]
    with ThreadPoolExecutor(min(THREADS, max(1, len(parts)))) as pool:
        return [one for some in pool.map(part, parts) for one in some]


def _one(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 (a `Path` for each of a million files takes seconds)
    except OSError:
        return NONE, NONE
    return status.st_size, int(status.st_mtime)


def as_text(marks: np.ndarray) -> str:
    """Return what `look_at` found as text."""
    return base64.b64encode(marks.astype("<u4").tobytes()).decode()


def of_text(text: str, count: int) -> np.ndarray:
    """Return what `as_text` made of `count` files, uint32 `[count, 2]`.

    Raises:
      ValueError: if it is not of so many.
    """
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<u4").reshape(count, 2)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def changed_files(
    where: str, paths: Sequence[str], before: np.ndarray, now: np.ndarray, total: int
) -> str:
    """Return a sentence about files that are not what they were; "" if all are.

    Args:
      where: their directory.
      paths: those that were looked at.
      before: their marks, uint32 `[m, 2]`, when the run began.
      now: their marks today.
      total: how many there are.
    """
    rows = np.flatnonzero((before != now).any(1))
    if not len(rows):
        return ""
    such = f"such as {documents.shown(paths[rows[0]])}"
    looked = f"{len(paths)} looked at of {total}" if len(paths) < total else f"{total}"
    if len(rows) == len(paths) and (before[:, 0] == now[:, 0]).all():
        return (
            f"all {looked} images in {where} have other times than when the run began, and the "
            "same sizes, as copies have"
        )
    return (
        f"{len(rows)} of {looked} images in {where} are not the files that they were when the run "
        f"began, {such}"
    )


def changed_records(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return a sentence about record files that are not what they were; "" if all are.

    Args:
      before: what `files.size_and_time` said of each, by name, when the run began.
      now: what it says today.
    """
    changed = [name for name in now if now[name] != before.get(name)]
    if not changed:
        return ""
    return (
        f"{len(changed)} of {len(now)} record files are not those that the run began with, such as "
        f"{documents.shown(changed[0])}"
    )
