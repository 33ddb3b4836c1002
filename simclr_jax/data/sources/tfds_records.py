"""The records of a data set that TFDS has prepared: which parts matter, and reading them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from simclr_jax import files
from simclr_jax.data import gone
from simclr_jax.data.decode import BadImage, Decoder
from simclr_jax.data.read_ahead import RawRecords, ReadAhead
from simclr_jax.errors import UserError, printable
from simclr_jax.unlabelled import NO_LABEL

LABEL_THREADS = 32  # many, for a bucket answers each of them slowly
LABEL_BLOCK = 32  # records that are read together for their labels
FILE_NAMES = ("file_name", "image/file_name", "image/filename")
EASY = "_no_difficult"  # ends the name of VOC's second list of labels, without difficult objects

Parser = Callable[[bytes], Mapping[str, Any]]


class Fields(NamedTuple):
    """What the parts of a record that matter here are called; None: there is no such part."""

    image: str
    label: str | None
    file_name: str | None
    several: bool = False  # labels: `label` is a list of them
    easy: str | None = None  # the list without those of which there are only difficult objects


@dataclasses.dataclass(frozen=True)
class Records:
    """One split of a prepared data set.

    Attributes:
      info: TFDS's description of the data set.
      split: as TFDS writes it, such as `train` or `train[:90%]`.
      fields: of its records.
      raw: the serialized records; threads may read them at the same time.
      rows: int64 `[m]`, the records that are examples here.
      notes: sentences a user should read.
      decoder: of their images.
      known: labels that were read, of this split and of others that are taken of the same records.
    """

    info: Any
    split: str
    fields: Fields
    raw: RawRecords
    rows: np.ndarray
    channels: int = 3
    notes: tuple[str, ...] = ()
    decoder: Decoder = dataclasses.field(default_factory=Decoder, compare=False)
    known: KnownLabels = dataclasses.field(
        default_factory=lambda: KnownLabels(), compare=False, repr=False
    )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> int:
        """Return the number of classes, 0 without labels."""
        label = self.fields.label
        return class_label(self.info.features[label]).num_classes if label else 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names that TFDS has for the classes, or their numbers."""
        label = self.fields.label
        return tuple(class_label(self.info.features[label]).names) if label else ()

    @property
    def multi_label(self) -> bool:
        """Tell whether an image may have several labels."""
        return self.fields.several

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """Return all labels as `Source.labels` has them, or None; the first time, read all records.

        An unreadable record has `NO_LABEL`; where there may be several labels, for every class.
        """
        if self.fields.label is None:
            return None
        return self.known.of(self.raw, self.rows, self._labels_at)

    def fingerprint(self) -> str:
        """Return name, configuration, version, split and size, and a checksum of a choice."""
        whole = np.array_equal(self.rows, np.arange(len(self.raw)))
        chosen = "" if whole else f", rows {zlib.crc32(np.ascontiguousarray(self.rows).data):08x}"
        return f"{self.info.full_name} {self.split}, {len(self)} examples{chosen}"

    @property
    def files(self) -> list[epath.Path]:
        """Return the record files that the split lies in."""
        paths = {os.fspath(path) for path in self.info.splits[self.split].filepaths}
        return [epath.Path(path) for path in sorted(paths)]

    def name(self, example: int) -> str:
        """Return the file name that a record has, or else its number: `train[17]`."""
        row, file_name = int(self.rows[example]), self.fields.file_name
        if file_name:
            with contextlib.suppress(BadImage):  # the number has to do
                name = self._parsed(row, _parser(self.info, file_name))[file_name]
                return printable(name.decode(errors="backslashreplace"))
        return f"{self.split}[{row}]"

    def example(self, example: int) -> tuple[np.ndarray, int]:
        """Read and decode a record: uint8 `[h, w, 3]` and its label, or `NO_LABEL`.

        Raises:
          BadImage: if the record cannot be read or its image not be decoded.
        """
        row = int(self.rows[example])
        parts = self._parsed(row, self._parse)
        name = functools.partial(self.name, example)
        image = self.decoder(parts[self.fields.image], name)
        return image, NO_LABEL if self.multi_label else self._label(parts, row)

    def take(self, rows: np.ndarray) -> Records:
        """Return the split that holds only the examples `rows`, in that order."""
        return dataclasses.replace(self, rows=self.rows[rows])

    def stored_label(self, row: int) -> int:
        """Return the label of a record as TFDS has it, where -1 means that there is none.

        Raises:
          BadImage: if the record cannot be read.
        """
        assert self.fields.label is not None
        return int(self._parsed(row, self._parse_label)[self.fields.label])

    def _record(self, row: int) -> bytes:
        try:
            return self.raw[row]
        except RuntimeError as error:  # what ArrayRecord raises for damaged and missing files
            place = self.files[0].parent
            if files.is_local(place) and gone.is_gone(Path(place)):
                raise gone.unreachable(Path(place)) from error
            raise BadImage(f"unreadable record: {error}") from error

    def _together(self, rows: np.ndarray) -> Sequence[bytes | None]:
        """Return records, read together; None for each if that fails, or is not possible."""
        if len(rows) and isinstance(self.raw, ReadAhead):
            with contextlib.suppress(BadImage, RuntimeError):  # one of them
                return self.raw.fetch(rows)
        return [None] * len(rows)

    def _parsed(self, row: int, parse: Parser, record: bytes | None = None) -> Mapping[str, Any]:
        from google.protobuf.message import DecodeError

        try:
            return parse(self._record(row) if record is None else record)
        except DecodeError as error:
            raise BadImage(f"damaged record: {error}") from error

    @functools.cached_property
    def _parse(self) -> Parser:
        label = None if self.multi_label else self.fields.label
        return _parser(self.info, self.fields.image, label)

    @functools.cached_property
    def _parse_label(self) -> Parser:
        return _parser(self.info, self.fields.label, self.fields.easy)

    def _label(self, parts: Mapping[str, Any], row: int) -> int:
        if self.fields.label is None:
            return NO_LABEL
        label = int(parts[self.fields.label])
        if label == NO_LABEL:  # how TFDS marks an image without one
            return NO_LABEL
        if not 0 <= label < self.classes:
            raise self._no_class(label, row)
        return label

    def _no_class(self, label: int, row: int) -> UserError:
        return UserError(
            f"{self.split}[{row}] of {self.info.full_name} has label {label}, but there are "
            f"{self.classes} classes: use another split; pretraining can also ignore all "
            "labels (data.labels=False)"
        )

    def _labels(self, parts: Mapping[str, Any], row: int) -> np.ndarray:
        """Return which of several labels an image has, int8 `[classes]`."""
        assert self.fields.label is not None
        listed = np.asarray(parts[self.fields.label], np.int64)  # an empty one has no integers
        unknown = NO_LABEL in listed  # which others it has, if any
        listed = listed[listed != NO_LABEL]
        if len(listed) and not 0 <= listed.min() <= listed.max() < self.classes:
            raise self._no_class(int(listed.max() if listed.min() >= 0 else listed.min()), row)
        has = np.full(self.classes, NO_LABEL if unknown else 0, np.int8)
        has[listed] = 1
        if self.fields.easy:
            has[np.setdiff1d(listed, parts[self.fields.easy])] = NO_LABEL
        return has

    def _labels_at(self, rows: np.ndarray) -> np.ndarray:
        records = zip(rows, self._together(rows), strict=True)
        found = [self._label_at(int(row), record) for row, record in records]
        return np.array(found, np.int8 if self.multi_label else np.int32)

    def _label_at(self, row: int, record: bytes | None) -> int | np.ndarray:
        try:
            parts = self._parsed(row, self._parse_label, record)
        except BadImage:
            return np.full(self.classes, NO_LABEL) if self.multi_label else NO_LABEL
        return self._labels(parts, row) if self.multi_label else self._label(parts, row)


