"""What placements `canvas` and `split` share: threads that write into the arrays of batches.

A batch is never put together: its rows are cut into blocks, and a thread that has a block writes
where the block belongs.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from simclr_jax.closing import Closing
from simclr_jax.data.placements import Loading, Request, blocks
from simclr_jax.data.reader import ahead
from simclr_jax.errors import UserError


class Job(NamedTuple):
    """A block of a batch: which rows they are, and the arrays to fill, views of those of it."""

    request: Request
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
        """Return an array of bytes of any values.

        Raises:
          UserError: if memory has no room for it.
        """
        for i in range(len(self._arrays)):
            free = sys.getrefcount(self._arrays[i]) == self._unheld
            if free and self._arrays[i].shape == shape:
                return self._arrays[i].view()
        try:
            self._arrays.append(np.empty(shape, np.uint8))
        except MemoryError as error:
            raise UserError(
                f"{shape[0]} images of a batch, {'x'.join(map(str, shape[1:]))} bytes each, do not "
                "fit into memory: lower train.batch_size, or free memory"
            ) from error
        return self._arrays[-1].view()


def batches(
    loading: Loading,
    requests: Iterator[Request],
    pixels: Mapping[str, tuple[int, ...]],
    numbers: Mapping[str, tuple[int, ...]],
    fill: Callable[[Job], object],
) -> Generator[dict[str, np.ndarray], None, None]:
    """Yield filled batches, in order.

    Args:
      loading: says how many threads there are, and what ends them.
      requests: of the batches.
      pixels: uint8 arrays of a batch, by name, and the shape of a row. They hold any values before.
      numbers: likewise int32 arrays, which hold zeros before.
      fill: fills a block; threads call it.
    """
    memory, under_way = Memory(), deque[tuple[dict[str, np.ndarray], int]]()

    def jobs() -> Iterator[Job]:
        for request in requests:
            n = len(request.positions)
            batch = {name: memory.take((n, *shape)) for name, shape in pixels.items()}
            batch |= {name: np.zeros((n, *shape), np.int32) for name, shape in numbers.items()}
            starts = range(0, n, blocks.BLOCK)
            under_way.append((batch, len(starts)))
            for start in starts:
                rows = slice(start, start + blocks.BLOCK)
                part = {name: values[rows] for name, values in batch.items()}
                yield Job(Request(request.positions[rows], request.start), part)

    pool = ThreadPoolExecutor(loading.threads)
    done = ahead(pool, fill, jobs(), depth=2 * loading.threads)
    # The pool is left last, for it waits for its threads: they end when the reader is closed.
    with Closing(done.close, loading.reader.close, pool.shutdown):
        for _ in done:
            batch, count = under_way.popleft()
            for _ in range(count - 1):
                next(done)
            yield batch
            del batch  # its memory may be used again
