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
import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax.data.decode import BadImage, Decoder
from simclr_jax.data.read_ahead import ReadAhead
from simclr_jax.data.sources.sharded import Examples, Kind, check_complete, classed, each, find
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

KIND = Kind(re.compile(r"\.tfrecords?(?=$|-)"), False, "train-00000-of-01024 or train.tfrecord")


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
    return each(find(data, KIND), data, _open)


def _open(
    data: ConfigDict,
    paths: list[epath.Path],
    decoder: Decoder,
    split: str,
    train: Callable[[], Examples] | None,
) -> Examples:
    check_complete(paths, KIND)
    say = functools.partial(print, file=sys.stderr, flush=True)
    records = TFRecordFiles(paths, index_directory(data), say)
    if not len(records):
        raise UserError(f"{os.fspath(paths[0])} has no records: choose another split")
    labels, several = _labels(records, say) if data.labels else (None, 0)
    such = f"{several} of {len(records)} records of {split} have several labels"
    source = Examples(
        split=split,
        paths=paths,
        raw=ReadAhead(records, records.fetch),
        rows=np.arange(len(records)),
        labels=None,
        classes=0,
        image=_image,
        called=functools.partial(_file_name, records),
        notes=(f"{such}: the first of each is taken",) * bool(several),
        decoder=decoder,
    )
    return classed(source, labels, data, train)


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

    bad: list[int] = []

    def alone(row: int) -> tuple[int, bool]:
        try:
            return _label(records[row])
        except BadImage:
            bad.append(row)
        return NO_LABEL, False

    found = read_labels(np.arange(len(records)), at)
    labels, several = found[:, 0], found[:, 1].sum()
    if ((small := labels.astype(np.int32)) == labels).all():
        labels = small
    if bad:  # of a file that is still being copied, say: they are read again next time
        say(f"note      {len(bad)} labels could not be read, such as that of record {bad[0]}")
    else:
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


def _image(record: bytes) -> bytes:
    """Return the encoded image of a record."""
    found = _first(_features(record), IMAGES)
    if found is None or not found.bytes_list.value:
        raise BadImage(f"the record has no {' or '.join(IMAGES)}")
    return found.bytes_list.value[0]


def _file_name(records: TFRecordFiles, row: int) -> str:
    """Return the file name that a record has, if any."""
    with contextlib.suppress(BadImage):  # the number has to do
        found = _first(_features(records[row]), FILE_NAMES)
        if found is not None and found.bytes_list.value:
            return printable(found.bytes_list.value[0].decode(errors="backslashreplace"))
    return ""


def _label(record: bytes) -> tuple[int, bool]:
    """Return the first label of a record, and whether it has others."""
    found = _first(_features(record), LABELS)
    labels = () if found is None else found.int64_list.value
    return (labels[0] if labels else NO_LABEL), len(set(labels)) > 1
