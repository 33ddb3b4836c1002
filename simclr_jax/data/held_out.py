"""Evaluation images of one size, prepared on the host slice by slice as they are asked for."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from simclr_jax import closing, processes
from simclr_jax.data.decode import BadImage, within_memory
from simclr_jax.data.reader import Unreadable
from simclr_jax.data.sources.source import Source


class Kept:
    """Prepared images of all splits that later evaluations find in memory.

    Args:
      most: bytes that they may take; those that come when they are taken are not kept.
    """

    def __init__(self, most: int):
        self._most, self._lock = most, threading.Lock()
        self._images: dict[tuple[str, int], np.ndarray] = {}
        self.bytes, self.left_out = 0, 0

    def __len__(self) -> int:
        return len(self._images)

    def get(self, role: str, row: int) -> np.ndarray | None:
        """Return an image of the split that has a role; None: it is not here."""
        return self._images.get((role, row))

    def put(self, role: str, row: int, image: np.ndarray) -> None:
        """Keep an image, if there is room."""
        with self._lock:
            if (role, row) in self._images:
                return
            if self.bytes + image.nbytes > self._most:
                self.left_out += 1
                return
            self.bytes += image.nbytes
            # One that is a part of a larger one would keep all of that.
            self._images[role, row] = image if image.base is None else image.copy()


class HeldOut:
    """A split as an array `[m, size, size, c]` that `evaluate.features.extract` can read.

    As a context manager it ends its threads.

    Args:
      source: of the images, of any sizes.
      prepare: from decoded pixels `[h, w, c]` to the evaluation view.
      unreadable: told about images that cannot be read. They are zeros here, and `readable` leaves
        them out: an evaluation replaces nothing.
      threads: that decode.
      kept: finds images that were prepared before; None prepares all.
      role: of the split there.
    """

    def __init__(
        self,
        source: Source,
        prepare: Callable[[np.ndarray], np.ndarray],
        unreadable: Unreadable,
        threads: int,
        kept: Kept | None = None,
        role: str = "",
    ):
        self._source, self._prepare, self._unreadable = source, prepare, unreadable
        self._kept, self._role = kept, role
        self._pool = ThreadPoolExecutor(threads)
        self._bad: dict[int, str] = {}  # rows, and why

    def __enter__(self) -> HeldOut:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        closing.close(error, functools.partial(self._pool.shutdown, cancel_futures=True))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, rows: slice) -> np.ndarray:
        found = self._pool.map(self._image, range(*rows.indices(len(self))))
        return np.stack([self._blank if image is None else image for image in found])

    def readable(self) -> np.ndarray:
        """Return which images could be read so far, int64 rows.

        Of several processes each has read rows of its own; all must call this.

        Raises:
          UserError: if all processes together could not read too many.
        """
        each = processes.everyone(sorted(self._bad.items()))
        bad = {int(row): reason for some in each for row, reason in some}
        if bad:
            row, reason = next(iter(bad.items()))
            self._unreadable.check(len(bad), f"{self._source.name(row)} ({reason})")
        return np.setdiff1d(np.arange(len(self)), [*bad])

    def _image(self, row: int) -> np.ndarray | None:
        if self._kept is not None and (kept := self._kept.get(self._role, row)) is not None:
            return kept
        try:
            with within_memory(functools.partial(self._source.name, row)):
                image = self._prepare(self._source.example(row)[0])
        except BadImage as reason:
            self._bad[row] = str(reason)
            self._unreadable.add(self._source.name(row), reason)
            return None
        if self._kept is not None:
            self._kept.put(self._role, row, image)
        return image

    @functools.cached_property
    def _blank(self) -> np.ndarray:
        """Zeros of the shape and dtype that readable images have."""
        return np.zeros_like(self._prepare(np.zeros((8, 8, self._source.channels), np.uint8)))
