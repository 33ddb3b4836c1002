"""Images of Pillow, in every mode: the same bits as their files through a door."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from simclr_jax.data import decode
from simclr_jax.data.decode import Rules
from simclr_jax.errors import UserError
from simclr_jax.stages import in_hand

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (9, 11, 3), np.uint8)
ALPHA = RANDOM.integers(0, 256, (9, 11), np.uint8)
DEEP = RANDOM.integers(0, 4096, (9, 11)).astype(np.uint16)


def palette(transparent):
    image = Image.fromarray(COLOUR).quantize(16)
    if transparent:
        image.info["transparency"] = bytes(RANDOM.integers(0, 256, 16, np.uint8))
    return image


def with_alpha(mode):
    image = Image.fromarray(np.dstack([COLOUR, ALPHA]), "RGBA")
    return image if mode == "RGBA" else image.convert(mode)


# Each mode, and a format that keeps it; None: there is none, the image is compared by hand alone.
IMAGES = {
    "1": (Image.fromarray(ALPHA).convert("1"), "PNG"),
    "L": (Image.fromarray(ALPHA), "PNG"),
    "LA": (with_alpha("LA"), "PNG"),
    "La": (with_alpha("LA").convert("La"), None),
    "P": (palette(False), "PNG"),
    "P, transparent": (palette(True), "PNG"),
    "PA": (Image.merge("PA", (palette(False).convert("L"), Image.fromarray(ALPHA))), None),
    "RGB": (Image.fromarray(COLOUR), "PNG"),
    "RGBA": (with_alpha("RGBA"), "PNG"),
    "RGBa": (with_alpha("RGBa"), None),
    "RGBX": (Image.fromarray(COLOUR).convert("RGBX"), "TIFF"),
    "CMYK": (Image.fromarray(COLOUR).convert("CMYK"), "TIFF"),
    "YCbCr": (Image.fromarray(COLOUR).convert("YCbCr"), "TIFF"),
    "HSV": (Image.fromarray(COLOUR).convert("HSV"), None),
    "LAB": (Image.frombytes("LAB", (11, 9), COLOUR.tobytes()), "TIFF"),
    "I": (Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
    "I;16": (Image.fromarray(DEEP), "PNG"),
    "I;16B": (Image.frombytes("I;16B", (11, 9), DEEP.astype(">u2").tobytes()), "TIFF"),
    "F": (Image.fromarray(DEEP.astype(np.float32) / 4095), "TIFF"),
}


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:images, such as this one")
@pytest.mark.parametrize("white_level", ["full", "range", "4095"])
@pytest.mark.parametrize("name", [name for name, (_, kind) in IMAGES.items() if kind])
def test_an_image_of_any_mode_is_its_file(name, white_level):
    """In memory, opened and not read yet, and read."""
    image, kind = IMAGES[name]
    rules, content = Rules(white_level), encoded(image, kind)
    wanted = decode.decode(content, rules)
    unread, read = Image.open(io.BytesIO(content)), Image.open(io.BytesIO(content))
    assert read.mode == image.mode or name in ("I;16B", "YCbCr", "RGBX"), "the file keeps it"
    read.load()
    for one in (image, unread, read, read.copy(), unread):
        found = in_hand.pixels(one, rules)
        assert (found.dtype, found.shape) == (np.uint8, (9, 11, 3))
        np.testing.assert_array_equal(found, wanted)


def on_white(colours, alpha):
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def test_modes_with_transparency_lie_on_white():
    """Worked out here: the colours of each mode, without Pillow's compositing."""
    gray = np.asarray(with_alpha("LA"))[..., 0]
    own = np.array(palette(False).getpalette()).reshape(-1, 3)
    index = np.asarray(palette(False))
    share = np.frombuffer(IMAGES["P, transparent"][0].info["transparency"], np.uint8)
    wanted = {
        "RGBA": on_white(COLOUR, ALPHA),
        "RGBa": on_white(COLOUR, ALPHA),
        "LA": on_white(np.dstack([gray] * 3), ALPHA),
        "La": on_white(np.dstack([gray] * 3), ALPHA),
        "P, transparent": on_white(own[index], share[index]),
    }
    for name, colours in wanted.items():
        found = in_hand.pixels(IMAGES[name][0], Rules())
        close = 3 if name in ("RGBa", "La") else 1  # of which eight bits of each product are left
        np.testing.assert_allclose(found, colours, atol=close, err_msg=name)
    palettes = in_hand.pixels(IMAGES["PA"][0], Rules())
    lying = Image.merge("PA", (palette(False).convert("L"), Image.new("L", (11, 9), 255)))
    opaque = in_hand.pixels(lying, Rules())
    np.testing.assert_allclose(palettes, on_white(opaque, ALPHA), atol=1)
    hsv = in_hand.pixels(IMAGES["HSV"][0], Rules())
    np.testing.assert_allclose(hsv, COLOUR, atol=8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_file(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(IMAGES["RGB"][0], kind, exif=exif, **options)
    wanted = decode.decode(content)
    assert wanted.shape == ((11, 9, 3) if orientation >= 5 else (9, 11, 3))
    read = Image.open(io.BytesIO(content))
    read.load()
    for one in (Image.open(io.BytesIO(content)), read, read.copy()):
        np.testing.assert_array_equal(in_hand.pixels(one, Rules()), wanted)
    # Turned by its owner, it is not turned again.
    upright = Image.fromarray(wanted)
    np.testing.assert_array_equal(in_hand.pixels(upright, Rules()), wanted)


def test_colours_of_16_bits_are_there_until_pillow_reads_them(tmp_path):
    cv2 = pytest.importorskip("cv2")
    colours = RANDOM.integers(0, 4096, (9, 11, 3)).astype(np.uint16)
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), colours[..., ::-1])
    rules = Rules("4095")
    wanted = np.rint(colours * (255 / 4095))
    for image in (path, Image.open(path)):
        np.testing.assert_array_equal(in_hand.pixels(image, rules), wanted)


def test_the_frame_in_hand_is_taken():
    frames = [Image.fromarray(np.full((9, 11), level, np.uint8)) for level in (10, 200)]
    content = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    image = Image.open(io.BytesIO(content))
    for number, level in ((0, 10), (1, 200), (0, 10)):
        image.seek(number)
        assert np.unique(in_hand.pixels(image, Rules())) == [level]


def test_what_cannot_be_read_is_said_in_a_line():
    cut = Image.open(io.BytesIO(encoded(IMAGES["RGB"][0], "PNG")[:150]))
    closed = Image.open(io.BytesIO(encoded(IMAGES["RGB"][0], "PNG")))
    closed.close()
    large = Image.new("L", (40, 50))
    for image, words in (
        (cut, "mode RGB cannot be read .truncated"),
        (closed, "mode RGB cannot be read"),
        (large, "cannot be read .too large: 40x50 pixels, more than data.max_megapixels=0.001"),
        (Image.fromarray(np.full((4, 5), -3, np.int32)), "mode I cannot be read .32-bit pixels"),
    ):
        with pytest.raises(UserError, match=words) as raised:
            in_hand.pixels(image, Rules(most_pixels=1000))
        assert "\n" not in str(raised.value)


def test_what_becomes_almost_black_is_warned_of():
    dark = IMAGES["I;16"][0]
    for image in (dark, Image.open(io.BytesIO(encoded(dark, "PNG")))):
        with pytest.warns(UserWarning, match="white_level"):
            in_hand.pixels(image, Rules())
