"""Splits whose examples lie many to a file: what TFRecord files and tar files have in common.

Which file belongs to which split is said by its name, or by the directory that it lies in; labels
are integers, kept as they are if they are numbers of classes (`numbering.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import re
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import buckets, files
from simclr_jax.data.decode import BadImage, Decoder, Rules
from simclr_jax.data.read_ahead import ReadAhead
from simclr_jax.data.sources.numbering import identifiers, numbered, said
from simclr_jax.errors import UserError
from simclr_jax.unlabelled import NO_LABEL

# The number of a file, at the end of its stem; older files of the Hugging Face Hub end in a hash.
SHARD = re.compile(r"(^|[-_.])(\d+)(-of-(\d+)(-[0-9a-f]{16})?)?$")


class Kind(NamedTuple):
    """What files of a kind are called.

    Attributes:
      suffix: of their names, which is all but the number of a file and its split.
      needed: whether a number alone does not make a file one of them.
      such: names of some, for those who have none.
      alone: the split of files whose names have no word; "" leaves them out.
      plain: directories whose names are none of a split.
    """

    suffix: re.Pattern[str]
    needed: bool
    such: str
    alone: str = ""
    plain: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Examples:
    """One split.

    Attributes:
      split: its name.
      paths: the files it lies in.
      raw: the records of them all; threads may read them at the same time.
      rows: int64 `[m]`, the records that are examples here.
      labels: int32 `[m]`, or None.
      classes: number of classes, 0 without labels.
      notes: sentences a user should read.
      image: from a record to an encoded image; raises `BadImage` for one that has none.
      called: from the number of a record to its name; "" if it has none.
      decoder: of the images.
    """

    split: str
    paths: list[epath.Path]
    raw: ReadAhead
    rows: np.ndarray
    labels: np.ndarray | None
    classes: int
    image: Callable[[bytes], bytes]
    called: Callable[[int], str]
    notes: tuple[str, ...] = ()
    channels: int = 3
    multi_label: bool = False
    decoder: Decoder = dataclasses.field(default_factory=Decoder, compare=False)
    said_names: tuple[str, ...] = ()  # of classes, where something says them
    numbers: tuple[int, ...] | None = None  # by which classes are called; None: those of classes

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, which may be all their numbers."""
        if self.said_names:
            return self.said_names[: self.classes]
        return tuple(map(str, range(self.classes) if self.numbers is None else self.numbers))

    @property
    def files(self) -> list[epath.Path]:
        """Return the files that the split lies in."""
        return self.paths

    def fingerprint(self) -> str:
        """Return the names of files, the number of examples and a checksum of which and labels."""
        check = zlib.crc32("\0".join(path.name for path in self.paths).encode())
        check = zlib.crc32(np.ascontiguousarray(self.rows).data, check)
        if self.labels is not None:
            check = zlib.crc32(np.ascontiguousarray(self.labels).data, check)
        return f"{self.split} of {len(self.raw)} records, {len(self)} examples, crc32 {check:08x}"

    def name(self, example: int) -> str:
        """Return the name that an example has, or else its number: `train[17]`."""
        row = int(self.rows[example])
        return self.called(row) or f"{self.split}[{row}]"

    def example(self, example: int) -> tuple[np.ndarray, int]:
        """Read and decode an image: uint8 `[h, w, 3]` and its label, or `NO_LABEL`.

        Raises:
          BadImage: if the record cannot be read or its image not be decoded.
        """
        encoded = self.image(self.raw[int(self.rows[example])])
        label = NO_LABEL if self.labels is None else int(self.labels[example])
        name = functools.partial(self.name, example)
        return self.decoder(encoded, name), label

    def take(self, rows: np.ndarray) -> Examples:
        """Return the split that holds only the examples `rows`, in that order."""
        labels = None if self.labels is None else self.labels[rows]
        return dataclasses.replace(self, rows=self.rows[rows], labels=labels)


def as_it_is(record: bytes) -> bytes:
    """Return the encoded image that a record is."""
    if not record:
        raise BadImage("it is empty")
    return record


def find(data: ConfigDict, kind: Kind, named: bool = False) -> dict[str, list[epath.Path]]:
    """Return the files of a kind in the directory `data.path`, by split, sorted.

    `named` says that `data.name` means something.

    Raises:
      UserError: if there is no such directory, or no such file in it.
    """
    if data.name and not named:
        raise UserError(f"data.name is {data.name}, but files have no variants: leave it out")
    if not data.path:
        raise UserError("data.path is empty: set data.path=DIRECTORY")
    path = epath.Path(files.expand_home(data.path))
    entries = buckets.listing(path)
    if not entries and not path.is_dir():
        raise UserError(f"data.path={path} is no directory that exists")
    found: dict[str, list[epath.Path]] = {}
    for entry in entries:
        split = _split_of(entry.name, kind)
        if split:
            found.setdefault(split, []).append(entry)
        elif split is None and entry.is_dir():
            for file in buckets.listing(entry):
                if (own := _split_of(file.name, kind)) is not None:
                    name = own if entry.name in kind.plain else entry.name
                    found.setdefault(name, []).append(file)
    if not found:
        names = ", ".join(entry.name for entry in entries[:3]) or "nothing"
        raise UserError(f"data.path={path} has no file such as {kind.such} (it has {names})")
    return found


