"""Random access to the records of TFRecord files, through an index of where each one lies.

A record is its length (uint64, little endian), a checksum of the length, the bytes, and a checksum
of the bytes (both CRC-32C, masked). Nothing says how many records a file has or where they lie, so
the lengths are read once and kept: a hop from head to head on a disk, a pass over the file on a
bucket. The checksums of the heads are verified then; those of the bytes whenever a record is read,
where the package google-crc32c is installed (in Python they would cost as much as decoding).
"""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import itertools
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import archives, buckets, files
from simclr_jax.data.decode import LARGEST, BadImage
from simclr_jax.data.read_ahead import together
from simclr_jax.errors import Unreachable, UserError

HEAD, TAIL = 12, 4  # bytes before and after those of a record
HEADS = 4096  # that are read before their checksums are looked at
INDEX_THREADS = 32  # many, for a bucket answers each of them slowly
POLYNOMIAL = 0x82F63B78  # of CRC-32C, reflected


class TFRecordFiles:
    """The records of several files, one after the other. Threads may read at the same time.

    Attributes:
      paths: the files.
      counts: int64 `[files]`, records in each.
      place: the index on disk, or in a bucket.

    Args:
      paths: the files, in order.
      kept: directory that keeps the index, on a disk or a bucket.
      say: told before files are indexed, which may take minutes.

    Raises:
      UserError: if a file cannot be read, or is no TFRecord file or a damaged one.
    """

    def __init__(
        self,
        paths: Sequence[epath.Path],
        kept: epath.PathLike,
        say: Callable[[str], object] = lambda line: None,
    ):
        self.paths = list(paths)
        self.place, lengths = _index(self.paths, epath.Path(kept), say)
        self.counts = np.array([len(one) for one in lengths])
        self._file = np.repeat(np.arange(len(lengths)), self.counts)
        starts = [np.cumsum(one + HEAD + TAIL) - one - TAIL for one in lengths]
        self._start = np.concatenate([*starts, np.zeros(0, np.int64)])
        self._length = np.concatenate([*lengths, np.zeros(0, np.int64)])

    def __len__(self) -> int:
        return len(self._length)

    def __getitem__(self, row: int) -> bytes:
        """Return a record.

        Raises:
          BadImage: if its checksum is wrong, or it is larger than `LARGEST`.
        """
        return self.fetch(np.array([row]))[0]

    def fetch(self, rows: np.ndarray) -> list[bytes]:
        """Return several records; those that lie close together are read together.

        Raises:
          BadImage: if the checksum of one of them is wrong, or one is larger than `LARGEST`.
        """
        if (largest := int(self._length[rows].max(initial=0))) > LARGEST:
            raise BadImage(f"too large: {largest / 2**30:.0f} GiB")
        found: list[bytes] = []
        for part in self._together(rows):
            start = int(self._start[part[0]])
            ends = self._start[part] + self._length[part] + TAIL
            read = _read(self.paths[self._file[part[0]]], start, int(ends[-1]) - start)
            for at, end in zip(self._start[part] - start, ends - start, strict=True):
                found.append(_verified(read[at : end - TAIL], read[end - TAIL : end]))
        return found

    def take(self, rows: np.ndarray) -> TFRecordFiles:
        """Return only the records at `rows`, in that order."""
        part = copy.copy(self)
        for name in ("_file", "_start", "_length"):
            setattr(part, name, getattr(self, name)[rows])
        return part

    def _together(self, rows: np.ndarray) -> list[np.ndarray]:
        start = self._start[rows]
        return together(rows, self._file[rows], start, start + self._length[rows])


def _read(path: epath.Path, start: int, count: int) -> bytes:
    read = buckets.read_range(path, start, count)
    if len(read) < count:
        raise BadImage(f"{path.name} ends at byte {start + len(read)}")
    return read


def index_directory(data: ConfigDict) -> epath.Path:
    """Return where the offsets of records are kept: a disk, or a bucket for all hosts."""
    if data.index:
        return epath.Path(files.expand_home(data.index))
    return epath.Path(files.cache_directory() / "tfrecord")


# The index ----------------------------------------------------------------------------------------


def _index(
    paths: list[epath.Path], kept: epath.Path, say: Callable[[str], object]
) -> tuple[epath.Path, list[np.ndarray]]:
    """Return the index in `kept`, made if need be: where it is, and int64 lengths by file."""
    with ThreadPoolExecutor(INDEX_THREADS) as pool:
        stamps = list(pool.map(files.size_and_time, paths))
        named = [f"{os.fspath(path)} {stamp}" for path, stamp in zip(paths, stamps, strict=True)]
        place = kept / f"{hashlib.sha256(chr(10).join(named).encode()).hexdigest()[:24]}.npz"
        if (found := _load(place, len(paths))) is not None:
            return place, found
        say(f"indexing  {len(paths)} TFRecord file(s) such as {paths[0]}, once: into {place}")
        lengths = list(pool.map(_lengths, paths))
    with buckets.reaching(kept):
        kept.mkdir(parents=True, exist_ok=True)
    counts = np.array([len(one) for one in lengths])
    keep_arrays(place, counts=counts, lengths=np.concatenate(lengths))
    return place, lengths


