"""Images that fit in memory: the value every source opens to, and the `.npz` source.

An archive holds `images` and, if there are any, `labels`; other splits are further pairs such as
`test_images` and `test_labels` (`train_images` may stand for `images`). Where the evaluation split
has no arrays, `data.holdout_fraction` of the images is held out for it, the same ones every time.
"""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.data import order
from simclr_jax.errors import UserError, choose


@dataclasses.dataclass(frozen=True)
class Images:
    """One split of a data set in memory.

    Attributes:
      pixels: uint8 `[m, h, w, c]`.
      labels: int32 `[m]`, or None.
      classes: number of classes, 0 without labels.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    classes: int

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: np.ndarray) -> Images:
        """Return the images at `rows`, in that order."""
        labels = None if self.labels is None else self.labels[rows]
        return Images(self.pixels[rows], labels, self.classes)


def open_split(data: ConfigDict, split: str) -> Images:
    """Open a split of the archive `data.path`.

    Raises:
      UserError: if the file is missing or damaged, its arrays do not fit together, or it has no
        such split.
    """
    arrays = _load(data.path)
    if "images" in arrays and "train_images" not in arrays:
        arrays = {f"train_{k}" if k in ("images", "labels") else k: v for k, v in arrays.items()}
    splits = [name.removesuffix("_images") for name in arrays if name.endswith("_images")]
    if not splits:
        raise UserError(f'{data.path} has no array "images" (it has {", ".join(arrays) or "none"})')

    labels = [arrays[f"{name}_labels"] for name in splits if f"{name}_labels" in arrays]
    classes = max((int(np.max(array, initial=-1)) + 1 for array in labels), default=0)

    def images(name: str) -> Images:
        pixels = _pixels(arrays[f"{name}_images"], f"{data.path}:{name}_images")
        return Images(pixels, _labels(arrays.get(f"{name}_labels"), pixels, data.path), classes)

    if data.eval_split in splits:
        choose("data.split or data.eval_split", split, splits)
        return images(split)
    choose("data.split or data.eval_split", split, [*splits, data.eval_split])
    whole = images(data.split if split == data.eval_split else split)
    held_out = max(1, round(data.holdout_fraction * len(whole)))
    if held_out >= len(whole):
        raise UserError(
            f"{data.path} has {len(whole)} image(s), too few to hold out "
            f"data.holdout_fraction={data.holdout_fraction} for evaluation"
        )
    rows = order.examples(0, np.arange(len(whole)), len(whole))
    return whole.take(np.sort(rows[:held_out] if split == data.eval_split else rows[held_out:]))


def _load(path: str) -> dict[str, np.ndarray]:
    if not path:
        raise UserError("data.path is empty: set --config.data.path=FILE.npz")
    try:
        with np.load(Path(path).expanduser(), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(f"data.path={path} does not exist") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"data.path={path} is no readable .npz archive: {reason}") from error


def _pixels(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or not array.size:
        raise UserError(f"{name} has shape {array.shape}: it must be [images, height, width, 1|3]")
    if array.shape[-1] not in (1, 3):
        raise UserError(f"{name} has {array.shape[-1]} channels: it must have 1 or 3, in the end")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.min(array) >= 0 and np.max(array) <= 1):
            raise UserError(f"{name} has values outside [0, 1]: give uint8, or floats in [0, 1]")
        return np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UserError(f"{name} is {array.dtype}: give uint8, or floats in [0, 1]")
    return array


def _labels(array: np.ndarray | None, pixels: np.ndarray, path: str) -> np.ndarray | None:
    if array is None:
        return None
    if array.shape != (len(pixels),) or not np.issubdtype(array.dtype, np.integer):
        raise UserError(
            f"labels in {path} are {array.dtype} {array.shape}: "
            f"give one integer for each of the {len(pixels)} images"
        )
    if np.min(array) < 0:
        raise UserError(f"labels in {path} go down to {np.min(array)}: they must be 0 or more")
    return array.astype(np.int32)
