"""Any image data set of TensorFlow Datasets, as ArrayRecord or TFRecord, by random access.

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
import sys
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import extras
from simclr_jax.data.decode import BadImage, Decoder, Rules
from simclr_jax.data.read_ahead import ReadAhead
from simclr_jax.data.sources.source import Split
from simclr_jax.data.sources.tfds_records import Fields, Records, class_label, find_fields
from simclr_jax.data.sources.tfrecord_files import TFRecordFiles, index_directory
from simclr_jax.errors import UserError, nearest
from simclr_jax.unlabelled import NO_LABEL

FORMAT = "array_record"  # which knows where its records lie; TFRecord is indexed once
OLDER = "tfrecord"
LOOKED_AT = 64  # records, spread over a split, that may show that it has labels


def splits(data: ConfigDict, kept: epath.Path | None = None) -> dict[str, Split[Records]]:
    """Return the splits of a prepared data set, and slices ("train[:90%]") that are asked for.

    `tfds_records.find_fields` says what is the image and what the label. A split whose records all
    have label -1, which is how TFDS marks them, has no labels.

    Args:
      data: `config.data`.
      kept: not used; a prepared data set has a version and does not change.

    Raises:
      UserError: if TFDS is not installed, the data set is unknown, not prepared or prepared as
        something else, has no image, or a slice cannot be understood. When called, a split raises
        it if it is empty, or its files are not those that its description tells of.
    """
    builder = _open(data)
    fields = find_fields(builder.info, data.labels)
    asked = [name for name in (data.split, data.eval_split) if _is_slice(builder.info, name)]
    _check_disjoint(builder.info, data.split, data.eval_split)
    decoder = Decoder(Rules.of(data))
    return {
        name: Split(
            functools.partial(_split, builder, name, fields, index_directory(data), decoder),
            builder.info.splits[name].num_examples,
        )
        for name in (*builder.info.splits, *asked)
    }


def _split(builder: Any, name: str, fields: Fields, index: epath.Path, decoder: Decoder) -> Records:
    info = builder.info
    count = info.splits[name].num_examples
    if not count:
        raise UserError(f'{info.full_name} has no examples in "{name}": choose another split')
    raw = (
        _array_records(builder, name) if FORMAT in _formats(info) else _tfrecords(info, name, index)
    )
    records = Records(info, name, fields, raw, np.arange(count), decoder=decoder)
    if fields.label is not None and not fields.several:
        unlabelled = False
        with contextlib.suppress(BadImage):  # then the others tell
            unlabelled = records.stored_label(0) == NO_LABEL
        # The first one is not asked for all: of some sets a part is labelled.
        if unlabelled and _none_labelled(records):
            return dataclasses.replace(records, fields=fields._replace(label=None))
    return records


def _none_labelled(records: Records) -> bool:
    """Tell whether no record has a label; a few that have one are found without reading all."""
    rows = np.linspace(0, len(records) - 1, min(len(records), LOOKED_AT)).astype(int)
    some = records.take(np.unique(rows)).labels
    return bool(np.all(some == NO_LABEL)) and bool(np.all(records.labels == NO_LABEL))


def _array_records(builder: Any, split: str) -> ReadAhead:
    import tensorflow_datasets as tfds

    as_stored = tfds.decode.DeserializeMethod.RAW_BYTES
    raw = builder.as_data_source(split, deserialize_method=as_stored, file_format=FORMAT)
    return ReadAhead(raw, lambda rows: raw.__getitems__(rows.tolist()))


def _tfrecords(info: Any, split: str, index: epath.Path) -> ReadAhead:
    parts = info.splits[split].file_instructions
    told = functools.partial(print, file=sys.stderr, flush=True)
    records = TFRecordFiles([epath.Path(part.filename) for part in parts], index, told)
    for part, count in zip(parts, records.counts, strict=True):
        if part.examples_in_shard != count:
            raise UserError(
                f"{part.filename} has {count} records, but {info.full_name} was prepared with "
                f"{part.examples_in_shard}: copy or prepare it again"
            )
    starts = np.cumsum(records.counts) - records.counts
    rows = [
        start + part.skip + np.arange(part.take) for start, part in zip(starts, parts, strict=True)
    ]
    chosen = records.take(np.concatenate(rows))
    return ReadAhead(chosen, chosen.fetch)


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


def extent(info: Any, split: str) -> list[tuple[str, int, int]]:
    """Return the splits that a slice or a sum is made of, and from which record up to which."""
    import tensorflow_datasets as tfds

    found = tfds.core.ReadInstruction.from_spec(split).to_absolute(info.splits)
    counts = [info.splits[part.splitname].num_examples for part in found]
    return [
        (part.splitname, part.from_ or 0, count if part.to is None else part.to)
        for part, count in zip(found, counts, strict=True)
    ]


def _check_disjoint(info: Any, train: str, test: str) -> None:
    """Raise `UserError` if two slices share examples: what was trained on is not held out."""
    if train == test:  # which `validation.validate` refuses
        return
    if any(spec not in info.splits and not _is_slice(info, spec) for spec in (train, test)):
        return  # an unknown one is refused, or held out, by whoever asked
    for base, first, last in extent(info, train):
        for other, from_, to in extent(info, test):
            if base == other and max(first, from_) < min(last, to):
                raise UserError(
                    f'data.eval_split "{test}" shares examples with data.split "{train}": '
                    f'hold them out, as in "{base}[:90%]" and "{base}[90%:]"'
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
            f"{extras.install('tf')}"
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
            else "data.name is empty: set data.name=NAME, such as cifar10"
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


def _formats(info: Any) -> list[str]:
    return sorted(one.value for one in info.available_file_formats())


def _check_format(info: Any) -> None:
    formats = _formats(info)
    if not {FORMAT, OLDER} & {*formats}:
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
    label = find_fields(info, labels=True).label
    return class_label(info.features[label]).num_classes if label else 0
