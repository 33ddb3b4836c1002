"""Checkpoints in a bucket: made, verified and read on the local disk, and copied.

An object store knows no directories and no rename; an object is there whole, or not at all. So
the manifest alone makes a checkpoint here, and it is the last object written and the first removed:

    STEP/...                   being copied; swept away by the next save if it is never sealed
    STEP/manifest.json         a checkpoint
    STEP.damaged/...           set aside: the objects were copied there, and then deleted

What Orbax and the manifest do is the same as on a disk, in a directory that is thrown away.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import buckets, closing
from simclr_jax.train import manifest
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.manifest import Damaged

STEP = "(0|[1-9][0-9]*)"


def open_checkpoints(directory: epath.PathLike, **options: Any) -> Checkpoints:
    """Return the checkpoints in a directory, on a disk or in a bucket; see `Checkpoints`."""
    kind = Checkpoints if buckets.is_local(directory) else BucketCheckpoints
    return kind(directory, **options)


class BucketCheckpoints(Checkpoints):
    """Checkpoints of one run, in `DIRECTORY/STEP/` of a bucket; arguments as for `Checkpoints`."""

    def __init__(self, directory: epath.PathLike, **options: Any):
        self._bucket = epath.Path(directory)
        self._local = buckets.Scratch()
        super().__init__(self._local.path, **options)

    @property
    def place(self) -> epath.Path:
        """Return the directory in the bucket."""
        return self._bucket

    def close(self) -> None:
        """Wait for the last save, then free the threads and the local directory."""
        closing.close(None, super().close, self._local.close)

    def _directories(self) -> list[int]:
        """Return all steps that are sealed: others are no one's business but `sweep`'s."""
        steps = self._prefixes(STEP)
        return sorted(int(name) for name in steps if (self._bucket / name / manifest.NAME).exists())

    def _prefixes(self, pattern: str) -> list[str]:
        names = [path.name for path in buckets.listing(self._bucket)]
        return [name for name in names if re.fullmatch(pattern, name)]

    def _read(self, step: int, target: Any) -> Any:
        with self._here(step):
            return super()._read(step, target)

    def _values(self, step: int) -> dict[str, np.ndarray]:
        with self._here(step):
            return super()._values(step)

    @contextlib.contextmanager
    def _here(self, step: int) -> Iterator[None]:
        """Copy a step to the local directory for as long as it is read there."""
        with closing.Closing(lambda: self._path(step).rmtree(missing_ok=True)):
            try:
                buckets.copy(self._bucket / str(step), self._path(step))
            except FileNotFoundError as error:
                raise Damaged("it was removed while it was read") from error
            yield

    def _publish(self, step: int) -> None:
        local, there = self._path(step), self._bucket / str(step)
        buckets.copy(local, there, last=manifest.NAME)
        if _sizes(there) != _sizes(local):
            raise Damaged("the bucket does not hold what was copied to it")
        local.rmtree()

    def _retire(self, step: int) -> None:
        _delete(self._bucket / str(step))

    def sweep(self, lost: int = 0) -> None:
        """Delete what a killed process left half copied or half deleted.

        What is newer than all checkpoints, up to the step `lost`, had been one, and is set aside.
        """
        for path in self._directory.iterdir():
            path.rmtree()
        sealed = self._directories()
        for step in sorted({*map(int, self._prefixes(STEP))} - {*sealed}):
            if max(sealed, default=0) < step <= lost:
                self._set_aside(step, f"its {manifest.NAME} is gone")
            else:
                _delete(self._bucket / str(step))

    def damaged(self) -> list[str]:
        """Return the names of checkpoints that were whole once and have been set aside."""
        names = self._prefixes(rf"{STEP}\.damaged.*")
        return [name for name in names if (self._bucket / name / manifest.NAME).exists()]

    def _set_aside(self, step: int, reason: object) -> None:
        there, taken = self._bucket / str(step), self._prefixes(rf"{step}\.damaged.*")
        names = itertools.chain(
            [f"{step}.damaged"], (f"{step}.damaged-{i}" for i in itertools.count(2))
        )
        free = next(name for name in names if name not in taken)
        buckets.copy(there, self._bucket / free, last=manifest.NAME)
        _delete(there)
        self._say(f"checkpoint {there} is set aside as {free}: {reason}")


def _sizes(directory: epath.Path) -> dict[str, int]:
    found = buckets.below(directory)
    return {os.fspath(path)[len(os.fspath(directory)) :]: path.stat().length for path in found}


def _delete(directory: epath.Path) -> None:
    """Delete all objects below a prefix, the seal first."""
    paths = buckets.below(directory)
    with buckets.reaching(directory), ThreadPoolExecutor(buckets.COPIES) as pool:
        for path in [path for path in paths if path == directory / manifest.NAME]:
            path.unlink()
        list(pool.map(lambda path: path.unlink(missing_ok=True), paths))
