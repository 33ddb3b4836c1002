"""From an image file's bytes to pixels, or to the reason why there are none.

Pillow decides: what it reads is an image, what it refuses is not. Where simplejpeg is installed it
decodes the common JPEG in half the time, to the same pixels.

How large an image is stands in its header, and one that is too large is a bad image before a pixel
is decoded. While one is decoded each thread takes, for each of its pixels, 3 bytes (JPEG; 6 if it
is progressive), 7 (PNG and what else Pillow reads by itself), 10 (AVIF), 15 (WebP) or 18 (JPEG
2000), measured at 64 and 100 megapixels; then the 3 of the result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from simclr_jax import extras
from simclr_jax.data import depth, formats, modes, scaling, scratch
from simclr_jax.data.depth import Depth
from simclr_jax.data.formats import BadImage, remedy, suffixes
from simclr_jax.errors import UserError

__all__ = [
    "BadImage",
    "Decoder",
    "Rules",
    "content",
    "decode",
    "deep",
    "loaded",
    "remedy",
    "size",
    "suffixes",
]

MOST_PIXELS = 128_000_000  # of one image
LARGEST = 2**30  # bytes of a file that is read; a sparse file may claim any size
LOOKED_INTO = 2**26  # bytes of a file of which more is read only if it begins like an image
JPEG2000 = b"\xff\x4f\xff\x51"  # begins its pixels' header
TILE = (0x0142, 0x0143)  # the tags of a TIFF with the sides of its tiles

# The limit is ours, and a photograph below it no bomb.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclasses.dataclass(frozen=True)
class Rules:
    """What fields of a recipe say about decoding.

    Attributes:
      white_level: of images of more than 8 bits, see `depth.py`.
      most_pixels: of an image; one that has more is bad.
    """

    white_level: str = depth.FULL
    most_pixels: int = MOST_PIXELS

    @classmethod
    def of(cls, data: ConfigDict) -> Rules:
        """Return the rules of `config.data`, which may be too old to have such fields."""
        most = data.get("max_megapixels", MOST_PIXELS / 1e6)
        return cls(data.get("white_level", depth.FULL), round(most * 1e6))


RULES = Rules()  # of recipes that say nothing else


class Decoder:
    """Decodes the images of a data set, and says once what a user should know about them.

    Attributes:
      rules: that hold for all of them.
      say: receives the lines; threads may call it.
    """

    def __init__(
        self,
        rules: Rules = RULES,
        say: Callable[[str], object] = lambda line: print(line, file=sys.stderr, flush=True),
    ):
        self.rules, self.say = rules, say
        self._lock, self._said = threading.Lock(), set[str]()

    def __call__(self, encoded: bytes, name: Callable[[], str]) -> np.ndarray:
        """Decode an image file; see `decode`. `name` is asked for where something is said."""
        pixels, found = deep(encoded, self.rules)
        if found is not None:
            self._tell(found, name)
        return pixels

    def scaled(self, pixels: np.ndarray, name: Callable[[], str]) -> np.ndarray:
        """Scale pixels of more than 8 bits, of any shape, to uint8; see `depth.to_bytes`."""
        made, found = depth.to_bytes(pixels, self.rules.white_level)
        self._tell(found, name)
        return made

    def _tell(self, found: Depth, name: Callable[[], str]) -> None:
        kinds = {"how", *["dark"] * found.dark, *["clipped"] * found.clipped}
        if kinds <= self._said:
            return
        with self._lock:
            for kind, text in depth.remarks(found, self.rules.white_level, name()).items():
                if kind not in self._said:
                    self._said.add(kind)
                    self.say(f"note      {text}")


def decode(encoded: bytes, rules: Rules = RULES) -> np.ndarray:
    """Decode an image file of a format of `formats.readable`; of several frames the first.

    The EXIF orientation is applied and ICC profiles are not. Transparent pixels are composited on
    white. Grayscale becomes three equal channels, CMYK is converted without a profile; channels of
    more than 8 bits are scaled as `rules.white_level` says.

    Returns:
      uint8 `[h, w, 3]`.

    Raises:
      BadImage: if this is no image, a truncated or damaged one, or one of more pixels than the
        rules allow. A JPEG whose data break off but that has its end marker passes, as in Pillow.
      MemoryError: if it does not fit into memory; see `within_memory`.
    """
    return deep(encoded, rules)[0]


def deep(encoded: bytes, rules: Rules) -> tuple[np.ndarray, Depth | None]:
    """Return what `decode` does, and how an image of more than 8 bits was scaled."""
    scaling.forget()
    pixels, found = _decode_plain_jpeg(encoded, rules), None
    if pixels is not None and not _may_be_rotated(encoded):
        return pixels, None
    with formats.reasons(encoded):
        image = formats.opened(io.BytesIO(encoded), encoded[:64])
        _check_size(image, rules)
        if pixels is not None:
            orientation = modes.orientation_of(image.getexif)
        else:
            pixels, found, orientation = _load(image, encoded, rules)
    del image
    return np.ascontiguousarray(modes.turn(pixels, orientation)), found


def size(file: IO[bytes], rules: Rules = RULES) -> tuple[int, int]:
    """Return height and width that `decode` would give, in pixels, from the header of a file.

    Raises:
      BadImage: if the header is none of an image, or of one that is too large.
    """
    beginning = file.read(64)
    with formats.reasons(beginning):
        image = formats.opened(file, beginning)
        _check_size(image, rules)
        # The method of PNGs reads all pixels first, to find EXIF data behind them.
        orientation = modes.orientation_of(functools.partial(Image.Image.getexif, image))
    # Pillow turns TIFFs itself and tells the size after it.
    swapped = orientation >= 5 and image.format != "TIFF"
    return (image.width, image.height) if swapped else (image.height, image.width)


def content(path: Path, rules: Rules = RULES) -> bytes:
    """Return the bytes of an image file.

    Raises:
      BadImage: if it is none that can be read, for its size or because it is a pipe or a device.
      OSError: if the system cannot open or read it.
    """
    if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
        raise BadImage("no file, but a pipe or a device")  # to open it would wait for a writer
    with path.open("rb") as file:
        count = os.fstat(file.fileno()).st_size
        if count > LARGEST:
            raise BadImage(f"too large: {count / 2**30:.0f} GiB")
        if count > LOOKED_INTO:
            size(file, rules)
            file.seek(0)
        return file.read(count)  # what is asked for is memory that is taken


@contextlib.contextmanager
def within_memory(name: Callable[[], str]) -> Iterator[None]:
    """Name the image with which memory runs out, in one line.

    Such an image is not left out, as a bad one would be: with more memory it is read, and what a
    run learns must not depend on that.
    """
    try:
        yield
    except Exception as error:
        if not formats.lacks_memory(error):
            raise
        raise UserError(
            f"{name()} does not fit into memory, among what other threads hold: lower data.threads "
            "or data.max_megapixels, or free memory"
        ) from error


def _check_size(image: Image.Image, rules: Rules) -> None:
    """Raise `BadImage` if an image, or a tile of it, has more pixels than the rules allow."""
    sides = [image.size]
    if image.format == "TIFF":
        sides.append(tuple(int(image.tag_v2.get(tag, 0)) for tag in TILE))  # type: ignore
    for width, height in sides:
        if width * height > rules.most_pixels:
            raise _too_large(width, height, rules)


def _too_large(width: int, height: int, rules: Rules) -> BadImage:
    return BadImage(
        f"too large: {width}x{height} pixels, more than "
        f"data.max_megapixels={rules.most_pixels / 1e6:g}"
    )


# JPEGs through simplejpeg -------------------------------------------------------------------------


@functools.cache
def _simplejpeg() -> Any:
    """Return the module, or None where it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _decode_plain_jpeg(encoded: bytes, rules: Rules) -> np.ndarray | None:
    """Return the pixels as stored, or None where Pillow must look: not plain, or not flawless."""
    if not encoded.startswith(b"\xff\xd8\xff") or _simplejpeg() is None:
        return None
    try:
        height, width, colors, _ = _simplejpeg().decode_jpeg_header(encoded)
        if colors not in ("YCbCr", "Gray", "RGB") or height * width > rules.most_pixels:
            return None
        smaller, room = scaling.wanted(height, width), scratch.room(height * width * 3)
        return _simplejpeg().decode_jpeg(encoded, strict=True, buffer=room, **smaller)
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


