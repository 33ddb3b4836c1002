"""Reading the records of a packed store, by any number of threads.

They are read by `pread` and not mapped: a disk that fails is an error in a line then, where a
mapped file would end the process by a signal.
"""

from __future__ import annotations

import os
import threading
import weakref
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import buckets, documents, files
from simclr_jax.data import scratch
from simclr_jax.data.formats import BadImage
from simclr_jax.data.read_ahead import together
from simclr_jax.data.sources.packed_files import AGAIN, File
from simclr_jax.errors import UserError

MOST_OPEN = 256  # files of a split: a process may have 1024 where nobody has raised that


class _Opened:
    """A file that is open for reading, until nobody holds it."""

    def __init__(self, path: epath.Path):
        self.descriptor = os.open(os.fspath(path), os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)
        found = os.fstat(self.descriptor)
        self.mark = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class Shards:
    """The records of a split, by number. Threads may read at the same time.

    The checksum of a record is compared when it is read for the first time.

    Args:
      directory: of the store.
      shards: the files.
      length: of each record, bytes, int64 `[m]`.
      crc32: of each record, uint32 `[m]`.
      lent: single records are read into memory that is lent to a thread, if any is (`scratch.py`).
    """

    def __init__(
        self,
        directory: epath.Path,
        shards: Sequence[File],
        length: np.ndarray,
        crc32: np.ndarray,
        lent: bool = False,
    ):
        self._lent = lent
        self._paths = [directory / shard.file for shard in shards]
        self._is_local = files.is_local(directory)
        self._file = np.repeat(np.arange(len(shards)), [shard.images for shard in shards])
        starts = np.cumsum(length) - length
        before = np.cumsum([shard.bytes for shard in shards]) - [shard.bytes for shard in shards]
        self._start, self._length = starts - before[self._file], length
        self._crc32, self._verified = crc32, np.zeros(len(length), bool)
        self._lock, self._open = threading.Lock(), dict[int, _Opened]()  # the last one used last
        self._marks: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._length)

    def __getitem__(self, row: int) -> Any:
        """Return a record, bytes, or a view of bytes where memory is lent for them.

        Raises:
          BadImage: if its checksum is wrong.
          UserError: if its file ends before it, as thousands of records would.
          OSError: if its file cannot be opened or read.
        """
        count = int(self._length[row])
        if self._lent and (room := scratch.room(count)) is not None and self._is_local:
            file, start = self._opened(int(self._file[row])), int(self._start[row])
            read = os.preadv(file.descriptor, [room.data], start)
            return self._whole(row, room.data[:read])
        return self._whole(row, self._read(row, count))

    def fetch(self, rows: np.ndarray) -> list[bytes]:
        """Return several records; those that lie close together are read together.

        Raises as reading one does.
        """
        start = self._start[rows]
        stop = start + self._length[rows]
        found: list[bytes] = []
        for part in together(rows, self._file[rows], start, stop):
            begin, last = int(self._start[part[0]]), part[-1]
            read = self._read(part[0], int(self._start[last] + self._length[last]) - begin)
            for row, at in zip(part, self._start[part] - begin, strict=True):
                found.append(self._whole(row, read[at : at + self._length[row]]))
        return found

    def path(self, row: int) -> epath.Path:
        """Return the file that a record lies in."""
        return self._paths[self._file[row]]

    def _read(self, row: int, count: int) -> bytes:
        file, start = int(self._file[row]), int(self._start[row])
        if not self._is_local:
            return buckets.read_range(self._paths[file], start, count)
        opened = self._opened(file)  # held while it is read, or it might be closed
        return os.pread(opened.descriptor, count, start)

    def _opened(self, file: int) -> _Opened:
        """Return a shard; of those that are open the one that was not used longest is closed."""
        with self._lock:
            if (found := self._open.pop(file, None)) is None:
                while len(self._open) >= MOST_OPEN:
                    del self._open[next(iter(self._open))]
                found = _Opened(self._paths[file])
                # What lies there may be another file than when it was open before.
                if self._marks.setdefault(file, found.mark) != found.mark:
                    self._marks[file] = found.mark
                    self._verified[self._file == file] = False
            self._open[file] = found
        return found

    def _whole(self, row: int, record: Any) -> Any:
        if len(record) < self._length[row]:
            where = documents.shown(self.path(row))
            raise UserError(f"{where} was cut since it was opened: {AGAIN}")
        # Once is enough, and all epochs but the first are spared a third of what reading costs.
        if not self._verified[row]:
            if zlib.crc32(record) != self._crc32[row]:
                raise BadImage(f"damaged in {self.path(row).name}: its checksum is wrong")
            self._verified[row] = True
        return record
