"""Images of one size in memory, and the `.npz` source.

An archive holds `images` and, if there are any, `labels`; other splits are further pairs such as
`test_images` and `test_labels` (`train_images` may stand for `images`). Labels are numbers `[m]`,
-1 where an image has none; where an image may have several they are `[m, classes]` of 1 (has it),
0 (has not) and -1 (ignored). `class_names` may name the classes. A split may lack labels though
another has them. Numbers that are no numbers of classes are counted anew (`numbering.py`).
Images are uint8, uint16 (`data.white_level` says what is white) or floats in [0, 1]; with
`data.white_level=range` or a number, integers and floats of any kind.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import archives
from simclr_jax.data import depth
from simclr_jax.data.decode import BadImage, Decoder, Rules
from simclr_jax.data.sources.numbering import identifiers, numbered, said
from simclr_jax.data.sources.source import Split
from simclr_jax.errors import UserError
from simclr_jax.unlabelled import NO_LABEL

MOST_CLASSES = 1_000_000  # more are names of images, not classes


@dataclasses.dataclass(frozen=True)
class Images:
    """One split of a data set in memory.

    Attributes:
      pixels: uint8 `[m, h, w, c]`.
      labels: int32 `[m]`, or int8 `[m, classes]` as `Source.labels` has it, or None.
      classes: number of classes, 0 without labels.
      bad: bool `[m]`, which of them could not be read and are zeros; None: all could.
      class_names: by label; empty where they have none.
      notes: sentences a user should read.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    classes: int
    bad: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        """Return the number of channels."""
        return self.pixels.shape[-1]

    @property
    def multi_label(self) -> bool:
        """Tell whether an image may have several labels."""
        return self.labels is not None and self.labels.ndim == 2

    def name(self, example: int) -> str:
        """Return the number of an example, which is all the name it has."""
        return f"image {example}"

    def example(self, example: int) -> tuple[np.ndarray, int]:
        """Return the pixels `[h, w, c]` and the label of an example."""
        if self.labels is None or self.multi_label:
            return self.pixels[example], NO_LABEL
        return self.pixels[example], int(self.labels[example])

    def fingerprint(self) -> str:
        """Return what tells this split from any other: its size and a checksum of its arrays."""
        check = zlib.crc32(np.ascontiguousarray(self.pixels).data)
        if self.labels is not None:
            check = zlib.crc32(np.ascontiguousarray(self.labels).data, check)
        return f"{len(self)} images, crc32 {check:08x}"

    def take(self, rows: np.ndarray) -> Images:
        """Return the images at `rows`, in that order."""
        labels = None if self.labels is None else self.labels[rows]
        bad = None if self.bad is None else self.bad[rows]
        return dataclasses.replace(self, pixels=self.pixels[rows], labels=labels, bad=bad)


def splits(data: ConfigDict, kept: epath.Path | None = None) -> dict[str, Split[Images]]:
    """Open all splits of the archive `data.path`.

    Raises:
      UserError: if the file is missing or damaged, or its arrays do not fit together.
    """
    if data.name:
        raise UserError(f"data.name is {data.name}, but an archive has no variants: leave it out")
    arrays = _load(data.path)
    if "images" in arrays and "train_images" not in arrays:
        renamed = {"images": "train_images", "labels": "train_labels"}
        arrays = {renamed.get(name, name): array for name, array in arrays.items()}
    names = [name.removesuffix("_images") for name in arrays if name.endswith("_images")]
    if not names:
        raise UserError(f'{data.path} has no array "images" (it has {", ".join(arrays) or "none"})')

    decoder = Decoder(Rules.of(data))
    pixels = {n: _pixels(arrays[f"{n}_images"], f"{data.path}:{n}_images", decoder) for n in names}
    labels = {n: _labels(arrays.get(f"{n}_labels"), pixels[n], data.path) for n in names}
    if not data.labels:
        labels = dict.fromkeys(names)
    known = [array for array in labels.values() if array is not None]
    called: tuple[str, ...] = ()
    if known and "class_names" in arrays:
        called = _class_names(arrays["class_names"], data.path)
    labels, called, notes = _numbered(labels, called, data.path)
    known = [array for array in labels.values() if array is not None]
    classes = _classes(known, called, data.path)
    unlabelled = functools.partial(Images, labels=None, classes=0)
    labelled = functools.partial(Images, classes=classes, class_names=called, notes=notes)
    opened = {
        n: functools.partial(unlabelled, pixels[n])
        if labels[n] is None
        else functools.partial(labelled, pixels[n], labels[n])
        for n in names
    }
    return {n: Split(opener, len(pixels[n])) for n, opener in opened.items()}


def _load(path: str) -> dict[str, np.ndarray]:
    if not path:
        raise UserError("data.path is empty: set data.path=FILE.npz")
    try:
        return archives.read(path, remedy="give data.path an .npz archive of plain arrays")
    except FileNotFoundError:
        raise UserError(f"data.path={path} does not exist") from None


