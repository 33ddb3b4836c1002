"""Parquet files of images, as the Hugging Face Hub holds data sets.

    PATH/train-00000-of-00002.parquet     the splits train and test
    PATH/test-00000-of-00001.parquet
    PATH/data/train-00000-of-00002.parquet    likewise, as a repository of the Hub is laid out
    PATH/train/0000.parquet               the split train

The image is a column of bytes, or of `bytes` and `path`, as `datasets` writes images; the label a
column of integers (`data.name` says which, where there are several). What `datasets` notes of its
columns gives the classes their names.

A row cannot be read alone: its row group, a hundred images as `datasets` writes them, is read and
unpacked for it. A few groups stay in memory. So `data.order=stream`, which reads blocks of
neighbours, and packing (`simclr_jax.pack`) read each group some times an epoch or once, and
`data.order=random` reads one for each image.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import buckets, extras
from simclr_jax.data.decode import BadImage, Decoder
from simclr_jax.data.read_ahead import ReadAhead
from simclr_jax.data.sources.sharded import (
    Examples,
    Kind,
    as_it_is,
    check_complete,
    classed,
    each,
    find,
)
from simclr_jax.errors import UserError, choose, printable
from simclr_jax.unlabelled import NO_LABEL

KIND = Kind(re.compile(r"\.parquet$"), True, "train-00000-of-00002.parquet", "train", ("data",))
HELD = 256 * 2**20  # bytes of row groups that stay in memory
AT_ONCE = 4  # more that are read or taken from at the same time
LABELS = ("label", "labels", "class", "cls", "target")  # what a column of labels may be called


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of some files hold what.

    Attributes:
      image: column of images.
      nested: whether these are structures of `bytes` and `path`.
      label: column of labels; "" if there is none.
      names: of the classes, by label; empty where nothing says them.
    """

    image: str
    nested: bool
    label: str
    names: tuple[str, ...] = ()


class ParquetRows:
    """The images of several Parquet files, one after the other. Threads may read at the same time.

    Args:
      paths: the files, in order.
      name: of the column of labels; "": the only one there is.
      labelled: read labels.

    Raises:
      UserError: if a file cannot be read, or has no column of images, or others than the first.
    """

    def __init__(self, paths: Sequence[epath.Path], name: str = "", labelled: bool = True):
        self._paths, self._heads = list(paths), []
        for path in paths:
            with _reading(path), path.open("rb") as file:
                self._heads.append(_parquet().read_metadata(file))
        schemas = [head.schema.to_arrow_schema() for head in self._heads]
        self.columns = _columns(paths[0], schemas[0], name, labelled)
        for path, schema in zip(paths, schemas, strict=True):
            if _columns(path, schema, name, labelled) != self.columns:
                raise UserError(f"{path} has other columns than {paths[0]}: keep one of them")
        groups = [(f, g) for f, head in enumerate(self._heads) for g in range(head.num_row_groups)]
        self._groups = groups
        counts = [self._heads[f].row_group(g).num_rows for f, g in groups]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self.largest = max(counts, default=0)
        self.labels = self._labels() if self.columns.label else None
        self._held: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock, self._few = threading.Lock(), threading.BoundedSemaphore(AT_ONCE)
        self._busy: dict[int, threading.Lock] = collections.defaultdict(threading.Lock)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: int) -> bytes:
        """Return an encoded image.

        Raises:
          BadImage: if its row group cannot be read, or it has no bytes.
        """
        return self.fetch(np.array([row]))[0]

    def fetch(self, rows: np.ndarray) -> list[bytes]:
        """Return several encoded images; each row group that they are in is read once.

        Raises:
          BadImage: as for a single one.
        """
        with self._few:
            return self._fetch(rows)

    def _fetch(self, rows: np.ndarray) -> list[bytes]:
        found, group = [], None
        for row in rows.tolist():
            number = int(np.searchsorted(self._ends, row, side="right"))
            if group is None or group[0] != number:
                group = number, self._group(number)
            at = row - (int(self._ends[number - 1]) if number else 0)
            cell = group[1][at]
            value = cell["bytes"] if self.columns.nested and cell.is_valid else cell
            if not value.is_valid:
                raise BadImage("the row has no bytes of an image")
            found.append(value.as_py())
        return found

    def take(self, rows: np.ndarray) -> Sequence[bytes]:
        """Return the images at `rows`, in that order."""
        return self.fetch(rows)

    def name(self, row: int) -> str:
        """Return the path that a row notes of its image; "" if none."""
        if not self.columns.nested:
            return ""
        number = int(np.searchsorted(self._ends, row, side="right"))
        at = row - (int(self._ends[number - 1]) if number else 0)
        try:
            cell = self._group(number)[at]
        except BadImage:  # the number has to do
            return ""
        said = cell["path"].as_py() if cell.is_valid and "path" in cell else None
        return printable(said) if said else ""

    def _group(self, number: int) -> Any:
        """Return the images of a row group, as Arrow has them."""
        with self._lock:
            if number in self._held:
                self._held.move_to_end(number)
                return self._held[number]
            busy = self._busy[number]
        with busy:  # others who want this one wait, rather than read it too
            with self._lock:
                if number in self._held:
                    return self._held[number]
            file, group = self._groups[number]
            path = self._paths[file]
            try:
                with buckets.reaching(path, (_Damaged,)):
                    table = self._read(path, self._heads[file], group)
            except _Damaged as error:
                raise BadImage(f"{path.name}, row group {group}: {error}") from error
            made = table.column(0)  # in chunks: a column of them may be too large for one
            with self._lock:
                self._held[number] = made
                while len(self._held) > 1 and sum(x.nbytes for x in self._held.values()) > HELD:
                    self._held.popitem(last=False)
            return made

    def _read(self, path: epath.Path, head: Any, group: int) -> Any:
        try:
            with path.open("rb") as opened:
                there = _parquet().ParquetFile(opened, metadata=head)
                return there.read_row_group(group, columns=[self.columns.image])
        except _arrow().ArrowException as error:
            raise _Damaged(_line(error)) from error
        except OSError as error:
            if error.errno is not None:  # the disk says it, and not what unpacks
                raise
            raise _Damaged(_line(error)) from error

    def _labels(self) -> np.ndarray:
        """Return all labels, int64 `[m]`, `NO_LABEL` where there is none."""
        found = []
        for path, head in zip(self._paths, self._heads, strict=True):
            with _reading(path), path.open("rb") as file:
                read = _parquet().ParquetFile(file, metadata=head)
                column = read.read(columns=[self.columns.label]).column(0)
                found.append(column.cast("int64").fill_null(NO_LABEL).to_numpy())
        return np.concatenate([*found, np.zeros(0, np.int64)])


