"""Fetches records block by block, before they are asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

THREADS = 32  # many, for a bucket answers each of them slowly
GAP = 256 * 1024  # bytes that are read and thrown away rather than ask a second time


def together(
    rows: np.ndarray, file: np.ndarray, start: np.ndarray, stop: np.ndarray
) -> list[np.ndarray]:
    """Return records, int64 `[n]`, in parts that lie close together and are read by one request.

    Args:
      rows: the records.
      file: of each of them, the file that it lies in, int64 `[n]`.
      start, stop: where in its file, bytes, int64 `[n]`.
    """
    gap = start[1:] - stop[:-1]
    cuts = (file[1:] != file[:-1]) | (gap < 0) | (gap > GAP)
    return np.split(rows, np.flatnonzero(cuts) + 1)


class RawRecords(Protocol):
    """Records by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> bytes: ...


@dataclasses.dataclass
class _Block:
    rows: np.ndarray
    coming: Future[Sequence[bytes]]
    held: int = 0


class ReadAhead:
    """Records `raw` of which some blocks are in memory, or on their way.

    What is in memory changes when a record arrives and never what it is: a record of no block that
    is here is read by itself.

    Args:
      raw: the records; threads may read them at the same time.
      fetch: reads the records at rows, int64 `[n]`, together.
    """

    def __init__(self, raw: RawRecords, fetch: Callable[[np.ndarray], Sequence[bytes]]):
        self._raw, self.fetch = raw, fetch
        self._lock = threading.Lock()
        self._blocks: dict[bytes, _Block] = {}
        self._where: dict[int, tuple[Future[Sequence[bytes]], int]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._raw)

    def announce(self, blocks: Iterable[np.ndarray], later: Iterable[np.ndarray] = ()) -> None:
        """Start to fetch the blocks, each int64 rows, that are not here yet.

        Args:
          blocks: are here until `release` was called for each as often as this.
          later: are here until they were among `blocks` and released.
        """
        with self._lock:
            for rows in blocks:
                self._block(rows).held += 1
            for rows in later:
                self._block(rows)

    def release(self, blocks: Iterable[np.ndarray]) -> None:
        """Forget announced blocks that no other call of `announce` holds."""
        with self._lock:
            for rows in blocks:
                if (block := self._blocks.get(rows.tobytes())) is not None:
                    block.held -= 1
                    if block.held <= 0:
                        self._forget(block)

    def close(self) -> None:
        """Fetch no more of what was announced, and forget what is not held.

        Records can still be read, and blocks be announced again.
        """
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = None
            for block in list(self._blocks.values()):
                if block.held <= 0 or block.coming.cancelled():
                    self._forget(block)

    def __getitem__(self, row: int) -> bytes:
        with self._lock:
            found = self._where.get(int(row))
        if found is not None:
            coming, at = found
            with contextlib.suppress(CancelledError):
                if coming.exception() is None:
                    return coming.result()[at]
        # One damaged record fails its whole block; by itself each says what is wrong with it.
        return self._raw[row]

    def _block(self, rows: np.ndarray) -> _Block:
        key = rows.tobytes()
        if key not in self._blocks:
            self._pool = self._pool or ThreadPoolExecutor(THREADS)
            coming = self._pool.submit(self.fetch, rows)
            self._where |= {int(row): (coming, i) for i, row in enumerate(rows)}
            self._blocks[key] = _Block(rows, coming)
        return self._blocks[key]

    def _forget(self, block: _Block) -> None:
        block.coming.cancel()
        del self._blocks[block.rows.tobytes()]
        for row in block.rows:
            self._where.pop(int(row), None)
