"""Images of more than 8 bits in a search: as the run saw them, and so that people see something."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from data import awkward
from embedding import test_search as searched
from PIL import Image
from train import tiny

from simclr_jax.embedding import search
from simclr_jax.errors import UserError

photos = searched.photos
DEEP = np.linspace(100, 4000, 12 * 100).reshape(12, 100).astype(np.uint16)


@pytest.fixture
def shown(monkeypatch):
    """Return the images that the encoder of a run with 12 bits is given."""
    images = []

    class Encoder:
        config = tiny.recipe(data__white_level="4095", data__max_megapixels=0.01)

        def __call__(self, pixels, tap):
            images.extend(pixels)
            return np.ones((len(pixels), 2))

    monkeypatch.setattr(search, "_encoder", lambda *_: Encoder())
    return images


def test_a_query_is_scaled_as_the_images_of_the_run_were(photos, tmp_path, shown):
    (tmp_path / "deep.png").write_bytes(awkward.png(DEEP, 0))
    searched.find(photos, query=[str(tmp_path / "deep.png")])
    (image,) = shown
    np.testing.assert_array_equal(image[..., 0], np.round(DEEP / 4095 * 255))


def test_a_query_that_is_too_large_is_refused_by_name(photos, tmp_path, shown):
    Image.new("L", (200, 100)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match=r"--query=.*large\.png cannot be used: too large: 200x100"):
        searched.find(photos, query=[str(tmp_path / "large.png")])


def test_pictures_are_shown_from_their_darkest_value_to_their_brightest(photos):
    (photos.parent / "images" / "46.png").write_bytes(awkward.png(DEEP, 0))
    _, page = searched.find(photos, query=["45.png"], k=1)
    pictures = re.findall(r"data:image/\w+;base64,([\w+/=]+)", page)
    shown = [Image.open(io.BytesIO(base64.b64decode(one))) for one in pictures]
    (deep,) = [np.asarray(image) for image in shown if image.width == 100]
    assert deep.min() < 8 and deep.max() > 247
