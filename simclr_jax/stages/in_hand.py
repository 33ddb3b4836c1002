"""Images as people have them in their hands: arrays, files, Pillow's."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from simclr_jax import errors
from simclr_jax.data import decode
from simclr_jax.data.decode import BadImage, Rules
from simclr_jax.errors import UserError

PLAIN = ("L", "RGB", "I;16")  # of Pillow's modes, those that are arrays of ours as they are
OF_PNG = ("1", "LA", "P", "RGBA", "I")  # what a PNG keeps of others


def is_one(images: Any) -> bool:
    """Tell whether something is one image, and not several."""
    if isinstance(images, str | os.PathLike | Image.Image):
        return True
    if isinstance(images, list | tuple):
        return False
    return np.ndim(images) in (2, 3) or not np.iterable(images)


def pixels(image: Any, rules: Rules) -> Any:
    """Return the pixels of an image file, or of an image of Pillow; anything else as it is.

    Both are read as a data set's files are: turned by their EXIF data, transparent pixels white.

    Raises:
      UserError: if a file cannot be read, or is no image.
    """
    if isinstance(image, Image.Image):
        return _of_pillow(image, rules)
    if not isinstance(image, str | os.PathLike):
        return image
    path = Path(errors.printable(os.fspath(image)) if isinstance(image, str) else image)
    try:
        return decode.decode(decode.content(Path(image).expanduser(), rules), rules)
    except BadImage as error:
        raise UserError(f"{path} is no image that can be read ({error})") from error
    except (OSError, ValueError) as error:  # the latter for a name that no file can have
        raise errors.unreadable(f"the image {path}", error, "give another file") from error


def _of_pillow(image: Image.Image, rules: Rules) -> np.ndarray:
    turned = ImageOps.exif_transpose(image)
    if turned.mode in PLAIN and "transparency" not in turned.info:
        return np.asarray(turned)
    kept = turned if turned.mode in (*PLAIN, *OF_PNG) else turned.convert("RGB")
    file = io.BytesIO()
    kept.save(file, "PNG")
    return decode.decode(file.getvalue(), rules)
