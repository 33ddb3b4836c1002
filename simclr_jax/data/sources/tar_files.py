"""Random access to images in tar files, through an index of where each one lies.

An example is the files of a tar that follow one another with equal names up to the first dot, its
key: an image, and beside it what there is of `KEY.cls` (the number of its class, as text) or
`KEY.json` (whose `label` is that number). This is WebDataset's format (github.com/webdataset). A
tar says nothing of what it holds but in the heads of its files, which are read once and kept. It
has no checksums of contents: damage to an image is what its decoder notices.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, NamedTuple

import numpy as np
from etils import epath

from simclr_jax import buckets, files
from simclr_jax.data import decode
from simclr_jax.data.decode import LARGEST, BadImage
from simclr_jax.data.read_ahead import together
from simclr_jax.data.sources.packed_files import Names
from simclr_jax.data.sources.tfrecord_files import (
    INDEX_THREADS,
    keep_arrays,
    kept_arrays,
    opened,
)
from simclr_jax.errors import UserError, printable
from simclr_jax.unlabelled import NO_LABEL

BLOCK = 512  # bytes of a head; contents fill whole blocks
NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)  # a key, and what follows its dot
ARRAYS = ("counts", "starts", "lengths", "labels", "names", "left_out")
REMEDY = "write the number of the class, or set data.labels=False"


class Found(NamedTuple):
    """The examples of a tar file.

    Attributes:
      starts: int64 `[m]`, the first byte of each image.
      lengths: int64 `[m]`, its bytes.
      labels: int64 `[m]`, `NO_LABEL` where none is given.
      names: of each example, its key.
      left_out: examples without an image.
    """

    starts: list[int]
    lengths: list[int]
    labels: list[int]
    names: list[str]
    left_out: int


class TarFiles:
    """The images of several tar files, one after the other. Threads may read at the same time.

    Attributes:
      labels: int64 `[m]`, `NO_LABEL` where none is given or labels are not wanted.
      names: of the examples, by number.
      left_out: how many examples have no image.

    Args:
      paths: the files, in order.
      kept: directory that keeps the index, on a disk or a bucket.
      labelled: read labels.
      say: told before files are indexed, which may take minutes.

    Raises:
      UserError: if a file cannot be read, is no tar file or a damaged one, or has a label that is
        no number.
    """

    def __init__(
        self,
        paths: Sequence[epath.Path],
        kept: epath.Path,
        labelled: bool = True,
        say: Callable[[str], object] = lambda line: None,
    ):
        self._paths = list(paths)
        index = _index(self._paths, kept, labelled, say)
        self._file = np.repeat(np.arange(len(paths)), index["counts"])
        self._start, self._length = index["starts"], index["lengths"]
        self.labels, self.names = index["labels"], Names(index["names"])
        self.left_out = int(index["left_out"])

    def __len__(self) -> int:
        return len(self._length)

    def __getitem__(self, row: int) -> bytes:
        """Return an encoded image.

        Raises:
          BadImage: if its file has become shorter, or it is larger than `LARGEST`.
        """
        return self.fetch(np.array([row]))[0]

    def fetch(self, rows: np.ndarray) -> list[bytes]:
        """Return several encoded images; those that lie close together are read together.

        Raises:
          BadImage: as for a single one.
        """
        if (largest := int(self._length[rows].max(initial=0))) > LARGEST:
            raise BadImage(f"too large: {largest / 2**30:.0f} GiB")
        start, stop = self._start[rows], self._start[rows] + self._length[rows]
        found: list[bytes] = []
        for part in together(rows, self._file[rows], start, stop):
            path, first = self._paths[self._file[part[0]]], int(self._start[part[0]])
            ends = self._start[part] + self._length[part] - first
            read = buckets.read_range(path, first, int(ends[-1]))
            if len(read) < ends[-1]:
                raise BadImage(f"{path.name} ends at byte {first + len(read)}")
            places = zip(self._start[part] - first, ends, strict=True)
            found += [read[at:end] for at, end in places]
        return found

    def take(self, rows: np.ndarray) -> TarFiles:
        """Return only the images at `rows`, in that order, without labels and names."""
        part = copy.copy(self)
        for name in ("_file", "_start", "_length"):
            setattr(part, name, getattr(self, name)[rows])
        return part


# The index ----------------------------------------------------------------------------------------


def _index(
    paths: list[epath.Path], kept: epath.Path, labelled: bool, say: Callable[[str], object]
) -> dict[str, np.ndarray]:
    """Return the arrays of the index in `kept`, made if need be."""
    with ThreadPoolExecutor(INDEX_THREADS) as pool:
        stamps = list(pool.map(files.size_and_time, paths))
        known = [f"{os.fspath(path)} {stamp}" for path, stamp in zip(paths, stamps, strict=True)]
        text = "\n".join([*known, *sorted(decode.suffixes())])
        place = _place(kept, text, labelled)
        # One with labels serves who wants none, such as each process that packs.
        for with_labels in (True,) if labelled else (True, False):
            arrays = kept_arrays(_place(kept, text, with_labels), *ARRAYS)
            found = dict(zip(ARRAYS, arrays, strict=True)) if arrays is not None else {}
            if found and _fits(found, len(paths)):
                none = np.full_like(found["labels"], NO_LABEL)
                return found if labelled else {**found, "labels": none}
        say(f"indexing  {len(paths)} tar file(s) such as {paths[0]}, once: into {place}")
        read = list(pool.map(lambda path: _read(path, labelled), paths))
    found = {
        "counts": np.array([len(one.starts) for one in read]),
        "left_out": np.array(sum(one.left_out for one in read)),
        "names": np.frombuffer(
            b"".join(f"{name}\n".encode() for one in read for name in one.names), np.uint8
        ),
    }
    for name in ("starts", "lengths", "labels"):
        found[name] = np.array([x for one in read for x in getattr(one, name)], np.int64)
    with buckets.reaching(kept):
        kept.mkdir(parents=True, exist_ok=True)
    keep_arrays(place, **found)
    return found


def _place(kept: epath.Path, text: str, labelled: bool) -> epath.Path:
    name = hashlib.sha256(f"{text}\n{labelled}".encode()).hexdigest()[:24]
    return kept / f"{name}.npz"


def _fits(found: dict[str, np.ndarray], count: int) -> bool:
    """Tell whether arrays that were kept are an index of so many files."""
    rows = [found[name] for name in ("starts", "lengths", "labels")]
    counts, names, left_out = (found[name] for name in ("counts", "names", "left_out"))
    whole = all(x.ndim == 1 and x.dtype == np.int64 for x in (*rows, counts))
    return (
        whole
        and left_out.shape == ()
        and left_out.dtype == np.int64
        and names.ndim == 1
        and names.dtype == np.uint8
        and counts.shape == (count,)
        and counts.min(initial=0) >= 0
        and {len(x) for x in rows} == {counts.sum()} == {(names == ord("\n")).sum()}
    )


def _read(path: epath.Path, labelled: bool) -> Found:
    """Return the examples of a tar file."""
    found = Found([], [], [], [], 0)
    suffixes, left_out = decode.suffixes(), 0
    with buckets.reaching(path), opened(path) as file:
        for key, members in _examples(path, file):
            images = [x for name, x in members.items() if name.rpartition(".")[2] in suffixes]
            if not images:
                left_out += 1
                continue
            found.starts.append(images[0].offset_data)
            found.lengths.append(images[0].size)
            found.names.append(printable(key))
            found.labels.append(_label(path, file, key, members) if labelled else NO_LABEL)
    return found._replace(left_out=left_out)


def _examples(
    path: epath.Path, file: IO[bytes]
) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Yield the key of each example and its files, by what follows the dot in small letters."""
    last, members = "", dict[str, tarfile.TarInfo]()
    for member in _members(path, file):
        parsed = NAME.fullmatch(member.name)
        if not (member.isreg() and parsed) or member.sparse is not None:
            continue
        key, suffix = parsed.groups()
        if key != last:
            if members:
                yield last, members
            last, members = key, {}
        members.setdefault(suffix.lower(), member)
    if members:
        yield last, members


