"""TFRecord files of `tf.Example`s that hold encoded images, by random access.

    PATH/train-00000-of-01024            the splits train and validation, as the field's
    PATH/validation-00000-of-00128       scripts for ImageNet write them
    PATH/flowers-test.tfrecord-00000-of-00002    the split test
    PATH/train/7.tfrecord                the split train

The image is the feature `image/encoded` or `image`, the label `image/class/label` or `label`, an
integer kept as it is if it is a number of a class (`numbering.py`). Where files were prepared by
TFDS, `data.source=tfds` reads them and knows the names of the classes. TensorFlow is not needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import buckets, files
from simclr_jax.data.decode import BadImage, Decoder, Rules
from simclr_jax.data.read_ahead import ReadAhead
from simclr_jax.data.sources.numbering import identifiers, numbered, said
from simclr_jax.data.sources.tfds_records import read_labels
from simclr_jax.data.sources.tfrecord_files import (
    TFRecordFiles,
    index_directory,
    keep_arrays,
    kept_arrays,
)
from simclr_jax.errors import UserError, printable
from simclr_jax.unlabelled import NO_LABEL

IMAGES = ("image/encoded", "image")
LABELS = ("image/class/label", "label")
FILE_NAMES = ("image/filename", "file_name", "filename")

SUFFIX, SHARD = re.compile(r"\.tfrecords?(?=$|-)"), re.compile(r"(^|[-_.])(\d+)(-of-(\d+))?$")


@dataclasses.dataclass(frozen=True)
class Examples:
    """One split.

    Attributes:
      split: its name.
      paths: the files it lies in.
      raw: the serialized examples of them all; threads may read them at the same time.
      rows: int64 `[m]`, the records that are examples here.
      labels: int32 `[m]`, or None.
      classes: number of classes, 0 without labels.
      notes: sentences a user should read.
      decoder: of the images.
    """

    split: str
    paths: list[epath.Path]
    raw: ReadAhead
    rows: np.ndarray
    labels: np.ndarray | None
    classes: int
    notes: tuple[str, ...] = ()
    channels: int = 3
    multi_label: bool = False
    decoder: Decoder = dataclasses.field(default_factory=Decoder, compare=False)
    numbers: tuple[int, ...] | None = None  # by which classes are called; None: those of classes

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the numbers of the classes, which is all the names they have."""
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
        """Return the file name that an example has, or else its number: `train[17]`."""
        row = int(self.rows[example])
        with contextlib.suppress(BadImage):  # the number has to do
            found = _first(_features(self.raw[row]), FILE_NAMES)
            if found is not None and found.bytes_list.value:
                return printable(found.bytes_list.value[0].decode(errors="backslashreplace"))
        return f"{self.split}[{row}]"

    def example(self, example: int) -> tuple[np.ndarray, int]:
        """Read and decode an image: uint8 `[h, w, 3]` and its label, or `NO_LABEL`.

        Raises:
          BadImage: if the record cannot be read or its image not be decoded.
        """
        found = _first(_features(self.raw[int(self.rows[example])]), IMAGES)
        if found is None or not found.bytes_list.value:
            raise BadImage(f"the record has no {' or '.join(IMAGES)}")
        label = NO_LABEL if self.labels is None else int(self.labels[example])
        name = functools.partial(self.name, example)
        return self.decoder(found.bytes_list.value[0], name), label

    def take(self, rows: np.ndarray) -> Examples:
        """Return the split that holds only the examples `rows`, in that order."""
        labels = None if self.labels is None else self.labels[rows]
        return dataclasses.replace(self, rows=self.rows[rows], labels=labels)


def splits(data: ConfigDict, kept: epath.Path | None = None) -> dict[str, Callable[[], Examples]]:
    """Return the splits of the directory `data.path`, by the names of its files.

    Args:
      data: `config.data`.
      kept: not used; a run that is resumed notices files that were added or taken away.

    Raises:
      UserError: if there is no such directory, or no TFRecord file in it. When called, a split
        raises it if its files are damaged or not all there, it is empty, or it has labels that
        make no classes.
    """
    if data.name:
        raise UserError(f"data.name is {data.name}, but files have no variants: leave it out")
    if not data.path:
        raise UserError("data.path is empty: set data.path=DIRECTORY")
    path = epath.Path(files.expand_home(data.path))
    found = _find(path)
    opened = functools.cache(functools.partial(_open, data, found, Decoder(Rules.of(data))))
    return {split: functools.partial(opened, split) for split in found}


def _find(path: epath.Path) -> dict[str, list[epath.Path]]:
    """Return the files of each split, sorted."""
    entries = buckets.listing(path)
    if not entries and not path.is_dir():
        raise UserError(f"data.path={path} is no directory that exists")
    found: dict[str, list[epath.Path]] = {}
    for entry in entries:
        split = _split_of(entry.name)
        if split:
            found.setdefault(split, []).append(entry)
        elif split is None and entry.is_dir():
            for file in buckets.listing(entry):
                if _split_of(file.name) is not None:
                    found.setdefault(entry.name, []).append(file)
    if not found:
        names = ", ".join(entry.name for entry in entries[:3]) or "nothing"
        raise UserError(
            f"data.path={path} has no file such as train-00000-of-01024 or train.tfrecord "
            f"(it has {names})"
        )
    return found


def _split_of(name: str) -> str | None:
    """Return the last word of a file's name ahead of suffix and number; None: no TFRecord file."""
    stem = SUFFIX.sub("", name)
    plain = SHARD.sub("", stem)
    if plain == name:
        return None
    words = re.search(r"[A-Za-z]*$", plain)
    return words[0] if words else ""