def each(
    found: Mapping[str, list[epath.Path]], data: ConfigDict, open_one: Callable[..., Examples]
) -> dict[str, Callable[[], Examples]]:
    """Return splits that are opened when they are called, each once.

    Args:
      found: the files of each, by `find`.
      data: `config.data`.
      open_one: `(data, paths, decoder, split, train) -> Examples`, where `train` opens the split
        whose classes count, None for that split itself.
    """
    decoder = Decoder(Rules.of(data))

    @functools.cache
    def opened(split: str) -> Examples:
        other = split != data.split and data.split in found
        train = functools.partial(opened, data.split) if other else None
        return open_one(data, found[split], decoder, split, train)

    return {split: functools.partial(opened, split) for split in found}


def _split_of(name: str, kind: Kind) -> str | None:
    """Return the last word of a file's name ahead of suffix and number; None: not of the kind.

    A word is the letters that a part of the name begins with, so `train2017` and `train-512px` are
    of `train`.
    """
    stem = kind.suffix.sub("", name)
    if kind.needed and stem == name:
        return None
    plain = SHARD.sub("", stem)
    if plain == name:
        return None
    words = [re.match(r"[A-Za-z]*", part) for part in re.split(r"[-_.]", plain)]
    named = [word[0] for word in words if word and word[0]]
    return named[-1] if named else kind.alone


def check_complete(paths: list[epath.Path], kind: Kind) -> None:
    """Raise `UserError` unless, where files are numbered `-of-N`, each number is there once.

    Files of one name in two directories are one set that was copied or moved.
    """
    places: dict[str, epath.Path] = {}
    for path in paths:
        if (other := places.setdefault(path.name, path)) != path:
            raise UserError(f"{path} and {other} are files of one name: keep one of them")
    sets: dict[tuple[epath.Path, str], list[tuple[int, int, str]]] = {}
    for path in paths:
        stem = kind.suffix.sub("", path.name)
        if (shard := SHARD.search(stem)) and shard[4]:
            name = path.parent, stem[: shard.start()]
            sets.setdefault(name, []).append((int(shard[2]), int(shard[4]), path.name))
    for (directory, _), found in sets.items():
        numbers, (_, count, first) = [number for number, _, _ in found], found[0]
        if other := next((name for _, total, name in found if total != count), None):
            raise UserError(
                f"{directory} has files of two sets, such as {first} and {other}: keep one of them"
            )
        begin = int(0 not in numbers and count in numbers)  # some count from 1
        wanted = range(begin, begin + count)
        if absent := sorted({*wanted} - {*numbers}):
            raise UserError(
                f"{directory} has {len(found)} of {count} files such as {first}, not number "
                f"{absent[0]}: copy all of them there"
            )
        if len(found) > count:
            more = next(
                name for i, (n, _, name) in enumerate(found) if n not in wanted or n in numbers[:i]
            )
            raise UserError(f"{directory} has {more} besides {count} such files: remove it")


def classed(
    source: Examples,
    labels: np.ndarray | None,
    data: ConfigDict,
    train: Callable[[], Examples] | None,
    names: tuple[str, ...] = (),
) -> Examples:
    """Return a split with labels, and the classes that they are of.

    Args:
      source: the split, without labels.
      labels: integers `[m]`, `NO_LABEL` for none; None: labels are not wanted.
      data: `config.data`.
      train: opens the split whose classes count; None if this is it, or there is none.
      names: of the classes, by label, where something says them.

    Raises:
      UserError: for labels that make no classes, or one that `train` lacks.
    """
    if labels is None or (labels == NO_LABEL).all():
        return source
    if (labels < NO_LABEL).any():
        raise UserError(
            f"{source.split} of {data.path} has the label {labels.min()}: number from 0"
        )
    if train is not None:
        return _as_in(train(), source, labels, data)
    if names and labels.max() >= len(names):
        raise UserError(
            f"{source.split} of {data.path} has the label {labels.max()}, and names of "
            f"{len(names)} classes: write labels below that"
        )
    if not names and (numbers := identifiers([labels])) is not None:
        return dataclasses.replace(
            source,
            labels=numbered(labels, numbers),
            classes=len(numbers),
            numbers=tuple(numbers.tolist()),
            notes=(*source.notes, said(numbers)),
        )
    highest = len(names) or int(labels.max()) + 1
    absent = np.setdiff1d(np.arange(highest), labels)
    note = f"{source.split} has no image of {len(absent)} class(es), such as {absent[:1].tolist()}"
    return dataclasses.replace(
        source,
        labels=labels.astype(np.int32),
        classes=highest,
        said_names=names,
        notes=(*source.notes, *[note] * bool(absent.size)),
    )


def _as_in(train: Examples, source: Examples, labels: np.ndarray, data: ConfigDict) -> Examples:
    """Return a split with these labels, its classes those of the training split.

    Raises:
      UserError: if it has a class that the other lacks.
    """
    numbers = np.arange(train.classes) if train.numbers is None else np.array(train.numbers)
    try:
        if not len(numbers):
            raise KeyError(int(labels.max()))
        found = numbered(labels, numbers)
    except KeyError as error:
        raise UserError(
            f"{source.split} of {data.path} has the label {error}, which is none of the "
            f"{train.classes} classes of {train.split}: pretraining can also ignore all labels "
            "(data.labels=False)"
        ) from error
    return dataclasses.replace(
        source,
        labels=found,
        classes=train.classes,
        numbers=train.numbers,
        said_names=train.said_names,
    )
