"""Which image files can be read here, and what a file is that is none of them."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from typing import IO

from PIL import Image, UnidentifiedImageError, features

from simclr_jax import extras
from simclr_jax.errors import UserError

# Formats that are read in the process, and the suffixes of their files. EPS, for one, is not among
# them: Pillow would hand it to Ghostscript.
SUFFIXES = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png",),
    "WEBP": ("webp",),
    "BMP": ("bmp",),
    "GIF": ("gif",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm"),
    "AVIF": ("avif",),
    "JPEG2000": ("jp2", "j2k", "jpx", "jpf", "j2c", "jpc"),
    "HEIF": ("heic", "heif", "hif"),
}
PART = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # of Pillow, which it may lack
HEIF = "pillow_heif"  # the package that reads HEIC
REMEDIES = {
    "AVIF": "pip install 'pillow>=11.3'",
    "JPEG2000": "install a Pillow that is built with OpenJPEG",
    "WEBP": "install a Pillow that is built with libwebp",
}

# By what a file begins, for the reason why it is no image.
BEGINNINGS = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"RIFF", "WebP"),
    (b"BM", "BMP"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
)
BRANDS = {  # the word behind "ftyp"
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC"),
}
FOREIGN = (
    (b"%PDF", "PDF"),
    (b"PK\3\4", "zip archive"),
    (b"\x1f\x8b", "gzip archive"),
    (b"8BPS", "Photoshop document"),
)


class BadImage(Exception):
    """An image that cannot be used; the message is the reason, in a few words."""


@functools.cache
def readable() -> tuple[str, ...]:
    """Return the formats that can be read here, by Pillow's names."""
    there = {*features.get_supported()}
    found = [name for name in SUFFIXES if name != "HEIF" and PART.get(name, "pil") in there]
    return (*found, *(["HEIF"] if importlib.util.find_spec(HEIF) else []))


def suffixes() -> frozenset[str]:
    """Return the suffixes of files that can be read here: small letters, without the dot."""
    return frozenset(suffix for name in readable() for suffix in SUFFIXES[name])


def remedy(suffix: str) -> str:
    """Return what would make files of a suffix readable that are not; "" where nothing would."""
    for name, of_format in SUFFIXES.items():
        if suffix.lower() in of_format and name not in readable():
            return _install(name)
    return ""


def _install(name: str) -> str:
    """Return what makes a format readable that is not."""
    return extras.install("heic") if name == "HEIF" else REMEDIES[name]


def opened(file: IO[bytes], beginning: bytes) -> Image.Image:
    """Open an image that begins with some bytes; of its pixels nothing is read yet."""
    names = readable()
    if "HEIF" in names:
        if beginning[4:8] == b"ftyp":
            _register_heif()
        else:
            names = tuple(name for name in names if name != "HEIF")
    return Image.open(file, formats=names)


@functools.cache
def _register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()


# Reasons ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reasons(encoded: bytes) -> Iterator[None]:
    """Turn what Pillow raises while it reads `encoded` (or its beginning) into `BadImage`.

    What is no fault of the image stays what it is: something that a user has to put right, an error
    of the system (Pillow's own have no number), and memory that runs out: `MemoryError`.
    """
    try:
        yield
    except (BadImage, MemoryError, UserError):
        raise
    except UnidentifiedImageError:
        raise BadImage(_what_it_is(encoded)) from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"too large: {str(error).partition(',')[0]}") from None
    except Exception as error:  # damaged files fail in any way that Pillow's readers can
        what = " ".join(str(error).split()) or type(error).__name__
        if lacks_memory(error):
            raise MemoryError(what) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise
        word = "truncated" if "truncated" in what.lower() else "truncated or damaged"
        raise BadImage(f"{word} {_kind(encoded) or 'image'}: {what}") from error


def lacks_memory(error: Exception) -> bool:
    """Tell whether memory has run out, which OpenCV and libraries below Pillow say in words."""
    if isinstance(error, BadImage | UserError):  # whose words may be a stranger's
        return False
    said = str(error).lower()
    in_words = "out of memory" in said or "insufficient memory" in said
    return in_words or isinstance(error, MemoryError)


def _kind(encoded: bytes) -> str:
    """Return what an image calls itself, in its first bytes; "" for nothing that is known."""
    if encoded[4:8] == b"ftyp":
        return BRANDS.get(encoded[8:12], "")
    return next((name for magic, name in BEGINNINGS if encoded.startswith(magic)), "")


def _what_it_is(encoded: bytes) -> str:
    """Say what a file is that Pillow does not recognise as an image."""
    if not encoded:
        return "empty file"
    kind = _kind(encoded)
    absent = {"HEIC": "HEIF", "AVIF": "AVIF", "JPEG 2000": "JPEG2000", "WebP": "WEBP"}.get(kind)
    if absent and absent not in readable():
        return f"{kind}, which cannot be read here: {_install(absent)}"
    if kind:
        return f"{kind} with a header that is truncated, damaged or of a rare kind"
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