def keep_arrays(place: epath.Path, **arrays: np.ndarray) -> None:
    """Write arrays that can be made again, so that damage to them is noticed."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    with buckets.reaching(place):
        files.write_atomically(place, content.getvalue())


def kept_arrays(place: epath.Path, *names: str) -> list[np.ndarray] | None:
    """Return arrays that were kept; None where they must be made again.

    Raises:
      Unreachable: if the disk or bucket does not answer.
    """
    try:
        arrays = archives.read(place, names)
        return [arrays[name] for name in names]
    except Unreachable:
        raise
    except (FileNotFoundError, UserError, KeyError):
        return None


def _load(place: epath.Path, count: int) -> list[np.ndarray] | None:
    if (found := kept_arrays(place, "counts", "lengths")) is None:
        return None
    counts, lengths = found
    if not all(x.ndim == 1 and x.dtype.kind == "i" for x in (counts, lengths)):
        return None
    if len(counts) != count or counts.min() < 0 or counts.sum() != len(lengths):
        return None
    return np.split(lengths, np.cumsum(counts)[:-1])


def _lengths(path: epath.Path) -> np.ndarray:
    """Return the lengths of a file's records, int64 `[m]`.

    Raises:
      UserError: if it is no TFRecord file, or breaks off.
    """
    lengths, end = [np.zeros(0, np.int64)], 0
    with buckets.reaching(path), opened(path) as file:
        size = path.stat().length
        heads = _heads(file, size)
        # So few that what is no head does not lead through a whole file, twelve bytes at a time.
        while some := b"".join(itertools.islice(heads, HEADS)):
            lengths.append(_told(path, some, end))
            end += int((lengths[-1] + HEAD + TAIL).sum())
    if size != end:
        raise UserError(f"{path} breaks off at byte {size}: copy or prepare it again")
    return np.concatenate(lengths)


def _told(path: epath.Path, some: bytes, start: int) -> np.ndarray:
    """Return the lengths that heads tell, of records from a byte of a file on, int64 `[m]`."""
    heads = np.frombuffer(some, np.uint8).reshape(-1, HEAD)
    lengths = np.ascontiguousarray(heads[:, :8]).view("<u8")[:, 0].astype(np.int64)
    told = np.ascontiguousarray(heads[:, 8:]).view("<u4")[:, 0]
    wrong = np.flatnonzero(_masked(_crc32c(heads[:, :8])) != told)
    if wrong.size:
        at = start + int((lengths[: wrong[0]] + HEAD + TAIL).sum())
        compressed = some.startswith(b"\x1f\x8b") and not start
        kind = "it is compressed: unpack it" if compressed else "copy or prepare it again"
        raise UserError(f"{path} is no TFRecord file, or is damaged, at byte {at}: {kind}")
    return lengths


def opened(path: epath.Path) -> IO[bytes]:
    """Open a file; on a disk no more of it is read than is asked for."""
    return Path(path).open("rb", buffering=0) if buckets.is_local(path) else path.open("rb")


def _heads(file: IO[bytes], size: int) -> Iterator[bytes]:
    at = 0
    while at + HEAD <= size:
        file.seek(at)
        head = file.read(HEAD)
        yield head
        at += HEAD + struct.unpack_from("<Q", head)[0] + TAIL


# Checksums ----------------------------------------------------------------------------------------


@functools.cache
def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ (table & np.uint32(1)) * np.uint32(POLYNOMIAL)
    return table


def _crc32c(rows: np.ndarray) -> np.ndarray:
    """Return the CRC-32C of each row of bytes, uint8 `[m, n]`: for short rows."""
    value = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    for column in rows.T:
        value = _table()[(value ^ column) & np.uint32(0xFF)] ^ (value >> np.uint32(8))
    return ~value


def _masked(value: np.ndarray) -> np.ndarray:
    """Return checksums as the format stores them, so that none is a checksum of itself."""
    turned = (value >> np.uint32(15)) | (value << np.uint32(17))
    return turned + np.uint32(0xA282EAD8)


@functools.cache
def _fast_crc32c() -> Any:
    try:
        import google_crc32c
    except ImportError:
        return None
    return google_crc32c.value


def _verified(record: bytes, tail: bytes) -> bytes:
    crc32c = _fast_crc32c()
    if crc32c is not None:
        value = np.array([crc32c(record)], np.uint32)
        if _masked(value)[0] != struct.unpack("<I", tail)[0]:
            raise BadImage("damaged record: its checksum is wrong")
    return record
