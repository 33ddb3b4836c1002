"""A packed store: images of another source, which `python -m simclr_jax.pack` has shrunk once.

    data.source=packed data.path=STORE      also where data.source is folder, in any recipe

The images have the numbers that they have in the source they were made of, so that the order of a
run is the same. One that could not be read then is unreadable here, with the same reason; so is one
whose record is damaged.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import documents
from simclr_jax.data import depth, gone
from simclr_jax.data.decode import BadImage, Decoder, Rules
from simclr_jax.data.read_ahead import ReadAhead
from simclr_jax.data.sources.packed_files import (
    AGAIN,
    Names,
    SplitOf,
    Store,
    called,
    check_files,
    open_store,
    read_index,
)
from simclr_jax.data.sources.packed_shards import Shards
from simclr_jax.data.sources.source import Split
from simclr_jax.errors import UserError, printable
from simclr_jax.unlabelled import NO_LABEL


@dataclasses.dataclass(frozen=True)
class Packed:
    """One split of a packed store.

    Attributes:
      store: it is in.
      split: its name.
      shards: the files of its records.
      raw: the records; threads may read them at the same time.
      rows: int64 `[m]`, the records that are examples here.
      sizes: int32 `[records, 2]`, height and width.
      labels: int32 `[m]`, or int8 `[m, classes]` as `Source.labels` has it, or None.
      classes: number of classes, 0 without labels.
      class_names: by label.
      unread: by the number of a record that is empty, why.
      notes: sentences a user should read.
      decoder: of records that are JPEGs.
    """

    store: Store
    split: str
    shards: Shards
    raw: ReadAhead
    rows: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray | None
    classes: int
    class_names: tuple[str, ...]
    names: Names
    unread: dict[int, str]
    notes: tuple[str, ...] = ()
    decoder: Decoder = dataclasses.field(default_factory=Decoder, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def of(self) -> SplitOf:
        """Return what the manifest says of the split."""
        return self.store.manifest.splits[self.split]

    @property
    def channels(self) -> int:
        """Return the number of channels."""
        return self.of.channels

    @property
    def multi_label(self) -> bool:
        """Tell whether an image may have several labels."""
        return self.labels is not None and self.labels.ndim == 2

    @property
    def files(self) -> list[epath.Path]:
        """Return the files that the split lies in."""
        return [self.store.directory / one.file for one in self.of.files]

    @property
    def is_whole(self) -> bool:
        """Tell whether all images of the split are examples, in their order."""
        return np.array_equal(self.rows, np.arange(self.of.images))

    def fingerprint(self) -> str:
        """Return the number of images and a checksum of which, of their records and labels."""
        shards = "".join(shard.crc32 for shard in self.of.shards)
        check = zlib.crc32(f"{self.of.origin.identity}\0{shards}".encode())
        check = zlib.crc32(np.ascontiguousarray(self.rows).data, check)
        if self.labels is not None:
            check = zlib.crc32(np.ascontiguousarray(self.labels).data, check)
        return f"{len(self)} packed images, crc32 {check:08x}"

    def name(self, example: int) -> str:
        """Return by what the image is found again in the source that was packed."""
        return printable(self.names[int(self.rows[example])])

    def example(self, example: int) -> tuple[np.ndarray, int]:
        """Return pixels, uint8 `[h, w, channels]`, and label of an image, or `NO_LABEL`.

        Raises:
          BadImage: if it could not be read when it was packed, or its record is damaged.
          UserError: if its shard cannot be read, which no image is at fault for; `Unreachable` if
            the store is gone, or its disk does not answer.
        """
        row = int(self.rows[example])
        if (reason := self.unread.get(row)) is not None:
            raise BadImage(reason)
        one = self.labels is not None and self.labels.ndim == 1
        label = int(self.labels[example]) if one else NO_LABEL  # type: ignore[index]
        try:
            record = self.raw[row]
        except OSError as error:
            raise self._not_read(row, error) from error
        if self.store.manifest.law.kind == "uint8":
            height, width = self.sizes[row].tolist()
            return np.frombuffer(record, np.uint8).reshape(height, width, self.channels), label
        pixels = self.decoder(record, functools.partial(self.name, example))
        return pixels[..., : self.channels], label

    def _not_read(self, row: int, error: OSError) -> Exception:
        directory, shard = Path(self.store.directory), Path(self.shards.path(row))
        lost = functools.partial(gone.leads_off, shard)
        found = gone.not_read(directory, shard.name, error, lost)
        if isinstance(found, BadImage):  # one file, and thousands of images in it
            return UserError(f"{documents.shown(shard)} cannot be read ({found}): {AGAIN}")
        return found

    def take(self, rows: np.ndarray) -> Packed:
        """Return the split that holds only the examples `rows`, in that order."""
        labels = None if self.labels is None else self.labels[rows]
        return dataclasses.replace(self, rows=self.rows[rows], labels=labels)


def splits(data: ConfigDict, kept: epath.Path | None = None) -> dict[str, Split[Packed]]:
    """Return the splits of the store `data.path`.

    Args:
      data: `config.data`.
      kept: not used; a run that is resumed notices shards that were replaced.

    Raises:
      UserError: if there is no whole store, or it does not serve a recipe. When called, a split
        raises it if its files are not all there, or its index is damaged.
    """
    if data.name:
        raise UserError(f"data.name is {data.name}, but a pack has no variants: leave it out")
    if not data.path:
        raise UserError("data.path is empty: set data.path=STORE, which simclr_jax.pack has made")
    store = open_store(data.path)
    _check_serves(data, store)
    decoder = Decoder(Rules.of(data))
    return {
        split: Split(functools.partial(_open, data, store, split, decoder), of.images)
        for split, of in store.manifest.splits.items()
    }


def _check_serves(data: ConfigDict, store: Store) -> None:
    """Raise `UserError` if a recipe asks for what cannot be had of images that are made already."""
    law, where = store.manifest.law, f"data.path={data.path}"
    if data.layout != "auto":
        raise UserError(
            f"data.layout is {data.layout}, but {where} is packed and says itself which splits "
            "it has: leave it out"
        )
    asked = data.get("white_level", depth.FULL)
    if asked not in (depth.FULL, law.white_level):
        raise UserError(
            f"data.white_level is {asked}, but {where} was packed with {law.white_level}: leave "
            "it out, or pack anew"
        )
    size = data.image_size
    shrunk = any(of.shrunk for of in store.manifest.splits.values())
    if size is not None and law.side < size and (shrunk or law.square):
        raise UserError(
            f"data.image_size is {size}, but {where} was packed with --side={law.side}: pack anew "
            f"with --side={size} or more, or set data.image_size={law.side} or less"
        )


def check_views(source: object, sizes: Mapping[str, int]) -> None:
    """Raise `UserError` if views are larger than the images of a packed store were left.

    Args:
      source: any.
      sizes: of views in pixels, by the field that says so.
    """
    store: Store | None = getattr(source, "store", None)
    if not isinstance(store, Store):
        return
    law = store.manifest.law
    shrunk = any(of.shrunk for of in store.manifest.splits.values())
    for field, size in sizes.items():
        if size > law.side and (shrunk or law.square):
            raise UserError(
                f"{field} is {size}, but {documents.shown(store.directory)} was packed with "
                f"--side={law.side}: pack anew with --side={size} or more, or set "
                f"--config.{field}={law.side} or less"
            )


def _open(data: ConfigDict, store: Store, split: str, decoder: Decoder) -> Packed:
    of, law = store.manifest.splits[split], store.manifest.law
    check_files(store, split)
    arrays = read_index(store, split)
    shards = Shards(
        store.directory, of.shards, arrays["length"], arrays["crc32"], law.kind == "uint8"
    )
    labels = arrays.get("labels") if data.labels else None
    return Packed(
        store=store,
        split=split,
        shards=shards,
        raw=ReadAhead(shards, shards.fetch),
        rows=np.arange(of.images),
        sizes=arrays["size"],
        labels=labels,
        classes=0 if labels is None else of.classes,
        class_names=() if labels is None else tuple(of.class_names),
        names=Names(arrays["names"]),
        unread={one.row: printable(one.reason) for one in of.unreadable},
        notes=(f"packed: {law}, from {called(store.manifest.source)}", *map(printable, of.notes)),
        decoder=decoder,
    )
