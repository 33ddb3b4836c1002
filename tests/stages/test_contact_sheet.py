"""The contact sheet, decoded and looked at where its tiles must be."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from simclr_jax.stages.contact_sheet import GAP, contact_sheet


def sheet(originals, views):
    return np.asarray(Image.open(io.BytesIO(contact_sheet(originals, views))))


def tile(picture, row, column, side):
    """Return a tile; the row of originals is set apart by a second gap."""
    top = GAP + row * (side + GAP) + (GAP if row else 0)
    left = GAP + column * (side + GAP)
    return picture[top : top + side, left : left + side]


@pytest.mark.parametrize("size, side", [(8, 48), (64, 64), (224, 96)])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_column_is_an_image_above_its_views(size, side, channels):
    levels = np.array([[10, 60, 110], [20, 70, 120], [30, 80, 130]])  # row, column
    originals = np.full((3, 20, 20, channels), levels[0][:, None, None, None], np.uint8)
    views = np.ones((2, 3, size, size, channels)) * levels[1:, :, None, None, None] / 255
    picture = sheet(originals, views)
    assert picture.shape == (3 * (side + GAP) + 2 * GAP, 3 * (side + GAP) + GAP, 3)
    for row in range(3):
        for column in range(3):
            assert (tile(picture, row, column, side) == levels[row, column]).all()
    assert (picture[:, :GAP] == 255).all() and (picture[-GAP:] == 255).all()


def test_colours_and_the_right_way_up():
    view = np.zeros((1, 1, 48, 48, 3))
    view[..., :24, :, 0], view[..., 24:, :, 2] = 1, 1  # red above blue
    picture = tile(sheet((view[0] * 255).astype(np.uint8), view), 1, 0, 48)
    assert (picture[:24] == [255, 0, 0]).all() and (picture[24:] == [0, 0, 255]).all()


def test_originals_keep_their_shape():
    """A stretched original would hide what the crop's aspect does."""
    wide = np.zeros((10, 40, 3), np.uint8)
    picture = tile(sheet([wide], np.zeros((1, 1, 48, 48, 3))), 0, 0, 48)
    assert (picture[18:30] == 0).all()
    assert (picture[:18] == 255).all() and (picture[30:] == 255).all()
