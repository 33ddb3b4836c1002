"""Shards of a packed store that is being made: a file of records, and one beside it that says so.

The second is written last, and whole or not at all: a shard that has none was not finished, and is
made again, to the same bytes.
"""

from __future__ import annotations

import functools
import io
import os
import uuid
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simclr_jax import archives, closing, files
from simclr_jax.data.decode import BadImage, within_memory
from simclr_jax.data.packing.records import record
from simclr_jax.data.sources.packed_files import File, Law, Unread
from simclr_jax.data.sources.source import Source
from simclr_jax.errors import BadFile, printable


class Job(NamedTuple):
    """A shard to be written: the images `first` to `last`, without it, of a split, into `path`."""

    split: str
    first: int
    last: int
    path: Path

    @property
    def said(self) -> Path:
        """Return the file that says what is in the shard."""
        return self.path.with_suffix(".npz")


class Shard(NamedTuple):
    """What is in a shard of `k` images.

    Attributes:
      file: its name, size and checksum.
      size: int32 `[k, 2]`, height and width.
      length: int64 `[k]`, bytes of records.
      crc32: uint32 `[k]`, of records.
      scaled: int8 `[k]`, see `records.Record`.
      names: UTF-8, with a line break behind each.
      unread: images that have no record.
    """

    file: File
    size: np.ndarray
    length: np.ndarray
    crc32: np.ndarray
    scaled: np.ndarray
    names: bytes
    unread: list[Unread]


def write(source: Source, job: Job, law: Law, tick: Callable[[], bool]) -> Shard:
    """Write a shard.

    Args:
      source: the split.
      job: which images of it, and where to.
      law: how pixels are made.
      tick: called for each image; False from it ends the work.

    Raises:
      CancelledError: if `tick` said so.
      UserError: if the disk is full or failing, or memory too small.
    """
    count = job.last - job.first
    size, length = np.zeros((count, 2), np.int32), np.zeros(count, np.int64)
    crc32, scaled = np.zeros(count, np.uint32), np.zeros(count, np.int8)
    names, unread, check = list[str](), list[Unread](), 0
    aside = job.path.with_name(f".{job.path.name}.{uuid.uuid4().hex}.tmp")
    explaining = functools.partial(files.explaining, job.path)
    with closing.Closing(functools.partial(aside.unlink, missing_ok=True)) as stack:
        with explaining():
            file = stack.enter(aside.open("wb"))
        files.hold(file)
        for i, row in enumerate(range(job.first, job.last)):
            if not tick():
                raise CancelledError
            names.append(source.name(row))
            try:
                with within_memory(functools.partial(source.name, row)):
                    made = record(source.example(row)[0], law)
            except BadImage as reason:
                unread.append(Unread(row, names[-1], printable(str(reason))))
                continue
            size[i], length[i], scaled[i] = made[1:3], len(made.content), made.scaled
            crc32[i] = zlib.crc32(made.content)
            check = zlib.crc32(made.content, check)
            with explaining():
                file.write(made.content)
        with explaining():
            file.flush()
            os.fsync(file.fileno())
            aside.replace(job.path)
    said = File(job.path.name, count, int(length.sum()), f"{check:08x}")
    shard = Shard(said, size, length, crc32, scaled, lines(names), unread)
    _say(job, shard)
    return shard


def _say(job: Job, shard: Shard) -> None:
    arrays = {
        "size": shard.size,
        "length": shard.length,
        "crc32": shard.crc32,
        "scaled": shard.scaled,
        "names": np.frombuffer(shard.names, np.uint8),
        "unread": np.array([one.row for one in shard.unread], np.int64),
        "reasons": np.frombuffer(lines(one.reason for one in shard.unread), np.uint8),
        "whole": np.array(shard.file.crc32),
    }
    files.write_atomically(job.said, archive(arrays))


def archive(arrays: dict[str, np.ndarray]) -> bytes:
    """Return the bytes of an archive, which are the same for the same arrays."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def read(job: Job) -> Shard | None:
    """Return what is in a shard; None if it was not written to its end."""
    try:
        found = archives.read(job.said)
        count, names = job.last - job.first, found["names"].tobytes()
        called = names.decode().split("\n")[:-1]
        reasons = found["reasons"].tobytes().decode().split("\n")[:-1]
        unread = [
            Unread(row, called[row - job.first], reason)
            for row, reason in zip(found["unread"].tolist(), reasons, strict=True)
        ]
        length, size, crc32, scaled = (
            found[name] for name in ("length", "size", "crc32", "scaled")
        )
        file = File(job.path.name, count, int(length.sum()), str(found["whole"]))
        if len(called) != count or length.shape != (count,):
            return None
        if job.path.stat().st_size != file.bytes:
            return None
    except (FileNotFoundError, BadFile, KeyError, ValueError):
        return None
    return Shard(file, size, length, crc32, scaled, names, unread)


def lines(texts: Iterable[str]) -> bytes:
    """Return printable texts as UTF-8, with a line break behind each."""
    return "".join(f"{text}\n" for text in texts).encode()