def _columns(path: epath.Path, schema: Any, name: str, labelled: bool) -> Columns:
    """Return which columns hold images and labels."""
    types = _arrow().types
    noted = _noted(schema)

    def is_image(field: Any) -> bool:
        kind = field.type
        if types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return types.is_binary(kind) or types.is_large_binary(kind)

    images = [field for field in schema if is_image(field)]
    if not images:
        raise UserError(
            f"{path} has no column of images, but {', '.join(map(printable, schema.names))}: give "
            "files with a column of bytes"
        )
    image, label = images[0], ""
    if labelled:
        whole = [field.name for field in schema if types.is_integer(field.type)]
        classes = [n for n in whole if noted.get(n, {}).get("_type") == "ClassLabel"]
        some = classes or [n for n in whole if n in LABELS]
        if name:
            choose("data.name", name, whole)
            label = name
        elif len(some) > 1:
            raise UserError(
                f"{path} has several columns of labels: choose one by data.name, of "
                f"{', '.join(map(printable, some))}"
            )
        elif some:
            label = some[0]
    names = noted.get(label, {}).get("names") or ()
    return Columns(image.name, types.is_struct(image.type), label, tuple(map(printable, names)))


def _noted(schema: Any) -> dict[str, Any]:
    """Return what `datasets` notes of the columns, by their names."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said["info"]["features"]
        return {name: of for name, of in features.items() if isinstance(of, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def splits(data: ConfigDict, kept: epath.Path | None = None) -> dict[str, Callable[[], Examples]]:
    """Return the splits of the directory `data.path`, by the names of its files.

    Args:
      data: `config.data`; its `name` is the column of labels.
      kept: not used; a run that is resumed notices files that were added or taken away.

    Raises:
      UserError: if there is no such directory, no Parquet file in it, or no pyarrow. When called, a
        split raises it if its files are damaged or not all there, it is empty, has no images or
        several columns of labels, or labels that make no classes.
    """
    _parquet()
    return each(find(data, KIND, named=True), data, _open)


def _open(
    data: ConfigDict,
    paths: list[epath.Path],
    decoder: Decoder,
    split: str,
    train: Callable[[], Examples] | None,
) -> Examples:
    check_complete(paths, KIND)
    rows = ParquetRows(paths, data.name, data.labels)
    if not len(rows):
        raise UserError(f"{paths[0]} has no rows: choose another split")
    notes: tuple[str, ...] = ()
    if data.order == "random" and rows.largest > 1:
        notes = (
            f"a row group of up to {rows.largest} images is read for each image of {split}: faster "
            "with data.order=stream, or packed once (simclr_jax.pack)",
        )
    source = Examples(
        split=split,
        paths=paths,
        raw=ReadAhead(rows, rows.fetch),
        rows=np.arange(len(rows)),
        labels=None,
        classes=0,
        image=as_it_is,
        called=rows.name,
        notes=notes,
        decoder=decoder,
    )
    return classed(source, rows.labels, data, train, rows.columns.names)


@functools.cache
def _parquet() -> Any:
    """Return pyarrow's reader of Parquet.

    Raises:
      UserError: if it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"data.source=parquet needs pyarrow: {extras.install('parquet')}"
        ) from error
    return pyarrow.parquet


def _arrow() -> Any:
    import pyarrow
    import pyarrow.types

    return pyarrow


class _Damaged(Exception):
    """What Arrow cannot read or unpack."""


def _line(error: Exception) -> str:
    return printable(str(error).partition("\n")[0])


@contextmanager
def _reading(path: epath.Path) -> Iterator[None]:
    """Say in one line that a file is no Parquet file, or damaged."""
    arrow = _arrow().ArrowException
    try:
        with buckets.reaching(path, (arrow,)):
            yield
    except arrow as error:
        raise UserError(
            f"{path} is no Parquet file, or is damaged: {_line(error)}: copy it again"
        ) from error
