"""From an image file's bytes to pixels, or to the reason why there are none.

Pillow decides: what it reads is an image, what it refuses is not. Where simplejpeg is installed it
decodes the common JPEG in half the time, to the same pixels.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

# Formats that are read in the process: EPS, for one, would be handed to Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MOST_PIXELS = 178_956_970  # of one image: where Pillow refuses, too
ORIENTATION = 0x0112  # the EXIF tag

# By what a file begins, for the reason why it is no image.
BEGINNINGS = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"RIFF", "WebP"),
    (b"BM", "BMP"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
FOREIGN = (
    (b"%PDF", "PDF"),
    (b"PK\3\4", "zip archive"),
    (b"\x1f\x8b", "gzip archive"),
    (b"8BPS", "Photoshop document"),
)


class BadImage(Exception):
    """An image that cannot be used; the message is the reason, in a few words."""


def decode(encoded: bytes) -> np.ndarray:
    """Decode an image file (JPEG, PNG, WebP, BMP, GIF, TIFF or PPM; of several frames the first).

    The EXIF orientation is applied and ICC profiles are not. Transparent pixels are composited on
    white. Of 16 bits per channel the upper 8 are kept, which is what Pillow and TensorFlow do for
    colour. Grayscale becomes three equal channels, CMYK is converted without a profile, 32-bit
    integers are taken as 16-bit ones, floating-point pixels must lie in [0, 1].

    Returns:
      uint8 `[h, w, 3]`.

    Raises:
      BadImage: if this is no image, a truncated or damaged one, or one of more than `MOST_PIXELS`.
        A JPEG whose data break off but that has its end marker passes, as in Pillow.
    """
    pixels = _decode_plain_jpeg(encoded)
    if pixels is not None and not _may_be_rotated(encoded):
        return pixels
    with _reasons(encoded):
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if pixels is None:
            image.load()
        orientation = _orientation(image.getexif)
        if pixels is None:
            pixels = _to_rgb(image)
    return np.ascontiguousarray(_turn(pixels, orientation))


def size(file: IO[bytes]) -> tuple[int, int]:
    """Return height and width that `decode` would give, in pixels, from the header of a file.

    Raises:
      BadImage: if the header is none of an image.
    """
    beginning = file.read(64)
    with _reasons(beginning):
        image = Image.open(file, formats=FORMATS)
        # The method of PNGs reads all pixels first, to find EXIF data behind them.
        orientation = _orientation(functools.partial(Image.Image.getexif, image))
    # Pillow turns TIFFs itself and tells the size after it.
    swapped = orientation >= 5 and image.format != "TIFF"
    return (image.width, image.height) if swapped else (image.height, image.width)


# JPEGs through simplejpeg -------------------------------------------------------------------------


@functools.cache
def _simplejpeg() -> Any:
    """Return the module, or None where it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _decode_plain_jpeg(encoded: bytes) -> np.ndarray | None:
    """Return the pixels as stored, or None where Pillow must look: not plain, or not flawless."""
    if not encoded.startswith(b"\xff\xd8\xff") or _simplejpeg() is None:
        return None
    try:
        height, width, colors, _ = _simplejpeg().decode_jpeg_header(encoded)
        if colors not in ("YCbCr", "Gray", "RGB") or height * width > MOST_PIXELS:
            return None
        return _simplejpeg().decode_jpeg(encoded, strict=True)
    except ValueError:
        return None


def _may_be_rotated(jpeg: bytes) -> bool:
    """Tell whether a JPEG has an APP1 segment, where EXIF and XMP keep the orientation."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1] != 0xE1:
        if jpeg[at + 1] == 0xDA:  # the pixels begin
            return False
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return True  # also where no segment follows another: let Pillow look


# Everything else through Pillow -------------------------------------------------------------------


def _orientation(getexif: Callable[[], Image.Exif]) -> int:
    """Return the EXIF orientation, 1 to 8."""
    try:
        orientation = getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata fail in many ways, and are no reason to lose the pixels
        return 1
    return orientation if orientation in range(1, 9) else 1


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn `[h, w, 3]` pixels upright: 5 to 8 are transposed, and then come the flips."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _to_rgb(image: Image.Image) -> np.ndarray:
    bands = image.getbands()
    if image.mode == "F" or image.mode.startswith("I"):
        return np.repeat(_to_bytes(np.asarray(image))[..., None], 3, axis=2)
    if bands[-1] in ("A", "a") or "transparency" in image.info:
        if image.mode == "La":  # which Pillow converts to nothing else
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Scale one channel of more than 8 bits, `[h, w]`, to uint8."""
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise BadImage("floating-point pixels outside [0, 1]")
        return np.rint(pixels * 255).astype(np.uint8)
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise BadImage("32-bit pixels outside [0, 65535]")
    return (pixels >> 8).astype(np.uint8)


# Reasons ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _reasons(encoded: bytes) -> Iterator[None]:
    """Turn what Pillow raises while it reads `encoded` (or its beginning) into `BadImage`."""
    try:
        yield
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImage(_what_it_is(encoded)) from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"too large: {str(error).partition(',')[0]}") from None
    except Exception as error:  # damaged files fail in any way that Pillow's readers can
        kind = next((name for magic, name in BEGINNINGS if encoded.startswith(magic)), "image")
        what = " ".join(str(error).split()) or type(error).__name__
        word = "truncated" if "truncated" in what.lower() else "truncated or damaged"
        raise BadImage(f"{word} {kind}: {what}") from error


def _what_it_is(encoded: bytes) -> str:
    """Say what a file is that Pillow does not recognise as an image."""
    if not encoded:
        return "empty file"
    for magic, name in BEGINNINGS:
        if encoded.startswith(magic):
            return f"{name} with a header that is truncated, damaged or of a rare kind"
    for magic, name in FOREIGN:
        if encoded.startswith(magic):
            return f"{name}, not an image"
    head = encoded[:64]
    if head[4:8] == b"ftyp":
        brand = head[8:12].decode("ascii", "replace")
        return f"not an image that can be read: HEIC, AVIF or video (brand {brand})"
    if not any(head):
        return "not an image: begins with zeros"
    with contextlib.suppress(UnicodeDecodeError):
        text = head[:48].decode("ascii").lstrip()
        if text[:14].lower() == "<!doctype html" or text[:5].lower() == "<html":
            return "html, not an image"
        if text.isprintable() or "\n" in text:
            return f'text, not an image: "{" ".join(text.split())}"'
    return f"not an image: begins with {head[:8].hex(' ')}"