def _load(image: Image.Image, encoded: bytes, rules: Rules) -> tuple[np.ndarray, Depth | None, int]:
    """Return the pixels of an open image, `[h, w, 3]`, how deep it was, and its orientation."""
    deep_colour, law = _is_deep_colour(image), _white_level(image, encoded, rules)
    turned = image.tag_v2.get(modes.ORIENTATION, 1) if image.format == "TIFF" else 1  # type: ignore
    image.load()  # which turns a TIFF
    orientation = modes.orientation_of(image.getexif)
    if deep_colour and law != depth.FULL:
        return *_scaled_colour(image, turned, encoded, law), orientation
    pixels, found = modes.pixels_of(image, law)
    return pixels, depth.of_upper_bits(pixels) if deep_colour else found, orientation


def loaded(image: Image.Image, rules: Rules = RULES) -> tuple[np.ndarray, Depth | None]:
    """Return the pixels of an image in memory as `deep` does those of a file with just these.

    Raises:
      BadImage: if it has more pixels than the rules allow, or a mode of which no colours are made.
    """
    with formats.reasons(b""):
        if image.width * image.height > rules.most_pixels:
            raise _too_large(*image.size, rules)
        image.load()
        pixels, found = modes.pixels_of(image, rules.white_level)
        return np.ascontiguousarray(modes.turn(pixels, modes.orientation_of(image.getexif))), found


