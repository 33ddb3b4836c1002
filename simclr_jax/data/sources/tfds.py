"""Any image data set of TensorFlow Datasets that was prepared as ArrayRecord, by random access.

    data.name=cifar10                       in TFDS's default directory, or in data.path
    data.name=imagenet2012_subset/1pct      one of several configurations
    data.name=imagenet2012:5.1.0            one of several versions; without: the latest there is
    data.path=/data/my_photos/1.0.0         a prepared data set by its directory, data.name empty

Records are read one by one and never as tf.data, so the order is ours and resuming reads nothing
twice. TensorFlow itself is not loaded for directories that are mounted; for buckets it may be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shlex
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax.data.decode import BadImage, decode
from simclr_jax.data.sources.source import NO_LABEL
from simclr_jax.errors import UserError, nearest

FORMAT = "array_record"
LABEL_THREADS = 32  # many, for a bucket answers each of them slowly
LABEL_BLOCK = 256  # records

Parser = Callable[[bytes], Mapping[str, Any]]


class Fields(NamedTuple):
    """What the parts of a record that matter here are called; None: there is no such part."""

    image: str
    label: str | None
    file_name: str | None


@dataclasses.dataclass(frozen=True)
class Records:
    """One split of a prepared data set.

    Attributes:
      info: TFDS's description of the data set.
      split: as TFDS writes it, such as `train` or `train[:90%]`.
      fields: of its records.
      raw: the serialized records; threads may read them at the same time.
      rows: int64 `[m]`, the records that are examples here.
    """

    info: Any
    split: str
    fields: Fields
    raw: Sequence[bytes]
    rows: np.ndarray
    channels: int = 3

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> int:
        """Return the number of classes, 0 without labels."""
        return self.info.features[self.fields.label].num_classes if self.fields.label else 0

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """Return all labels, int32 `[m]`, or None; the first time, read all records.

        An unreadable record has `NO_LABEL`.
        """
        if self.fields.label is None:
            return None
        blocks = np.array_split(self.rows, max(1, len(self) // LABEL_BLOCK))
        with ThreadPoolExecutor(LABEL_THREADS) as pool:
            found = list(pool.map(lambda block: [self._label_at(row) for row in block], blocks))
        return np.concatenate(found).astype(np.int32)

    def fingerprint(self) -> str:
        """Return name, configuration, version, split and size, and a checksum of a choice."""
        whole = np.array_equal(self.rows, np.arange(len(self.raw)))
        chosen = "" if whole else f", rows {zlib.crc32(np.ascontiguousarray(self.rows).data):08x}"
        return f"{self.info.full_name} {self.split}, {len(self)} examples{chosen}"

    def name(self, example: int) -> str:
        """Return the file name that a record has, or else its number: `train[17]`."""
        row, file_name = int(self.rows[example]), self.fields.file_name
        if file_name:
            with contextlib.suppress(BadImage):  # the number has to do
                return _parser(self.info, file_name)(self._record(row))[file_name].decode()
        return f"{self.split}[{row}]"

    def example(self, example: int) -> tuple[np.ndarray, int]:
        """Read and decode a record: uint8 `[h, w, 3]` and its label, or `NO_LABEL`.

        Raises:
          BadImage: if the record cannot be read or its image not be decoded.
        """
        row = int(self.rows[example])
        parts = self._parsed(row)
        return decode(parts[self.fields.image]), self._label(parts, row)

    def take(self, rows: np.ndarray) -> Records:
        """Return the split that holds only the examples `rows`, in that order."""
        return dataclasses.replace(self, rows=self.rows[rows])

    def _record(self, row: int) -> bytes:
        try:
            return self.raw[row]
        except RuntimeError as error:  # what ArrayRecord raises for damaged and missing files
            raise BadImage(f"unreadable record: {error}") from error

    def _parsed(self, row: int) -> Mapping[str, Any]:
        from google.protobuf.message import DecodeError

        try:
            return self._parse(self._record(row))
        except DecodeError as error:
            raise BadImage(f"damaged record: {error}") from error

    @functools.cached_property
    def _parse(self) -> Parser:
        image, label, _ = self.fields
        return _parser(self.info, image, label) if label else _parser(self.info, image)

    @functools.cached_property
    def _parse_label(self) -> Parser:
        assert self.fields.label is not None
        return _parser(self.info, self.fields.label)

    def _label(self, parts: Mapping[str, Any], row: int) -> int:
        if self.fields.label is None:
            return NO_LABEL
        label = int(parts[self.fields.label])
        if not 0 <= label < self.classes:
            raise UserError(
                f"{self.split}[{row}] of {self.info.full_name} has label {label}, but there are "
                f"{self.classes} classes: use another split, or set --config.data.labels=False"
            )
        return label

    def _label_at(self, row: int) -> int:
        try:
            return self._label(self._parse_label(self._record(int(row))), row)
        except BadImage:
            return NO_LABEL


def _parser(info: Any, *names: str) -> Parser:
    """Return what reads these fields of a serialized record, an image still encoded."""
    import tensorflow_datasets as tfds

    # Only these: a data set may have costly features, such as masks, beside them.
    features = {name: info.features[name] for name in names}
    images = [name for name in names if isinstance(features[name], tfds.features.Image)]
    decoders = {name: tfds.decode.SkipDecoding() for name in images}
    fields = tfds.features.FeaturesDict(features)
    return functools.partial(fields.deserialize_example_np, decoders=decoders or None)


def splits(data: ConfigDict, kept: epath.Path | None = None) -> dict[str, Callable[[], Records]]:
    """Return the splits of a prepared data set, and slices ("train[:90%]") that are asked for.

    The image is the feature `image`, or else the only one that is an image; the label is the
    feature `label`, or else the only one that is a class. A split whose first record has label -1,
    which is how TFDS marks them, has no labels.

    Args:
      data: `config.data`.
      kept: not used; a prepared data set has a version and does not change.

    Raises:
      UserError: if TFDS is not installed, the data set is unknown, not prepared or not prepared as
        ArrayRecord, has no image, or a slice cannot be understood. When called, a split raises it
        if it is empty.
    """
    builder = _open(data)
    fields = _fields(builder.info, data.labels)
    asked = [name for name in (data.split, data.eval_split) if _is_slice(builder.info, name)]
    _check_disjoint(builder.info, data.split, data.eval_split)
    return {
        name: functools.partial(_split, builder, name, fields)
        for name in (*builder.info.splits, *asked)
    }


def _split(builder: Any, name: str, fields: Fields) -> Records:
    import tensorflow_datasets as tfds

    info = builder.info
    count = info.splits[name].num_examples
    if not count:
        raise UserError(f'{info.full_name} has no examples in "{name}": choose another split')
    as_stored = tfds.decode.DeserializeMethod.RAW_BYTES
    raw = builder.as_data_source(name, deserialize_method=as_stored, file_format=FORMAT)
    records = Records(info, name, fields, raw, np.arange(count))
    if fields.label is not None:
        with contextlib.suppress(BadImage):  # then the others tell
            if records._parse_label(records._record(0))[fields.label] == NO_LABEL:
                return dataclasses.replace(records, fields=fields._replace(label=None))
    return records


def _fields(info: Any, labels: bool) -> Fields:
    import tensorflow_datasets as tfds

    features = dict(info.features.items())
    Image, LabeledImage = tfds.features.Image, tfds.features.LabeledImage
    images = [
        name
        for name, feature in features.items()
        if isinstance(feature, Image) and not isinstance(feature, LabeledImage)
        if feature.np_dtype == np.uint8
    ]
    known = [
        name
        for name, feature in features.items()
        if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes
    ]
    image, label = _preferred("image", images), _preferred("label", known)
    if image is None:
        what = "several images and none called" if images else "no image: there is no 8-bit"
        raise UserError(
            f'{info.full_name} has {what} "image" (features: {", ".join(features)}): '
            "choose a data set of single images"
        )
    text = isinstance(features.get("file_name"), tfds.features.Text)
    return Fields(image, label if labels else None, "file_name" if text else None)


def _preferred(name: str, names: list[str]) -> str | None:
    if name in names:
        return name
    return names[0] if len(names) == 1 else None


def _is_slice(info: Any, split: str) -> bool:
    """Tell whether `split` is a slice, or a sum, of splits there are.

    Raises:
      UserError: if it is one that TFDS does not understand.
    """
    bases = [part.partition("[")[0].strip() for part in split.split("+")]
    if split in info.splits or not all(base in (*info.splits, "all") for base in bases):
        return False
    try:
        return bool(info.splits[split])
    except ValueError:
        raise UserError(
            f'split "{split}" is no slice that TFDS understands: write "train[:90%]", '
            '"train[1000:]" or "train+test"'
        ) from None


def _check_disjoint(info: Any, train: str, test: str) -> None:
    """Raise `UserError` if two slices share examples: what was trained on is not held out."""
    import tensorflow_datasets as tfds

    if train == test:  # which `validation.validate` refuses
        return
    parts = []
    for spec in (train, test):
        if spec not in info.splits and not _is_slice(info, spec):
            return  # an unknown one is refused, or held out, by whoever asked
        parts.append(tfds.core.ReadInstruction.from_spec(spec).to_absolute(info.splits))
    for a in parts[0]:
        for b in parts[1]:
            count = info.splits[a.splitname].num_examples
            first, last = max(a.from_ or 0, b.from_ or 0), min(a.to or count, b.to or count)
            if a.splitname == b.splitname and first < last:
                raise UserError(
                    f'data.eval_split "{test}" shares examples with data.split "{train}": '
                    f'hold them out, as in "{a.splitname}[:90%]" and "{a.splitname}[90%:]"'
                )


# Finding the data set -----------------------------------------------------------------------------


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        if error.name != "tensorflow_datasets":
            raise
        raise UserError(
            "TensorFlow Datasets is not installed, which data of the source tfds need: "
            "pip install 'simclr-jax[tf]'"
        ) from None
    return tfds


def _open(data: ConfigDict) -> Any:
    """Return TFDS's builder of the prepared data set that a recipe names."""
    tfds = _import_tfds()
    path = epath.Path(data.path).expanduser() if data.path else None
    try:
        is_data_set = path is not None and (path / "dataset_info.json").exists()
    except PermissionError as error:
        raise UserError(f"data.path={data.path} cannot be read: {error.strerror}") from error
    if is_data_set:
        if data.name:
            raise UserError(
                f"data.path={data.path} is itself a prepared data set: "
                f"leave data.name={data.name} empty, or set data.path to the directory above all"
            )
        builder = tfds.builder_from_directory(path)
    elif data.name:
        builder = _find(data.name, path)
    else:
        raise UserError(
            f"data.path={data.path} is no data set that TFDS has prepared (it has no "
            "dataset_info.json): set data.name, or data.path=DIR/NAME/VERSION"
            if data.path
            else "data.name is empty: set --config.data.name=NAME, such as cifar10"
        )
    _check_format(builder.info)
    return builder