def _pixels(array: np.ndarray, name: str, decoder: Decoder) -> np.ndarray:
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or not array.size:
        raise UserError(f"{name} has shape {array.shape}: it must be [images, height, width, 1|3]")
    if array.shape[-1] not in (1, 3):
        raise UserError(f"{name} has {array.shape[-1]} channels: it must have 1 or 3, in the end")
    if array.dtype == np.uint8:
        return array
    law, of_floats = decoder.rules.white_level, array.dtype.kind == "f"
    if law == depth.FULL and not of_floats and array.dtype != np.uint16:
        raise UserError(
            f"{name} is {array.dtype}: give uint8, uint16 or floats in [0, 1], or set "
            "data.white_level to the value that is white"
        )
    if array.dtype.kind not in "iuf":
        raise UserError(f"{name} is {array.dtype}: give uint8, uint16 or floats in [0, 1]")
    try:
        if law != depth.RANGE:
            return decoder.scaled(array, lambda: name)
        return np.stack([decoder.scaled(x, f"{name}[{i}]".__str__) for i, x in enumerate(array)])
    except BadImage as error:
        raise UserError(f"{name} has {error}; or give uint8, or floats in [0, 1]") from error


def _labels(array: np.ndarray | None, pixels: np.ndarray, path: str) -> np.ndarray | None:
    if array is None:
        return None
    if array.ndim == 2 and len(array) == len(pixels) and array.shape[1] > 1:
        if array.dtype.kind not in "biu" or not np.isin(array, (-1, 0, 1)).all():
            raise UserError(
                f"labels in {path} are {array.dtype} {array.shape}: where an image may have "
                "several labels give 1 (has it), 0 (has not) or -1 (ignored) for each class"
            )
        return array.astype(np.int8)
    if array.shape != (len(pixels),) or not np.issubdtype(array.dtype, np.integer):
        raise UserError(
            f"labels in {path} are {array.dtype} {array.shape}: "
            f"give one integer for each of the {len(pixels)} images"
        )
    if np.min(array) < NO_LABEL:
        raise UserError(
            f"labels in {path} go down to {np.min(array)}: they must be 0 or more, or {NO_LABEL} "
            "for none"
        )
    if int(np.max(array)) > np.iinfo(np.int64).max:
        raise UserError(f"labels in {path} go up to {np.max(array)}: number the classes from 0")
    array = array.astype(np.int64)
    return None if (array == NO_LABEL).all() else array


def _numbered(
    labels: dict[str, np.ndarray | None], names: tuple[str, ...], path: str
) -> tuple[dict[str, np.ndarray | None], tuple[str, ...], tuple[str, ...]]:
    """Return labels that are numbers of classes, int32, the names of the classes, and notes.

    Raises:
      UserError: if the numbers are no numbers of classes though these have names, or too many.
    """
    single = {n: array for n, array in labels.items() if array is not None and array.ndim == 1}
    if not single:
        return labels, names, ()
    notes: tuple[str, ...] = ()
    if (numbers := identifiers(single.values())) is not None:
        if names:
            raise UserError(
                f"labels in {path} are {len(numbers)} numbers up to {numbers[-1]}, which are no "
                f"places in its {len(names)} class_names: number the classes from 0"
            )
        if len(numbers) > MOST_CLASSES:
            raise UserError(
                f"labels in {path} are {len(numbers)} numbers, of at most {MOST_CLASSES} classes: "
                "give numbers of classes"
            )
        single = {n: numbered(array, numbers) for n, array in single.items()}
        names, notes = tuple(map(str, numbers.tolist())), (said(numbers),)
    narrow = {n: array.astype(np.int32) for n, array in single.items()}
    return labels | narrow, names, notes


def _classes(labels: list[np.ndarray], names: tuple[str, ...], path: str) -> int:
    """Return how many classes the labels of all splits, and the names, tell of."""
    columns = {array.shape[1] for array in labels if array.ndim == 2}
    highest = [int(array.max()) + 1 for array in labels if array.ndim == 1]
    if len(columns) > 1 or (columns and highest):
        shapes = ", ".join(str(array.shape) for array in labels)
        raise UserError(f"labels in {path} are {shapes}: give all splits the same classes")
    if columns and all(((array != 0).sum(1) == 1).all() and array.min() >= 0 for array in labels):
        raise UserError(
            f"labels in {path} have a single 1 in every row: give one integer for each image, "
            "labels.argmax(axis=1)"
        )
    classes = max([*columns, *highest], default=0)
    if names and (len(names) < classes or (columns and len(names) > classes)):
        raise UserError(f"{path} has {len(names)} class_names for {classes} classes: name each")
    return max(classes, len(names))


def _class_names(array: np.ndarray, path: str) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind != "U":
        raise UserError(
            f"class_names in {path} is {array.dtype} {array.shape}: give one string for each class"
        )
    return tuple(array.tolist())
