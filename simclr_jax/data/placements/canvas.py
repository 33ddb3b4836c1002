"""Placement `canvas`: threads decode each image once, whole; the device cuts and colours all views.

What crosses to the device is of one size whatever the images are: bytes on a square canvas, and how
much of it each image covers (`data/canvas.py`). Boxes are drawn and cut on the device, by the law
and the resize grid of placement `device`, which this is for photographs.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from simclr_jax.closing import Closing
from simclr_jax.data import canvas
from simclr_jax.data.placements import Loading, Request, blocks
from simclr_jax.data.reader import ahead


class Job(NamedTuple):
    """Rows of a batch that a thread fills, and what it fills: views of the arrays of that batch."""

    positions: np.ndarray
    made: dict[str, np.ndarray]


class Memory:
    """Arrays that are used again once nobody holds them, nor a view of them.

    A device that is still reading one holds it. Memory that is new costs the kernel as much time as
    a third of the decoding, which is what a batch would begin with.
    """

    def __init__(self):
        self._arrays = [np.empty(0, np.uint8)]
        self._unheld = sys.getrefcount(self._arrays[0])

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array of bytes of any values."""
        for i in range(len(self._arrays)):
            free = sys.getrefcount(self._arrays[i]) == self._unheld
            if free and self._arrays[i].shape == shape:
                return self._arrays[i].view()
        self._arrays.append(np.empty(shape, np.uint8))
        return self._arrays[-1].view()


def batches(
    loading: Loading, requests: Iterator[Request]
) -> Generator[dict[str, np.ndarray], None, None]:
    """Yield `canvas`, uint8 `[n, side, side, c]`, `size`, `example` and, if any, `label`.

    `size`, int32 `[n, 2]`, are height and width of each image on its canvas, which is black beyond
    it; `example`, int32 `[n]`, the numbers of the images that were taken; `label` is int32 `[n]`.
    """
    source, on = loading.reader.source, loading.canvas
    assert on is not None, "placement canvas needs one"
    canvas.check_libraries(on)  # before the first image that needs them
    memory = Memory()
    under_way: deque[tuple[dict[str, np.ndarray], int]] = deque()

    def jobs() -> Iterator[Job]:
        for request in requests:
            n = len(request.positions)
            batch: dict[str, np.ndarray] = {
                "canvas": memory.take((n, on.side, on.side, source.channels)),
                "size": np.zeros((n, 2), np.int32),
                "example": np.zeros(n, np.int32),
            }
            if source.classes:
                batch["label"] = np.zeros(n, np.int32)
            starts = range(0, n, blocks.BLOCK)
            under_way.append((batch, len(starts)))
            for start in starts:
                rows = slice(start, start + blocks.BLOCK)
                part = {name: values[rows] for name, values in batch.items()}
                yield Job(request.positions[rows], part)

    def fill(job: Job) -> None:
        made = job.made
        labels, made["example"][:] = on.lay(
            loading.reader, job.positions, made["canvas"], made["size"]
        )
        if "label" in made:
            made["label"][:] = labels

    pool = ThreadPoolExecutor(loading.threads)
    done = ahead(pool, fill, jobs(), depth=2 * loading.threads)
    # The pool is left last, for it waits for its threads: they end when the reader is closed.
    with Closing(done.close, loading.reader.close, pool.shutdown):
        for _ in done:
            batch, count = under_way.popleft()
            for _ in range(count - 1):
                next(done)
            yield batch
