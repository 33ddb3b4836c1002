"""Pixels of more than 8 bits, made into 8: which of their values is white.

`data.white_level` says it:

    full     the largest value of their type: 65535, or 1 of floating-point numbers
    range    of each image by itself the largest of its values; the smallest is black
    4095     this number, such as the largest value of a camera with 12 bits

Cameras and microscopes of 10, 12 or 14 bits write files of 16, in which `full` leaves the images
almost black. Files that say themselves how many bits they use (AVIF, HEIC, JPEG 2000, PGM of fewer
than 16) are scaled by what they say, and not by a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from simclr_jax.data.formats import BadImage

FULL, RANGE = "full", "range"
MOST = 0xFFFF  # of 16 bits
DARK = 1 / 4  # of what is white: where all values lie below it, something is wrong
ROWS = 1 << 20  # values that are scaled at a time, for they take eight bytes each meanwhile
REMEDY = (
    "set data.white_level to the largest value of the camera (1023, 4095 or 16383 for 10, 12 or 14 "
    "bits), or to range"
)


class Depth(NamedTuple):
    """What an image of more than 8 bits held, and which values became black and white."""

    low: float
    high: float
    black: float
    white: float

    @property
    def dark(self) -> bool:
        """Tell whether little of the range is used."""
        return self.high - self.black < DARK * (self.white - self.black)

    @property
    def clipped(self) -> bool:
        """Tell whether values lie beyond black or white, and so are lost."""
        return self.low < self.black or self.high > self.white


def to_bytes(pixels: np.ndarray, white_level: str = FULL) -> tuple[np.ndarray, Depth]:
    """Scale an image of more than 8 bits to uint8.

    Of `full` the upper 8 of 16 bits are kept, as Pillow and TensorFlow do for colour; integers of
    32 bits are taken as 16. Otherwise values are scaled, rounded and clipped.

    Args:
      pixels: integers or floats, of any shape.
      white_level: see above.

    Raises:
      BadImage: if values are no numbers, or with `full` lie outside [0, 65535], or [0, 1].
    """
    low, high = float(pixels.min()), float(pixels.max())
    of_floats = pixels.dtype.kind == "f"
    if white_level == FULL:
        white: float = 1 if of_floats else MOST
        if not (low >= 0 and high <= white):
            kind = "floating-point" if of_floats else f"{8 * pixels.itemsize}-bit"
            raise BadImage(
                f"{kind} pixels outside [0, {white}] ({low:g} to {high:g}): "
                "data.white_level would scale them"
            )
        depth = Depth(low, high, 0, white)
        if not of_floats:
            return (pixels >> 8).astype(np.uint8), depth
        return _scaled(pixels, lambda part: np.rint(part * 255)), depth
    if not np.isfinite([low, high]).all():
        raise BadImage("floating-point pixels that are no numbers")
    black, white = (low, high) if white_level == RANGE else (0, float(white_level))
    factor = 255 / (white - black) if white > black else 0.0

    def scale(part: np.ndarray) -> np.ndarray:
        return np.rint(np.clip((part.astype(np.float64) - black) * factor, 0, 255))

    return _scaled(pixels, scale), Depth(low, high, black, white)


def _scaled(pixels: np.ndarray, scale: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    made = np.empty(pixels.shape, np.uint8)
    rows = max(1, ROWS // max(1, pixels[0].size))
    for first in range(0, len(pixels), rows):
        made[first : first + rows] = scale(pixels[first : first + rows])
    return made


def of_upper_bits(pixels: np.ndarray) -> Depth:
    """Return the depth of 16-bit colours, of which uint8 `pixels` are the upper bits."""
    return Depth(int(pixels.min()) << 8, int(pixels.max()) << 8 | 0xFF, 0, MOST)


def remarks(depth: Depth, white_level: str, name: str) -> dict[str, str]:
    """Return what a user should know about an image, by the kind of the remark.

    Args:
      depth: of the image.
      white_level: that it was scaled by.
      name: of the image.
    """
    values = f"such as {name} with values {depth.low:g} to {depth.high:g}"
    law = f"data.white_level={white_level}"
    how = f"{depth.white:g} becomes white"
    if white_level == RANGE:
        how = "in each its smallest value becomes black, its largest white"
    found = {"how": f"images of more than 8 bits, {values}, are scaled by {law}: {how}"}
    if depth.dark:
        share = (depth.high - depth.black) / (depth.white - depth.black)
        found["dark"] = (
            f"images, {values}, use {share:.1%} of what {law} makes white and are almost black: "
            f"{REMEDY}"
        )
    if depth.clipped:
        found["clipped"] = (
            f"images have values outside {depth.black:g} to {depth.white:g}, {values}, which {law} "
            "makes plain black or white: set a larger one, or range"
        )
    return found
