"""What decodes to which pixels, with and without simplejpeg, and what is refused, and why."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from data import awkward
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from simclr_jax.data import decode
from simclr_jax.data.decode import BadImage

# Pillow says much about damaged metadata.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

FILES = {case.name: case for case in awkward.cases() if isinstance(case.content, bytes)}


@pytest.fixture
def no_simplejpeg(monkeypatch):
    decode._simplejpeg.cache_clear()
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    yield
    decode._simplejpeg.cache_clear()


def outcome(encoded):
    try:
        return decode.decode(encoded)
    except BadImage as error:
        return str(error)


def assert_same(one, other):
    assert isinstance(one, str) == isinstance(other, str), (one, other)
    np.testing.assert_array_equal(one, other)


def test_without_simplejpeg_every_file_has_the_same_outcome(no_simplejpeg, monkeypatch):
    alone = {name: outcome(case.content) for name, case in FILES.items()}
    assert decode._simplejpeg() is None
    decode._simplejpeg.cache_clear()
    monkeypatch.undo()
    pytest.importorskip("simplejpeg")
    for name, case in FILES.items():
        assert_same(outcome(case.content), alone[name])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    st.integers(1, 100),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_a_jpeg_of_any_kind_has_pillows_pixels(h, w, sampling, quality, progressive, gray, seed):
    pixels = np.random.RandomState(seed).randint(0, 256, (h, w, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).convert("L" if gray else "RGB")
    encoded = awkward.jpeg(image, subsampling=sampling, quality=quality, progressive=progressive)
    found = decode.decode(encoded)
    assert found.dtype == np.uint8 and found.flags.c_contiguous and found.flags.writeable
    np.testing.assert_array_equal(found, awkward.through_pillow(encoded))


def test_a_plain_jpeg_never_reaches_pillow(monkeypatch):
    pytest.importorskip("simplejpeg")
    encoded = awkward.jpeg()
    expected = awkward.through_pillow(encoded)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened by Pillow"))
    np.testing.assert_array_equal(decode.decode(encoded), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation(kind, orientation):
    options = {"lossless": True} if kind == "WEBP" else {}
    exif = awkward.with_orientation(orientation)
    encoded = awkward.encode(awkward.RGB, kind, exif=exif, **options)
    with Image.open(io.BytesIO(encoded)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert upright.shape[:2] == ((24, 36) if orientation < 5 else (36, 24))
    found = decode.decode(encoded)
    assert found.flags.c_contiguous and found.flags.writeable
    np.testing.assert_array_equal(found, upright)
    assert decode.size(io.BytesIO(encoded)) == upright.shape[:2]


@pytest.mark.parametrize(
    "kind", ["JPEG", "progressive", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]
)
def test_a_file_cut_anywhere_is_refused_or_whole(kind):
    image = awkward.RGB.resize((18, 12))
    options = {"TIFF": {"compression": "tiff_lzw"}, "progressive": {"progressive": True}}
    image = image.quantize(32) if kind == "GIF" else image
    format = "JPEG" if kind == "progressive" else kind
    encoded = awkward.encode(image, format, **options.get(kind, {}))
    whole = decode.decode(encoded)
    for cut in range(len(encoded)):
        found = outcome(encoded[:cut])
        if isinstance(found, str):
            assert cut < 4 or "truncated" in found
        else:  # only what follows the pixels is missing
            np.testing.assert_array_equal(found, whole)


def test_damage_has_the_same_outcome_without_simplejpeg(no_simplejpeg, monkeypatch):
    random, damaged = np.random.RandomState(0), []
    for name in ["plain", "progressive", "exif 6", "restart markers", "gray"] * 60:
        encoded = bytearray(FILES[f"jpeg/{name}.jpg"].content)
        for at in random.randint(2, len(encoded), random.randint(1, 4)):
            encoded[at] = random.randint(256)
        damaged.append(bytes(encoded))
    alone = [outcome(encoded) for encoded in damaged]
    decode._simplejpeg.cache_clear()
    monkeypatch.undo()
    pytest.importorskip("simplejpeg")
    for encoded, found in zip(damaged, alone, strict=True):
        assert_same(outcome(encoded), found)
    assert 30 < sum(isinstance(found, str) for found in alone) < 270  # both happen


def test_integers_of_32_bits_are_taken_as_16():
    pixels = np.array([[0, 255, 256], [32768, 65280, 65535]], np.int32)
    found = decode.decode(awkward.encode(Image.fromarray(pixels), "TIFF"))
    np.testing.assert_array_equal(found[..., 0], [[0, 0, 1], [128, 255, 255]])
    for outside in (-1, 65536):
        pixels[0, 0] = outside
        with pytest.raises(BadImage, match=r"outside \[0, 65535\]"):
            decode.decode(awkward.encode(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_floats_must_lie_in_the_unit_interval(value):
    pixels = np.full((2, 2), 0.5, np.float32)
    np.testing.assert_array_equal(
        decode.decode(awkward.encode(Image.fromarray(pixels), "TIFF")), np.full((2, 2, 3), 128)
    )
    pixels[1, 1] = value
    with pytest.raises(BadImage, match=r"^floating-point"):
        decode.decode(awkward.encode(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF"])
def test_the_size_is_read_from_the_header_alone(kind):
    noise = np.random.RandomState(0).randint(0, 256, (300, 200, 3)).astype(np.uint8)
    encoded = awkward.encode(Image.fromarray(noise), kind)
    file = io.BytesIO(encoded)
    assert decode.size(file) == (300, 200)
    assert file.tell() < len(encoded) / 2


def test_the_size_of_no_image_is_refused_in_words():
    with pytest.raises(BadImage, match="html, not an image"):
        decode.size(io.BytesIO(FILES["no image/html.jpg"].content))
    with pytest.raises(BadImage, match="empty file"):
        decode.size(io.BytesIO(b""))
