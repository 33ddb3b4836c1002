"""Scikit-learn's 1797 handwritten digits, which need no download, made into a task worth solving.

The originals are 8x8 and so well aligned that raw pixels classify 97 % of them. Here each digit is
placed on a 32x32 canvas at a random position, scale and rotation, always the same one, so that raw
pixels say little and there is something for an encoder to learn. `data.name="plain"` gives the
aligned originals, enlarged, for comparison; `data.name="several"` puts one to four placed digits
on a canvas of 64x64, and each is a label of the image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax.data import order
from simclr_jax.data.sources.arrays import Images
from simclr_jax.errors import UserError, choose

CANVAS = 32  # pixels
SIDE = (12.0, 22.0)  # of the placed digit, pixels
ROTATION = 25.0  # degrees, either way
TEST = 360  # digits held out for testing
NAMES = ("placed", "plain", "several")


def splits(data: ConfigDict, kept: epath.Path | None = None) -> dict[str, Callable[[], Images]]:
    """Open "train" (1437 images) and "test" (360), uint8 `[m, 32, 32, 1]` with labels 0 to 9.

    Of "several" digits an image, `[m, 64, 64, 1]`, no digit is in both.

    Raises:
      UserError: for an unknown variant, or a path, which this source does not have.
    """
    choose("data.name", data.name, NAMES)
    choose("data.eval_split", data.eval_split, ("train", "test"))
    if data.path:
        raise UserError(f"data.path is {data.path}, which data.source=digits does not read")

    def split(rows: slice) -> Images:
        pixels, labels = _render(data.name != "plain")
        shuffled = order.examples(0, np.arange(len(labels)), len(labels))
        chosen = np.sort(shuffled[rows])
        pixels, labels = pixels[chosen], labels[chosen]
        if data.name == "several":
            pixels, labels = _compose(pixels, labels)
        if not data.labels:
            return Images(pixels, None, 0)
        return Images(pixels, labels, 10, class_names=tuple("0123456789"))

    return {
        "train": functools.partial(split, slice(TEST, None)),
        "test": functools.partial(split, slice(TEST)),
    }


@functools.cache
def _render(placed: bool) -> tuple[np.ndarray, np.ndarray]:
    from scipy import ndimage
    from sklearn.datasets import load_digits

    digits = load_digits()
    count, size = len(digits.target), digits.images.shape[1]
    # The legacy generator's stream is frozen, so everybody sees the same images.
    random = np.random.RandomState(0)
    side = random.uniform(*SIDE, count)
    angle = np.deg2rad(random.uniform(-ROTATION, ROTATION, count))
    slack = (CANVAS - side) / 2
    shift = random.uniform(-1, 1, (count, 2)) * slack[:, None]
    if not placed:
        side, angle, shift = np.full(count, float(CANVAS)), np.zeros(count), np.zeros((count, 2))

    canvases = np.empty((count, CANVAS, CANVAS, 1), np.uint8)
    for i, image in enumerate(digits.images):
        cos, sin = np.cos(angle[i]), np.sin(angle[i])
        # Output pixel to input pixel: about the centres, rotated, at the digit's scale.
        matrix = np.array([[cos, -sin], [sin, cos]]) * (size / side[i])
        offset = (size - 1) / 2 - matrix @ ((CANVAS - 1) / 2 + shift[i])
        canvas = ndimage.affine_transform(
            image / 16, matrix, offset, (CANVAS, CANVAS), order=1, mode="grid-constant"
        )
        canvases[i, ..., 0] = np.rint(np.clip(canvas, 0, 1) * 255)
    return canvases, digits.target.astype(np.int32)


def _compose(pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put each digit, and up to three more, into random quarters of a canvas; labels `[m, 10]`."""
    random, count = np.random.RandomState(0), len(labels)
    canvases = np.zeros((count, 2, CANVAS, 2, CANVAS, 1), np.uint8)
    several = np.zeros((count, 10), np.int8)
    for i in range(count):
        quarters = random.permutation(4)[: random.randint(1, 5)]
        digits = [i, *random.randint(count, size=len(quarters) - 1)]
        for quarter, digit in zip(quarters, digits, strict=True):
            canvases[i, quarter // 2, :, quarter % 2] = pixels[digit]
            several[i, labels[digit]] = 1
    return canvases.reshape(count, 2 * CANVAS, 2 * CANVAS, 1), several
