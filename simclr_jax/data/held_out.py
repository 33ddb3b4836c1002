"""Evaluation images of one size, prepared on the host slice by slice as they are asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from simclr_jax import closing, processes
from simclr_jax.data.decode import BadImage, within_memory
from simclr_jax.data.reader import Unreadable
from simclr_jax.data.sources.source import Source


class HeldOut:
    """A split as an array `[m, size, size, c]` that `evaluate.features.extract` can read.

    As a context manager it ends its threads.

    Args:
      source: of the images, of any sizes.
      prepare: from decoded pixels `[h, w, c]` to the evaluation view.
      unreadable: told about images that cannot be read. They are zeros here, and `readable` leaves
        them out: an evaluation replaces nothing.
      threads: that decode.
    """

    def __init__(
        self,
        source: Source,
        prepare: Callable[[np.ndarray], np.ndarray],
        unreadable: Unreadable,
        threads: int,
    ):
        self._source, self._prepare, self._unreadable = source, prepare, unreadable
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
        try:
            with within_memory(functools.partial(self._source.name, row)):
                return self._prepare(self._source.example(row)[0])
        except BadImage as reason:
            self._bad[row] = str(reason)
            self._unreadable.add(self._source.name(row), reason)
            return None

    @functools.cached_property
    def _blank(self) -> np.ndarray:
        """Zeros of the shape and dtype that readable images have."""
        return np.zeros_like(self._prepare(np.zeros((8, 8, self._source.channels), np.uint8)))