def _members(path: epath.Path, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a tar; those that Python's reader would take for its end are damage.

    Raises:
      UserError: if it is no tar file, or does not end as one.
    """
    size = path.stat().length
    packed = file.read(4)
    if packed[:2] == b"\x1f\x8b" or packed in (b"BZh9", b"\xfd7zX", b"\x28\xb5\x2f\xfd"):
        raise UserError(
            f"{path} is compressed, and would have to be read from its start: unpack it"
        )
    file.seek(0)
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                if end > size:
                    raise tarfile.ReadError("it breaks off")
                yield member
            file.seek(end)
            if file.read(BLOCK).strip(b"\0"):
                raise tarfile.ReadError("what follows is no head of a file")
    except (tarfile.TarError, EOFError) as error:
        said = f"at byte {end} of {size}: {error}" if end else str(error)
        raise UserError(
            f"{path} is no tar file, or is damaged, {said}: copy or make it again"
        ) from error


def _label(path: epath.Path, file: IO[bytes], key: str, members: dict[str, tarfile.TarInfo]) -> int:
    """Return the label of an example.

    Raises:
      UserError: if what should say it is no number of a class.
    """
    here = file.tell()

    def content(name: str) -> str:
        file.seek(members[name].offset_data)
        text = file.read(members[name].size).decode(errors="replace").strip()
        file.seek(here)
        return text

    said: Any = NO_LABEL
    if "cls" in members:
        said = content("cls")
        said = int(said) if re.fullmatch(r"\d{1,18}", said) else said
    elif "json" in members:
        said = _of_json(content("json"))
    if type(said) is not int or said < NO_LABEL:
        raise UserError(f"{path} says of {printable(key)} the class {str(said)[:40]!r}: {REMEDY}")
    return said


def _of_json(text: str) -> Any:
    try:
        read = json.loads(text)
    except ValueError:
        return text
    return read.get("label", NO_LABEL) if isinstance(read, dict) else NO_LABEL


def kept_in(index: str) -> epath.Path:
    """Return where the index of tar files is kept: `data.index`, or a cache on this disk."""
    return epath.Path(files.expand_home(index) if index else files.cache_directory() / "tar")
