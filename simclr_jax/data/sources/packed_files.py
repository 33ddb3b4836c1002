"""The files of a packed store, what its manifest says of them, and its index.

    STORE/pack.json           the manifest, a sealed document: how pixels were made, of what, and
                              size and checksum of every other file
    STORE/train.npz           of each image its size, length, checksum and name, and labels
    STORE/train-00000.bin     the images of a split, one record after the other, and nothing else
    STORE/source/             sizes and times of the files that it was made of

A record is the pixels, uint8 `[h, w, c]` row by row, or a JPEG; that of an image that could not be
read is empty. `packed_shards.py` reads them.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from etils import epath

from simclr_jax import archives, buckets, documents, files
from simclr_jax.data import gone
from simclr_jax.errors import BadFile, UserError, printable
from simclr_jax.unlabelled import NO_LABEL

MANIFEST = "pack.json"
PARTIAL = ".partial"  # ends the name of a store that is not whole yet
KEPT = "source"  # of what the store was made: see `sources.remember`
FORMAT = 1
PIECE = 2**23  # bytes of a file that are read at a time
THREADS = 32  # many, for a bucket answers each of them slowly
LARGEST = 2**30  # bytes of a manifest, which names all unreadable images
AGAIN = "copy it again from where it was whole, or pack anew"


class Law(msgspec.Struct, frozen=True):
    """How the pixels of a store were made; of all images the EXIF orientation was applied.

    Attributes:
      kind: of records.
      side: to which the shorter side of larger images was shrunk, pixels.
      square: whether the centre was cut out, `side` by `side`, of smaller images enlarged.
      quality: of JPEGs; None of pixels.
      white_level, max_megapixels: fields of `config.data`, by which images were decoded.
      library: that resized and compressed.
      resize: by which law.
    """

    kind: Literal["uint8", "jpeg"]
    side: int
    square: bool
    quality: int | None
    white_level: str
    max_megapixels: float
    library: str
    resize: str = "bicubic, over the area that a pixel covers where it shrinks"

    def __str__(self) -> str:
        how = "the central square of" if self.square else "shorter side"
        kind = self.kind if self.quality is None else f"{self.kind} of quality {self.quality}"
        return f"{kind}, {how} {self.side} pixels"


class File(msgspec.Struct, frozen=True):
    """A file of a store: its name there, bytes, checksum, and how many images it is of."""

    file: str
    images: int
    bytes: int
    crc32: str


class Unread(msgspec.Struct, frozen=True):
    """An image that could not be read: its place in the split, from 0, and why."""

    row: int
    image: str
    reason: str


class Place(msgspec.Struct, frozen=True):
    """Where images lay; see `trained.Part`."""

    place: str
    first: int
    last: int | None


class Origin(msgspec.Struct, frozen=True):
    """The split that was packed: see `Source.fingerprint`, `trained.identity` and so on."""

    fingerprint: str
    identity: str
    sizes: str
    places: list[Place]


class SplitOf(msgspec.Struct, frozen=True):
    """A split of a store.

    Attributes:
      images: how many, unreadable ones among them.
      shrunk, enlarged: how many of them were.
      unreadable: those that have an empty record.
      notes: that the source had.
      index: the archive of sizes, names and so on.
      shards: the files of records, in order.
    """

    images: int
    channels: int
    classes: int
    class_names: list[str]
    multi_label: bool
    shrunk: int
    enlarged: int
    unreadable: list[Unread]
    notes: list[str]
    origin: Origin
    index: File
    shards: list[File]

    @property
    def files(self) -> list[File]:
        """Return all files that a split lies in."""
        return [self.index, *self.shards]


class Manifest(msgspec.Struct, frozen=True):
    """What a store holds; `source` are `data.source`, `data.name` and the whole `data.path`."""

    format: int
    written_by: str
    law: Law
    source: dict[str, str]
    splits: dict[str, SplitOf]


def called(source: Mapping[str, str]) -> str:
    """Return what a person calls a source; see `Manifest`."""
    named = " in ".join(filter(None, (source.get("name"), source.get("path"))))
    return printable(f"{source.get('source')} {named}")


class Store(NamedTuple):
    """A packed store: its directory, on a disk or in a bucket, and what it holds."""

    directory: epath.Path
    manifest: Manifest


def is_store(path: str) -> bool:
    """Tell whether a local directory is a packed store, if only of links that lead nowhere now."""
    if not path or not files.is_local(path):
        return False
    manifest = Path(path).expanduser() / MANIFEST
    return manifest.is_file() or gone.leads_off(manifest)


def open_store(path: str) -> Store:
    """Read the manifest of a store.

    Raises:
      UserError: if there is none, it is damaged, or of a later version of this program.
    """
    directory = epath.Path(files.expand_home(path))
    try:
        found = documents.read(directory / MANIFEST, dict[str, Any], AGAIN, LARGEST)
    except FileNotFoundError:
        if files.is_local(directory) and gone.leads_off(Path(directory / MANIFEST)):
            raise gone.unreachable(Path(directory), MANIFEST) from None
        raise UserError(f"data.path={documents.shown(path)} {_lack(directory)}") from None
    where = documents.shown(directory / MANIFEST)
    if found.get("format") != FORMAT:
        raise UserError(
            f"{where} has the format {str(found.get('format'))[:20]}, and this program reads "
            f"{FORMAT}: read it with the version that wrote it, or pack anew"
        )
    try:
        manifest = msgspec.convert(found, Manifest)
    except msgspec.ValidationError as error:
        reason = " ".join(str(error).split())
        raise BadFile(f"{where} cannot be used ({reason}): {AGAIN}") from error
    for one in manifest.splits.values():
        for file in one.files:
            if Path(file.file).name != file.file:
                raise BadFile(f"{where} names {documents.shown(file.file)}, which is elsewhere")
    return Store(directory, manifest)


def _lack(directory: epath.Path) -> str:
    """Say what a directory is that is no whole store, and what to do."""
    with buckets.reaching(directory):
        begun = directory.parent / f"{directory.name.removesuffix(PARTIAL)}{PARTIAL}"
        if begun.exists():
            return (
                f"is not packed to its end ({documents.shown(begun)} is there): give the command "
                "that packs it again, which goes on where it was"
            )
        if not directory.exists():
            return "does not exist: `python -m simclr_jax.pack` makes a packed store"
    return f"is no packed store (it has no {MANIFEST}): `python -m simclr_jax.pack` makes one"


def check_files(store: Store, split: str) -> None:
    """Check that the files of a split are there and have the bytes that they should.

    Raises:
      UserError: for one that has not: a copy broke off.
    """
    expected = store.manifest.splits[split].files

    def size(file: File) -> int | None:
        path = store.directory / file.file
        with buckets.reaching(path):
            try:
                return path.stat().length
            except FileNotFoundError:
                return None

    with ThreadPoolExecutor(THREADS) as pool:
        for file, found in zip(expected, pool.map(size, expected), strict=True):
            at = store.directory / file.file
            if found is None and files.is_local(at) and gone.leads_off(Path(at)):
                raise gone.unreachable(Path(store.directory), file.file)
            if found != file.bytes:
                said = "is missing" if found is None else f"has {found} of {file.bytes} bytes"
                raise UserError(f"{documents.shown(store.directory / file.file)} {said}: {AGAIN}")


def read_index(store: Store, split: str) -> dict[str, np.ndarray]:
    """Return the arrays of a split, by name, `m` images each.

    `size` int32 `[m, 2]`, height and width; `length` int64 `[m]`, bytes of records; `crc32` uint32
    `[m]`, of records; `names` uint8, the names as UTF-8 with a line break behind each; and `labels`
    as `Source.labels` has them, if there are any.

    Raises:
      UserError: if the archive is damaged, or is not of these images.
    """
    of = store.manifest.splits[split]
    path = store.directory / of.index.file
    if checksum_of(path) != of.index.crc32:
        raise BadFile(f"{documents.shown(path)} is damaged, its checksum is wrong: {AGAIN}")
    found = archives.read(path, remedy=AGAIN)
    if not _fits(found, of, store.manifest.law):
        raise BadFile(f"{documents.shown(path)} is not of the {of.images} images: {AGAIN}")
    return found


def _fits(arrays: dict[str, np.ndarray], of: SplitOf, law: Law) -> bool:
    """Tell whether an index, which may be a stranger's, is that of a split and of its shards."""
    shapes = {"size": (of.images, 2), "length": (of.images,), "crc32": (of.images,)}
    kinds = {"size": "i", "length": "i", "crc32": "u"}
    for name, shape in shapes.items():
        one = arrays.get(name)
        if one is None or one.shape != shape or one.dtype.kind != kinds[name]:
            return False
    size, length, names = arrays["size"], arrays["length"], arrays.get("names")
    if names is None or names.dtype != np.uint8 or (names == ord("\n")).sum() != of.images:
        return False
    counts = [shard.images for shard in of.shards]
    if (
        not counts
        or min(counts) < 1
        or sum(counts) != of.images
        or min(size.min(), length.min()) < 0
    ):
        return False
    bytes_of = [part.sum() for part in np.split(length, np.cumsum(counts)[:-1])]
    if bytes_of != [shard.bytes for shard in of.shards]:
        return False
    if law.kind == "uint8" and (size.astype(np.int64).prod(1) * of.channels != length).any():
        return False
    if (labels := arrays.get("labels")) is None:
        return True
    shape = (of.images, of.classes) if of.multi_label else (of.images,)
    fits = labels.dtype.kind == "i" and labels.shape == shape
    highest = 1 if of.multi_label else of.classes - 1
    return fits and labels.min() >= NO_LABEL and labels.max() <= highest


def checksum(content: bytes) -> str:
    """Return the checksum of bytes."""
    return f"{zlib.crc32(content):08x}"


def checksum_of(path: epath.Path) -> str:
    """Return the checksum of a file of any size, of which little is in memory at a time.

    Raises:
      UserError: if it cannot be read.
    """
    value = 0
    with buckets.reaching(path):
        if not files.is_local(path):
            return checksum(path.read_bytes())
        with Path(path).open("rb") as file:
            while piece := file.read(PIECE):
                value = zlib.crc32(piece, value)
    return f"{value:08x}"


class Names:
    """Names of images, by number, made into strings when they are asked for.

    Args:
      text: uint8, UTF-8 with a line break behind each.
    """

    def __init__(self, text: np.ndarray):
        self._text = text

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.flatnonzero(self._text == ord("\n"))

    def __getitem__(self, row: int) -> str:
        start = self._ends[row - 1] + 1 if row else 0
        return self._text[start : self._ends[row]].tobytes().decode(errors="backslashreplace")
