"""Images as people have them in their hands: arrays, files, Pillow's."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simclr_jax import errors
from simclr_jax.data import decode, depth
from simclr_jax.data.decode import BadImage, Rules
from simclr_jax.data.depth import Depth
from simclr_jax.errors import UserError


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
        return _told(*decode.deep(decode.content(Path(image).expanduser(), rules), rules), rules)
    except BadImage as error:
        raise UserError(f"{path} is no image that can be read ({error})") from error
    except (OSError, ValueError) as error:  # the latter for a name that no file can have
        raise errors.unreadable(f"the image {path}", error, "give another file") from error


def _told(pixels: np.ndarray, found: Depth | None, rules: Rules) -> np.ndarray:
    """Return pixels, and warn if what made 8 bits of more has left little of them."""
    if found is not None and (found.dark or found.clipped):
        remarks = depth.remarks(found, rules.white_level, "this one")
        warnings.warn(list(remarks.values())[-1], stacklevel=5)
    return pixels


def _of_pillow(image: Image.Image, rules: Rules) -> np.ndarray:
    """Return the pixels of an image of Pillow, `[h, w, 3]`.

    One whose file was opened and not read yet is read as that file is: 16 bits of colour are there
    only, and no longer in an image that Pillow has loaded.
    """
    try:
        encoded = _unread(image, rules)
        found = decode.loaded(image, rules) if encoded is None else decode.deep(encoded, rules)
        return _told(*found, rules)
    except BadImage as error:
        raise UserError(f"an image of mode {image.mode} cannot be read ({error})") from error
    except (OSError, ValueError) as error:  # the latter of a file that was closed
        raise UserError(
            f"an image of mode {image.mode} cannot be read ({error}): open it again"
        ) from error


def _unread(image: Image.Image, rules: Rules) -> bytes | None:
    """Return the file of an image of which nothing was read yet, None of another image."""
    file = getattr(image, "fp", None)
    first = getattr(image, "tile", None) and not (hasattr(image, "tell") and image.tell())
    if file is None or not first or image.width * image.height > rules.most_pixels:
        return None
    at = file.tell()
    file.seek(0)
    encoded = file.read(decode.LARGEST)
    file.seek(at)
    return encoded
