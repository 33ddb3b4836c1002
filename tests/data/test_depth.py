"""Images of more than 8 bits: which value is white, by files of all kinds and by what is said."""

from __future__ import annotations

import dataclasses
import sys
import warnings

import jax
import numpy as np
import pytest
from data import awkward
from PIL import Image
from train import tiny

from simclr_jax import recipes, validation
from simclr_jax.data import decode, depth, modes, sources
from simclr_jax.data.decode import BadImage, Decoder, Rules
from simclr_jax.data.reader import Reader, Unreadable
from simclr_jax.errors import UserError
from simclr_jax.judging import feature_bank
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.preprocessing import Preprocessing

RANDOM = np.random.RandomState(0)
TWELVE = RANDOM.randint(100, 4000, (24, 36)).astype(np.uint16)
COLOUR = RANDOM.randint(100, 4000, (24, 36, 3)).astype(np.uint16)


def tiff(pixels, **options):
    return awkward.encode(Image.fromarray(pixels), "TIFF", **options)


def pgm(pixels, most):
    return b"P5\n# a comment\n36 24 %d\n" % most + pixels.astype(">u2").tobytes()


def ppm(pixels, most):
    return b"P6 36 24 %d\n" % most + pixels.astype(">u2").tobytes()


def deep_tiff(pixels):
    """Encode 16-bit colour, which Pillow cannot, uncompressed."""
    h, w, _ = pixels.shape
    body = pixels.astype("<u2").tobytes()
    tags = [(256, 3, 1, w), (257, 3, 1, h), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [
        (273, 4, 1, 14),
        (274, 3, 1, 6),
        (277, 3, 1, 3),
        (278, 3, 1, h),
        (279, 4, 1, len(body)),
    ]
    ifd = len(tags).to_bytes(2, "little")
    for tag, kind, count, value in tags:
        ifd += b"".join(n.to_bytes(k, "little") for n, k in ((tag, 2), (kind, 2), (count, 4)))
        ifd += value.to_bytes(4, "little")
    at = 14 + len(body)
    return b"II*\0" + at.to_bytes(4, "little") + b"\x10\0" * 3 + body + ifd + bytes(4)


def by_hand(pixels, black, white):
    scaled = (pixels.astype(float) - black) / (white - black) * 255
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


GRAY = {
    "png": awkward.png(TWELVE, 0),
    "tiff": tiff(TWELVE),
    "tiff of big numbers": tiff(TWELVE.astype(">u2")),
    "tiff of 32 bits": tiff(TWELVE.astype(np.int32)),
    "tiff of floats": tiff(TWELVE.astype(np.float32)),
    "pgm": pgm(TWELVE, 65535),
    "jp2": awkward.encode(Image.fromarray(TWELVE), "JPEG2000"),
}


@pytest.mark.parametrize("kind", GRAY)
def test_white_is_what_is_asked_for(kind):
    if kind == "jp2" and "JPEG2000" not in decode.formats.readable():
        pytest.skip("no JPEG 2000 here")
    for law, black, white in (("4095", 0, 4095), ("2000.5", 0, 2000.5)):
        found = decode.decode(GRAY[kind], Rules(law))
        np.testing.assert_array_equal(found, awkward.gray3(by_hand(TWELVE, black, white)))
    low, high = int(TWELVE.min()), int(TWELVE.max())
    found = decode.decode(GRAY[kind], Rules("range"))
    np.testing.assert_array_equal(found, awkward.gray3(by_hand(TWELVE, low, high)))
    if kind != "tiff of floats":
        np.testing.assert_array_equal(decode.decode(GRAY[kind]), awkward.gray3(TWELVE >> 8))


DEEP = {
    "png": (awkward.png(COLOUR, 2), COLOUR),
    "ppm": (ppm(COLOUR, 65535), COLOUR),
    "tiff": (deep_tiff(COLOUR), np.rot90(COLOUR, -1)),
}


@pytest.mark.parametrize("kind", DEEP)
def test_colours_of_16_bits_are_scaled_as_well(kind):
    pytest.importorskip("cv2")
    encoded, pixels = DEEP[kind]
    found = decode.decode(encoded, Rules("4095"))
    np.testing.assert_array_equal(found, by_hand(pixels, 0, 4095))
    found = decode.decode(encoded, Rules("range"))
    np.testing.assert_array_equal(found, by_hand(pixels, int(pixels.min()), int(pixels.max())))
    rounded = 1 if kind == "ppm" else 0  # by Pillow
    np.testing.assert_allclose(decode.decode(encoded), pixels >> 8, atol=rounded)


@pytest.mark.parametrize("colours", [1, 3])
def test_deep_transparent_pixels_are_white(colours):
    pytest.importorskip("cv2")
    pixels = COLOUR if colours == 3 else np.repeat(TWELVE[..., None], 3, -1)
    alpha = np.where(awkward.X < 18, 0, 65535).astype(np.uint16)
    stored = np.dstack([pixels[..., :colours], alpha])
    found = decode.decode(awkward.png(stored, 6 if colours == 3 else 4), Rules("4095"))
    assert (found[:, :18] == 255).all()
    np.testing.assert_array_equal(found[:, 18:], by_hand(pixels[:, 18:], 0, 4095))


def test_a_file_that_says_its_own_largest_value_is_scaled_by_it():
    for encoded in (pgm(TWELVE, 4095), ppm(COLOUR, 4095)):
        plain = decode.decode(encoded)
        np.testing.assert_array_equal(decode.decode(encoded, Rules("60000")), plain)
        assert plain.max() > 200


def test_images_of_8_bits_are_left_alone():
    for kind in ("PNG", "JPEG", "TIFF"):
        encoded = awkward.encode(awkward.RGB, kind)
        for law in ("range", "9"):
            np.testing.assert_array_equal(
                decode.decode(encoded, Rules(law)), decode.decode(encoded)
            )


def test_without_opencv_colours_of_16_bits_end_the_run_and_are_no_bad_images(tmp_path, monkeypatch):
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(awkward.encode(awkward.RGB, "PNG"))
    (tmp_path / "5.png").write_bytes(DEEP["png"][0])
    data = recipes.base().data
    data.update({"source": "folder", "path": str(tmp_path), "labels": False, "white_level": "4095"})
    source, unreadable = sources.OPENERS["folder"](data, None)["train"](), Unreadable("x", 6, 0.5)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"white_level=4095 needs OpenCV .*: pip install"):
        Reader(source, lambda at: at % 6, unreadable).read(np.arange(6))
    assert not len(unreadable)