def _check_complete(paths: list[epath.Path]) -> None:
    """Raise `UserError` unless, where files are numbered `-of-N`, each number is there once."""
    sets: dict[tuple[epath.Path, str], list[tuple[int, int, str]]] = {}
    for path in paths:
        stem = SUFFIX.sub("", path.name)
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


def _open(
    data: ConfigDict, found: dict[str, list[epath.Path]], decoder: Decoder, split: str
) -> Examples:
    _check_complete(found[split])
    say = functools.partial(print, file=sys.stderr, flush=True)
    records = TFRecordFiles(found[split], index_directory(data), say)
    if not len(records):
        raise UserError(f"{os.fspath(found[split][0])} has no records: choose another split")
    labels, several = _labels(records, say) if data.labels else (None, 0)
    such = f"{several} of {len(records)} records of {split} have several labels"
    notes = (f"{such}: the first of each is taken",) * bool(several)
    raw, rows = ReadAhead(records, records.fetch), np.arange(len(records))
    source = Examples(split, found[split], raw, rows, labels, 0, notes, decoder=decoder)
    if labels is None or (labels == NO_LABEL).all():
        return dataclasses.replace(source, labels=None)
    if (labels < NO_LABEL).any():
        raise UserError(f"{split} of {data.path} has the label {labels.min()}: number from 0")
    highest = int(labels.max()) + 1
    if split != data.split and data.split in found:
        return _as_in(_open(data, found, decoder, data.split), source, labels, data)
    if (numbers := identifiers([labels])) is not None:
        return dataclasses.replace(
            source,
            labels=numbered(labels, numbers),
            classes=len(numbers),
            numbers=tuple(numbers.tolist()),
            notes=(*notes, said(numbers)),
        )
    source = dataclasses.replace(source, labels=labels.astype(np.int32))
    absent = np.setdiff1d(np.arange(highest), labels)
    note = f"{split} has no image of {len(absent)} class(es), such as {absent[:1].tolist()}"
    notes = (*notes, *[note] * bool(absent.size))
    return dataclasses.replace(source, classes=highest, notes=notes)


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
    return dataclasses.replace(source, labels=found, classes=train.classes, numbers=train.numbers)


def _labels(records: TFRecordFiles, say: Callable[[str], object]) -> tuple[np.ndarray, int]:
    """Return the labels of all records, and how many have several, as kept beside the index.

    They are int32 `[m]`, or int64 if one of them needs it.
    """
    place = records.place.with_suffix(".labels.npz")
    if (kept := kept_arrays(place, "labels", "several")) is not None:
        labels, several = kept
        fits = labels.shape == (len(records),) and several.shape == ()
        if fits and labels.dtype in (np.int32, np.int64):
            return labels, int(several)
    say(f"indexing  the labels of {len(records)} records, once: into {place}")

    def at(rows: np.ndarray) -> np.ndarray:
        try:
            return np.array([_label(record) for record in records.fetch(rows)], np.int64)
        except BadImage:  # one of them
            return np.array([alone(int(row)) for row in rows], np.int64)

    def alone(row: int) -> tuple[int, bool]:
        with contextlib.suppress(BadImage):
            return _label(records[row])
        return NO_LABEL, False

    found = read_labels(np.arange(len(records)), at)
    labels, several = found[:, 0], found[:, 1].sum()
    if ((small := labels.astype(np.int32)) == labels).all():
        labels = small
    keep_arrays(place, labels=labels, several=several)
    return labels, int(several)


# Parsing ------------------------------------------------------------------------------------------


@functools.cache
def _example_class() -> Any:
    """Return the message `tf.Example`, described here so that TensorFlow is not needed."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example", package="records", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str, bool], to: Any = file) -> Any:
        made = (to.message_type if to is file else to.nested_type).add(name=name)
        for title, number, kind, of, repeated in fields:
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            made.field.add(name=title, number=number, type=kind, type_name=of or None, label=label)
        return made

    nested = kinds.TYPE_MESSAGE
    message("BytesList", ("value", 1, kinds.TYPE_BYTES, "", True))
    message("Int64List", ("value", 1, kinds.TYPE_INT64, "", True))
    bytes_list = ("bytes_list", 1, nested, ".records.BytesList", False)
    message("Feature", bytes_list, ("int64_list", 3, nested, ".records.Int64List", False))
    entries = ("feature", 1, nested, ".records.Features.FeatureEntry", True)
    features = message("Features", entries)
    key = ("key", 1, kinds.TYPE_STRING, "", False)
    value = ("value", 2, nested, ".records.Feature", False)
    message("FeatureEntry", key, value, to=features).options.map_entry = True
    message("Example", ("features", 1, nested, ".records.Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("records.Example"))


def _features(record: bytes) -> Any:
    """Return the features of a serialized `tf.Example`, by name."""
    from google.protobuf.message import DecodeError

    try:
        return _example_class().FromString(record).features.feature
    except DecodeError as error:
        raise BadImage(f"damaged record: {error}") from error


def _first(features: Any, names: Sequence[str]) -> Any:
    return next((features[name] for name in names if name in features), None)


def _label(record: bytes) -> tuple[int, bool]:
    """Return the first label of a record, and whether it has others."""
    found = _first(_features(record), LABELS)
    labels = () if found is None else found.int64_list.value
    return (labels[0] if labels else NO_LABEL), len(set(labels)) > 1
