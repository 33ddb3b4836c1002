"""From the pixels of an image to its record in a packed store."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image

from simclr_jax.data.decode import BadImage, Rules
from simclr_jax.data.sources.packed_files import Law
from simclr_jax.errors import UserError

LONGEST_JPEG = 65_500  # pixels of a side: libjpeg's own limit


class Record(NamedTuple):
    """A record, the size of its image, and whether that was shrunk (-1) or enlarged (1)."""

    content: bytes
    height: int
    width: int
    scaled: int


def law(
    kind: str, side: int, square: bool, quality: int, rules: Rules, sizes: Mapping[str, int]
) -> Law:
    """Return how pixels are to be made.

    Args:
      kind: uint8 or jpeg.
      side: of the shorter side, pixels; larger images are shrunk to it.
      square: cut out the centre.
      quality: of JPEGs.
      rules: by which images are decoded.
      sizes: of the views that the recipe makes, pixels, by the field that says so.

    Raises:
      UserError: if views would be larger than what is left of the images.
    """
    for field, size in sizes.items():
        if side < size:
            raise UserError(
                f"--side is {side}, less than {field}={size}: give --side={size} or more, or set "
                f"{field} to that of the runs that will use it"
            )
    return Law(
        kind=kind,  # type: ignore[arg-type]
        side=side,
        square=square,
        quality=quality if kind == "jpeg" else None,
        white_level=rules.white_level,
        max_megapixels=rules.most_pixels / 1e6,
        library=f"Pillow {PIL.__version__}",
    )


def record(pixels: np.ndarray, law: Law) -> Record:
    """Return the record of an image.

    Args:
      pixels: uint8 `[h, w, c]`, `c` 1 or 3.
      law: how it is made.

    Raises:
      BadImage: if no JPEG can hold it.
    """
    height, width, channels = pixels.shape
    shorter = min(height, width)
    image = None
    if law.square and (height, width) != (law.side, law.side):
        top, left = (height - shorter) / 2, (width - shorter) / 2
        box = (left, top, left + shorter, top + shorter)
        image = _image(pixels).resize((law.side, law.side), Image.Resampling.BICUBIC, box)
    elif not law.square and shorter > law.side:
        scale = law.side / shorter
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = _image(pixels).resize(size, Image.Resampling.BICUBIC)
    if image is not None:
        pixels = np.asarray(image).reshape(image.height, image.width, channels)
    scaled = int(np.sign(law.side - shorter)) if image is not None else 0
    height, width, _ = pixels.shape
    content = pixels.tobytes() if law.kind == "uint8" else _jpeg(pixels, law.quality)
    return Record(content, height, width, scaled)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _jpeg(pixels: np.ndarray, quality: int | None) -> bytes:
    if max(pixels.shape) > LONGEST_JPEG:
        raise BadImage(f"a side of {max(pixels.shape)} pixels, more than a JPEG may have")
    file = io.BytesIO()
    _image(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()