def test_values_beyond_white_are_white_and_one_value_alone_is_black():
    made, found = depth.to_bytes(np.array([[-5, 0, 10, 99]], np.int32), "10")
    assert made.tolist() == [[0, 0, 255, 255]] and found.clipped
    assert depth.to_bytes(np.full((2, 2), 7, np.uint16), "range")[0].max() == 0
    for law in ("range", "10"):
        with pytest.raises(BadImage, match="no numbers"):
            depth.to_bytes(np.array([[1, np.nan]], np.float32), law)


def test_an_image_of_many_bands_is_whole(monkeypatch):
    palette, alpha = awkward.RGB.quantize(16), np.dstack([awkward.PICTURE, awkward.ALPHA])
    images = (awkward.RGB, palette, Image.fromarray(alpha))
    files = [GRAY["png"], GRAY["tiff of floats"], *(awkward.encode(i, "PNG") for i in images)]
    files.append(awkward.encode(palette, "GIF", transparency=3))
    whole = [decode.decode(encoded, Rules("4095")) for encoded in files]
    monkeypatch.setattr(modes, "BAND", 5 * 36)
    monkeypatch.setattr(depth, "ROWS", 7 * 36)
    for encoded, pixels in zip(files, whole, strict=True):
        np.testing.assert_array_equal(decode.decode(encoded, Rules("4095")), pixels)


# What is said -------------------------------------------------------------------------------------


def test_how_they_are_scaled_is_said_once_and_almost_black_ones_with_the_remedy():
    said = []
    decoder = Decoder(Rules(), said.append)
    decoder(awkward.encode(awkward.RGB, "PNG"), lambda: "plain.png")
    assert not said
    for i in range(5):
        decoder(GRAY["png"], f"{i}.png".__str__)
    how, dark = said
    low, high = TWELVE.min(), TWELVE.max()
    assert "data.white_level=full: 65535 becomes white" in how
    for line in said:
        assert f"such as 0.png with values {low} to {high}" in line
    assert f"use {high / 65535:.1%}" in dark and "1023, 4095 or 16383" in dark


def test_a_dark_image_among_bright_ones_is_noticed():
    said = []
    decoder = Decoder(Rules(), said.append)
    for number, name in ((16, "a"), (16, "b"), (1, "c"), (1, "d")):
        decoder(awkward.png(TWELVE * np.uint16(number), 0), lambda name=name: name)
    assert len(said) == 2 and "such as a " in said[0] and "almost black" not in said[0]
    assert "such as c " in said[1] and "almost black: set data.white_level" in said[1]


@pytest.mark.parametrize("factor", [1, 16])
def test_dark_colours_are_noticed_too(factor):
    said, encoded = [], awkward.png(COLOUR * np.uint16(factor), 2)
    Decoder(Rules(), said.append)(encoded, lambda: "x.png")
    assert ["almost black" in line for line in said] == ([False, True] if factor == 1 else [False])