def _find(name: str, path: epath.Path | None) -> Any:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    try:
        return read_only_builder.builder_from_files(name, data_dir=path)
    except tfds.core.DatasetNotFoundError:
        raise UserError(_why_not_found(name, path)) from None
    except ValueError as error:
        raise UserError(
            f'data.name is "{name}": {str(error).partition(chr(10))[0]} '
            "(write NAME, NAME/CONFIG or NAME:VERSION, and its directory in data.path)"
        ) from None


def _why_not_found(name: str, path: epath.Path | None) -> str:
    import tensorflow_datasets as tfds

    where = f" in {path}" if path else ""
    dataset, _, config = name.partition(":")[0].partition("/")
    known = tfds.list_builders(with_community_datasets=False)
    if dataset not in known:
        hint = nearest(dataset, known)
        return f'data.name is "{name}"{hint}: TFDS has no data set of this name, nor is one{where}'
    configs = list(tfds.builder_cls(dataset).builder_configs)
    if config and config not in configs:
        return f'data.name is "{name}"{nearest(config, configs)}: {dataset} has no such variant'
    if dataset.startswith("imagenet2012"):
        return f"data.name={name} is not prepared{where}: docs/imagenet.md says how to"
    return f"data.name={name} is not prepared{where}: {_prepare(name, path)}"


