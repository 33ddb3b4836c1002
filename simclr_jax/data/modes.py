"""From an image that Pillow has loaded, of whatever mode, to pixels that stand upright."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from simclr_jax.data import depth
from simclr_jax.data.depth import Depth

ORIENTATION = 0x0112  # the EXIF tag
BAND = 1 << 22  # pixels that are converted at a time


def pixels_of(image: Image.Image, law: str) -> tuple[np.ndarray, Depth | None]:
    """Return the pixels of a loaded image, `[h, w, 3]`, as they lie, and how deep it was."""
    if image.mode == "F" or image.mode.startswith("I"):
        made, found = depth.to_bytes(_values(image), law)
        return np.repeat(made[..., None], 3, axis=2), found
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows, band in _bands(image):
        pixels[rows] = eight_bits(band)
    return pixels, None


def orientation_of(getexif: Callable[[], Image.Exif]) -> int:
    """Return the EXIF orientation, 1 to 8."""
    try:
        orientation = getexif().get(ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # damaged metadata fail in many ways, and are no reason to lose the pixels
        return 1
    return orientation if orientation in range(1, 9) else 1


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn `[h, w, 3]` pixels upright: 5 to 8 are transposed, and then come the flips."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _bands(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Yield an image in bands of rows, so that what is made of them does not add up."""
    rows = max(1, BAND // max(1, image.width))
    if rows >= image.height:
        yield slice(None), image
        return
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def eight_bits(image: Image.Image) -> np.ndarray:
    """Return an image of 8 bits as RGB, `[h, w, 3]`; what is transparent is white."""
    if image.getbands()[-1] in ("A", "a") or "transparency" in image.info:
        if image.mode == "La":  # which Pillow converts to nothing else
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def _values(image: Image.Image) -> np.ndarray:
    """Return one channel of more than 8 bits, `[h, w]`."""
    made = None
    for rows, band in _bands(image):
        values = np.asarray(band)
        if made is None:
            made = np.empty((image.height, image.width), values.dtype)
        made[rows] = values
    assert made is not None
    return made