def test_what_a_number_cuts_off_is_said_whenever_it_comes():
    said = []
    decoder = Decoder(Rules("4095"), said.append)
    for number, name in ((1, "a"), (1, "b"), (9, "c"), (9, "d")):
        decoder(awkward.png(TWELVE * np.uint16(number), 0), lambda name=name: name)
    assert len(said) == 2 and "such as a " in said[0] and "black" not in said[0]
    assert "outside 0 to 4095, such as c " in said[1] and "set a larger one, or range" in said[1]


# From the recipe to the network -------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixteen images of 12 bits in two classes, and the pixels they are made of."""
    root = tmp_path_factory.mktemp("deep")
    pixels = RANDOM.randint(0, 4096, (16, 16, 16)).astype(np.uint16)
    for i, image in enumerate(pixels):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        (root / "ab"[i % 2] / f"{i:02}.png").write_bytes(awkward.png(image, 0))
    return root, pixels


@pytest.mark.parametrize("placement", ["device", "canvas", "split", "host"])
@pytest.mark.parametrize("law", ["full", "4095"])
def test_white_level_is_that_of_the_recipe_on_every_placement(folder, placement, law):
    if placement == "host":
        pytest.importorskip("tensorflow")
    root, pixels = folder
    grid = "opencv" if placement == "split" else "corner"
    c = tiny.recipe(
        data__source="folder", data__path=str(root), data__white_level=law, data__image_size=16,
        augment__placement=placement, augment__grid=grid,
    )  # fmt: skip
    train, test = sources.open_splits(c.data)
    inputs = Inputs(c, train, test)
    numbers = {path: int(path[2:4]) for path in [*train.paths, *test.paths]}
    expected = {
        n: pixels[n] >> 8 if law == "full" else by_hand(pixels[n], 0, 4095) for n in range(16)
    }
    found = inputs.originals(len(train))
    example = inputs.first(len(train))["example"]
    for image, row in zip(found, example, strict=True):
        np.testing.assert_array_equal(image[..., 0], expected[numbers[train.paths[row]]])
    evaluated = np.asarray(
        inputs.prepare(jax.numpy.asarray(inputs.for_evaluation(inputs.test)[:1]))
    )
    want = expected[numbers[test.paths[0]]] / 255
    np.testing.assert_allclose(evaluated[0, ..., 0], want, atol=1e-6)


def test_archives_of_16_bits_take_the_field(tmp_path, capsys):
    images = RANDOM.randint(0, 4096, (6, 5, 5, 1)).astype(np.uint16)
    data = recipes.base().data
    data.source, data.path = "memory", str(tmp_path / "x.npz")
    np.savez(data.path, images=images)

    def opened():
        return sources.OPENERS["memory"](data)["train"]().pixels

    np.testing.assert_array_equal(opened(), images >> 8)
    assert "almost black: set data.white_level" in capsys.readouterr().err
    data.white_level = "4095"
    np.testing.assert_array_equal(opened(), by_hand(images, 0, 4095))
    data.white_level = "range"
    for image, found in zip(images, opened(), strict=True):
        np.testing.assert_array_equal(found, by_hand(image, int(image.min()), int(image.max())))


def test_an_encoder_scales_what_users_give_it_by_the_run():
    c = tiny.recipe(data__white_level="4095")
    prepare = Preprocessing.of(c, 1)
    image = TWELVE[:16, :16]
    with warnings.catch_warnings(action="error"):
        np.testing.assert_array_equal(prepare.checked(image), by_hand(image, 0, 4095)[..., None])
    with pytest.warns(UserWarning, match=r"almost black: set data\.white_level"):
        Preprocessing.of(tiny.recipe(), 1).checked(image)


def test_features_of_another_white_level_have_a_key_of_their_own(folder):
    from embedding import embedded

    encoder = embedded.encoder()
    data = recipes.base().data
    data.source, data.path = "folder", str(folder[0])
    keys = []
    for fields in ({}, {"white_level": "4095"}, {"max_megapixels": 1.0}):
        with data.unlocked():
            changed = recipes.copied(data)
            changed.update(fields)
        keys.append(feature_bank.key(encoder, sources.OPENERS["folder"](changed)["train"]()))
    other = dataclasses.replace(encoder.preprocessing, white_level="4095")
    source = sources.OPENERS["folder"](data)["train"]()
    keys.append(feature_bank.key(encoder.changed({}, other), source))
    assert len({str(key) for key in keys}) == 4


@pytest.mark.parametrize("value", ["", "wide", "0", "-1", "nan", "inf", "12 bits"])
def test_another_white_level_is_refused(value):
    with pytest.raises(UserError, match=r"data\.white_level is .*full, range, or a number"):
        validation.validate(tiny.recipe(data__white_level=value), 1)