def _check_format(info: Any) -> None:
    formats = sorted(one.value for one in info.available_file_formats())
    if FORMAT not in formats:
        raise UserError(
            f"{info.full_name} is prepared as {', '.join(formats)}, which has no random access: "
            "pip install apache-beam && python -m tensorflow_datasets.scripts.convert_format "
            f"--dataset_version_dir={shlex.quote(str(info.data_dir))} --out_file_format={FORMAT}"
        )


def _prepare(name: str, path: epath.Path | None) -> str:
    """Return the command that prepares a data set.

    It is not `tfds build`, which does not start without Apache Beam (TFDS 4.9.10).
    """
    where = f"data_dir={str(path)!r}, " if path else ""
    code = (
        "import tensorflow_datasets as tfds; "
        f"tfds.builder({name!r}, {where}file_format={FORMAT!r}).download_and_prepare()"
    )
    plain = not set(code) & set('"$`\\!')  # which a shell expands between double quotes
    return "python -c " + (f'"{code}"' if plain else shlex.quote(code))


def declared_classes(name: str) -> int:
    """Return how many classes a data set of TFDS has, prepared or not; 0 without labels.

    Raises:
      UserError: if TFDS is not installed or has no data set of this name.
    """
    tfds = _import_tfds()
    known = tfds.list_builders(with_community_datasets=False)
    dataset = name.partition(":")[0].partition("/")[0]
    if dataset not in known:
        raise UserError(f'TFDS has no data set "{name}"{nearest(dataset, known)}')
    try:
        info = tfds.builder(name).info
    except (AssertionError, ValueError) as error:  # no such version, no such variant
        reason = str(error).partition("\n")[0]
        raise UserError(f'TFDS has no data set "{name}" ({reason})') from None
    label = _fields(info, labels=True).label
    return info.features[label].num_classes if label else 0
