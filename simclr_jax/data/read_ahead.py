"""Records that are fetched block by block, before they are asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

THREADS = 32  # many, for a bucket answers each of them slowly


class RawRecords(Protocol):
    """Records by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> bytes: ...


class ReadAhead:
    """Records `raw` of which some blocks are in memory, or on their way.

    What is in memory changes when a record arrives and never what it is: a record of no block that
    was announced is read by itself.

    Args:
      raw: the records; threads may read them at the same time.
      fetch: reads the records at rows, int64 `[n]`, together.
    """

    def __init__(self, raw: RawRecords, fetch: Callable[[np.ndarray], Sequence[bytes]]):
        self._raw, self.fetch = raw, fetch
        self._lock = threading.Lock()
        self._blocks: OrderedDict[bytes, np.ndarray] = OrderedDict()  # the oldest first
        self._where: dict[int, tuple[Future[Sequence[bytes]], int]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._raw)

    def announce(self, blocks: list[np.ndarray]) -> None:
        """Start to fetch the blocks, each int64 rows, that are not here yet.

        Half as many more than are announced are kept: those before them may still be in use.
        """
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(THREADS)
            for rows in blocks:
                if (key := rows.tobytes()) not in self._blocks:
                    coming = self._pool.submit(self.fetch, rows)
                    self._where |= {int(row): (coming, i) for i, row in enumerate(rows)}
                    self._blocks[key] = rows
                self._blocks.move_to_end(key)
            while 2 * len(self._blocks) > 3 * len(blocks):
                for row in self._blocks.popitem(last=False)[1]:
                    self._where.pop(int(row), None)

    def __getitem__(self, row: int) -> bytes:
        with self._lock:
            found = self._where.get(int(row))
        if found is not None:
            coming, at = found
            if coming.exception() is None:
                return coming.result()[at]
        # One damaged record fails its whole block; by itself each says what is wrong with it.
        return self._raw[row]