class KnownLabels:
    """Labels by record: each is read once, whichever splits are made of the records."""

    def __init__(self):
        self._raw: RawRecords | None = None  # whose labels they are
        self._labels, self._known = np.zeros(0, np.int32), np.zeros(0, bool)
        self._lock = threading.Lock()

    def of(
        self, raw: RawRecords, rows: np.ndarray, labels_at: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Return the labels of the records at `rows`, of all `raw`; `labels_at` reads some."""
        with self._lock:
            first = self._raw is not raw
            unknown = rows if first else rows[~self._known[rows]]
            if first or len(unknown):
                found = read_labels(unknown, labels_at)
                if first:
                    self._labels = np.zeros((len(raw), *found.shape[1:]), found.dtype)
                    self._raw, self._known = raw, np.zeros(len(raw), bool)
                self._labels[unknown], self._known[unknown] = found, True
            return self._labels[rows]


def read_labels(rows: np.ndarray, labels_at: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the labels of the records at `rows`, which `labels_at` reads, by many threads."""
    blocks = np.array_split(rows, max(1, len(rows) // LABEL_BLOCK))
    with ThreadPoolExecutor(LABEL_THREADS) as pool:
        return np.concatenate(list(pool.map(labels_at, blocks)))


def _parser(info: Any, *wanted: str | None) -> Parser:
    """Return what reads these fields of a serialized record, an image still encoded."""
    import tensorflow_datasets as tfds

    # Only these: a data set may have costly features, such as masks, beside them.
    features = {name: info.features[name] for name in wanted if name}
    images = [name for name in features if isinstance(features[name], tfds.features.Image)]
    decoders = {name: tfds.decode.SkipDecoding() for name in images}
    fields = tfds.features.FeaturesDict(features)
    return functools.partial(fields.deserialize_example_np, decoders=decoders or None)


def find_fields(info: Any, labels: bool) -> Fields:
    """Choose the parts of a record that matter.

    The image is the feature `image`, or else the only one that is an image; the label is the
    feature `label`, or else the only one that is a class. Without such a class images may have
    several: the list of classes `labels`, or else the only one.

    Args:
      info: TFDS's description of the data set.
      labels: False leaves them out.

    Raises:
      UserError: if there is no image, or several and none is called `image`.
    """
    import tensorflow_datasets as tfds

    features = dict(info.features.items())
    Image, LabeledImage = tfds.features.Image, tfds.features.LabeledImage
    images = [
        name
        for name, feature in features.items()
        if isinstance(feature, Image) and not isinstance(feature, LabeledImage)
        if feature.np_dtype == np.uint8
    ]
    image = _preferred("image", images)
    if image is None:
        what = "several images and none called" if images else "no image: there is no 8-bit"
        raise UserError(
            f'{info.full_name} has {what} "image" (features: {", ".join(features)}): '
            "choose a data set of single images"
        )
    text = [name for name in FILE_NAMES if isinstance(features.get(name), tfds.features.Text)]
    fields = Fields(image, None, text[0] if text else None)
    return _with_label(fields, features) if labels else fields


def _with_label(fields: Fields, features: Mapping[str, Any]) -> Fields:
    import tensorflow_datasets as tfds

    known = {
        name: isinstance(feature, tfds.features.Sequence)
        for name, feature in features.items()
        if (label := class_label(feature)) is not None and label.num_classes
    }
    label = _preferred("label", [name for name, several in known.items() if not several])
    if label:
        return fields._replace(label=label)
    lists = [name for name, several in known.items() if several and not name.endswith(EASY)]
    label = _preferred("labels", lists)
    easy = f"{label}{EASY}" if label and known.get(f"{label}{EASY}") else None
    return fields._replace(label=label, several=label is not None, easy=easy)


def class_label(feature: Any) -> Any:
    """Return the feature of TFDS that numbers the classes, alone or in a list, or None."""
    import tensorflow_datasets as tfds

    one = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    return one if isinstance(one, tfds.features.ClassLabel) else None


def _preferred(name: str, names: list[str]) -> str | None:
    if name in names:
        return name
    return names[0] if len(names) == 1 else None
