"""Formats that not every Pillow reads: AVIF, JPEG 2000 and HEIC, and what is said without them."""

from __future__ import annotations

import importlib.util
import io

import numpy as np
import pytest
from data import awkward
from PIL import Image, ImageOps, features

from simclr_jax import recipes
from simclr_jax.data import decode, formats, sources
from simclr_jax.data.decode import BadImage

SUFFIX = {"AVIF": "avif", "JPEG2000": "jp2", "HEIF": "heic"}
OLD = {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"}


def of_pillow(kind):
    """Skip the test unless the format can be read here; Pillow then opens it too."""
    if kind not in formats.readable():
        pytest.skip(f"no {kind} here")
    if kind == "HEIF":
        importlib.import_module("pillow_heif").register_heif_opener()


def upright(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


TURNS = {
    1: awkward.RGB,
    3: awkward.RGB.transpose(Image.Transpose.ROTATE_180),
    6: awkward.RGB.transpose(Image.Transpose.ROTATE_270),
    7: awkward.RGB.transpose(Image.Transpose.TRANSVERSE),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", SUFFIX)
def test_pixels_are_pillows_and_upright(kind, orientation):
    of_pillow(kind)
    has_exif = kind != "JPEG2000"
    exif = {"exif": awkward.with_orientation(orientation)} if has_exif else {}
    encoded = awkward.encode(awkward.RGB, kind, **exif)
    found = decode.decode(encoded)
    np.testing.assert_array_equal(found, upright(encoded))
    assert decode.size(io.BytesIO(encoded)) == found.shape[:2]
    expected = np.asarray(TURNS[orientation if has_exif else 1])
    assert np.abs(found.astype(int) - expected).mean() < 12  # what compression loses


@pytest.mark.parametrize("kind", SUFFIX)
def test_transparent_pixels_are_white(kind):
    of_pillow(kind)
    alpha = np.where(awkward.X < awkward.W // 2, 0, 255).astype(np.uint8)
    encoded = awkward.encode(Image.fromarray(np.dstack([awkward.PICTURE, alpha])), kind)
    found = decode.decode(encoded)
    assert (found[:, :16] > 250).all() and (found[:, 20:] < 250).any()


def test_of_several_frames_the_first_is_decoded():
    of_pillow("AVIF")
    other = [Image.new("RGB", awkward.RGB.size, "red")]
    encoded = awkward.encode(awkward.RGB, "AVIF", save_all=True, append_images=other)
    np.testing.assert_array_equal(decode.decode(encoded), upright(encoded))


@pytest.mark.parametrize("kind", SUFFIX)
def test_a_file_cut_anywhere_is_refused_or_whole(kind):
    of_pillow(kind)
    encoded = awkward.encode(awkward.RGB.resize((18, 12)), kind)
    whole, refused = decode.decode(encoded), 0
    for cut in range(0, len(encoded), max(1, len(encoded) // 60)):
        try:
            found = decode.decode(encoded[:cut])
        except BadImage as reason:
            assert "\n" not in str(reason)
            refused += 1
        else:
            # OpenJPEG and libheif make do with a part: of the right size, if nothing else.
            assert found.shape == whole.shape
    assert refused > 10


@pytest.mark.parametrize("kind", SUFFIX)
def test_a_folder_has_them(kind, tmp_path):
    of_pillow(kind)
    encoded = awkward.encode(awkward.RGB, kind)
    for name in ("1.png", f"2.{SUFFIX[kind].upper()}"):
        (tmp_path / name).write_bytes(encoded)
    data = recipes.base().data
    data.source, data.path, data.labels = "folder", str(tmp_path), False
    source = sources.OPENERS["folder"](data, None)["train"]()
    for example in range(2):  # by what it holds, not by its name
        np.testing.assert_array_equal(source.example(example)[0], upright(encoded))


@pytest.fixture
def fresh():
    formats.readable.cache_clear()
    yield
    formats.readable.cache_clear()


def test_suffixes_are_those_that_can_be_read_here(fresh, monkeypatch):
    monkeypatch.setattr(features, "get_supported", lambda: ["pil", "jpg", "zlib", "webp"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert decode.suffixes() == OLD
    assert decode.remedy("HEIC") == "pip install 'pillow-heif>=0.18'"
    assert decode.remedy("avif") == "pip install 'pillow>=11.3'"
    assert "OpenJPEG" in decode.remedy("jp2") and decode.remedy("png") == ""
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    with pytest.raises(
        BadImage, match=r"HEIC, which cannot be read here: pip install 'pillow-heif"
    ):
        decode.decode(heic)
    formats.readable.cache_clear()
    monkeypatch.setattr(features, "get_supported", lambda: ["pil", "webp", "avif", "jpg_2000"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "pillow_heif" or None)
    assert decode.suffixes() >= OLD | {"avif", "jp2", "j2k", "heic", "heif"}
    assert decode.remedy("heic") == ""
    formats.readable.cache_clear()
    monkeypatch.setattr(features, "get_supported", lambda: ["pil"])
    assert "webp" not in decode.suffixes()