def _white_level(image: Image.Image, encoded: bytes, rules: Rules) -> str:
    """Return what scales an image that is not loaded.

    A number has no say where a file says its own: of its largest value Pillow makes 65535 or 255.
    """
    says = False
    if image.format == "PPM":
        codec, *_, args = image.tile[0]  # type: ignore[attr-defined]
        says = codec == "ppm" and args[1] != depth.MOST
    elif image.format == "JPEG2000":
        bits = encoded.index(JPEG2000) + len(JPEG2000) + 38  # behind the sides of image and tiles
        says = encoded[bits] & 0x7F < 15  # of the first channel, less one; the highest: a sign
    return depth.FULL if says and rules.white_level != depth.RANGE else rules.white_level


def _is_deep_colour(image: Image.Image) -> bool:
    """Tell whether channels of an image to be loaded have 16 bits, of which Pillow keeps 8."""
    if image.mode == "F" or image.mode.startswith("I"):
        return False
    for tile in getattr(image, "tile", ())[:1]:
        args = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if tile[0] == "ppm":
            return len(args) > 1 and args[1] > 255
        return any(isinstance(arg, str) and ";16" in arg for arg in args)
    return False


def _scaled_colour(
    image: Image.Image, turned: int, encoded: bytes, white_level: str
) -> tuple[np.ndarray, Depth]:
    """Return the colours of 16 bits of a loaded image, scaled to 8.

    OpenCV alone reads all 16 bits; it must agree with Pillow about the upper 8.

    Args:
      image: as Pillow has loaded it.
      turned: the orientation by which Pillow has turned it; versions of OpenCV do or do not.
      encoded: the file.
      white_level: what scales it.

    Raises:
      UserError: if OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"data.white_level={white_level} needs OpenCV for colours of 16 bits, and it is not "
            f"installed: {extras.install('images')}"
        ) from error
    stored: Any = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if image.mode in ("RGB", "RGBA") and stored is not None and stored.dtype == np.uint16:
        upper = np.asarray(image.convert("RGB"), np.int16)
        for values in (stored, modes.turn(stored, turned)):
            if values.shape[:2] != upper.shape[:2] or values.ndim != 3:
                continue
            colours, alpha = values[..., 2::-1], values[..., 3:]
            if np.abs((colours >> 8).astype(np.int16) - upper).max() > 1:  # of PPM Pillow rounds
                continue
            made, found = depth.to_bytes(colours, white_level)
            if alpha.size:
                both = np.concatenate([made, (alpha >> 8).astype(np.uint8)], axis=2)
                made = modes.eight_bits(Image.fromarray(both))
            return made, found
    raise BadImage(f"{image.mode} of 16 bits that only data.white_level=full reads")
