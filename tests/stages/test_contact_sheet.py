"""The contact sheet, decoded and looked at where its tiles must be."""

from __future__ import annotations

import io
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from simclr_jax import recipes
from simclr_jax.augment.geometry import quarter_turns
from simclr_jax.data.sources import Images
from simclr_jax.stages import views
from simclr_jax.stages.contact_sheet import GAP, contact_sheet
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train.loggers import Loggers
from simclr_jax.train.stage import Seen


def opened(path, fresh=True):
    """Return what a drawing needs of a workdir: its loggers have not begun."""
    path = epath.Path(path)
    return SimpleNamespace(path=path, fresh=fresh, loggers=Loggers(path))


def sheet(originals, views):
    views = views if isinstance(views, dict) else {"views": views}
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
    views = np.ones((3, 2, size, size, channels)) * levels[1:].T[:, :, None, None, None] / 255
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


def test_smaller_views_are_to_scale_and_beside_one_another():
    """Two views of 96 above five of 40: two of those in a row, three rows."""
    views = {
        "little": np.ones((2, 5, 40, 40, 3)) * (np.arange(10).reshape(2, 5, 1, 1, 1) + 10) / 255,
        "whole": np.ones((2, 2, 96, 96, 3)) * (np.arange(4).reshape(2, 2, 1, 1, 1) + 1) / 255,
    }
    picture = sheet(np.zeros((2, 96, 96, 3), np.uint8), views)
    little = 40
    top = 2 * GAP + 3 * (96 + GAP) + GAP
    assert picture.shape == (top + 3 * (little + GAP), 2 * 96 + 4 * GAP + 2 * GAP, 3)
    for column in range(2):
        left = GAP + column * (96 + 4 * GAP)  # further apart, so that rows can be told apart
        for view in range(2):
            y = 2 * GAP + (1 + view) * (96 + GAP)
            shown = picture[y : y + 96, left : left + 96]
            np.testing.assert_array_equal(shown, 1 + 2 * column + view)
        for view in range(5):
            y, x = top + view // 2 * (little + GAP), left + view % 2 * (little + GAP)
            shown = picture[y : y + little, x : x + little]
            np.testing.assert_array_equal(shown, 10 + 5 * column + view)
        # The place of a sixth is empty.
        assert (picture[y : y + little, x + little : left + 96] == 255).all()


@pytest.mark.parametrize("size, shown", [(16, 24), (4, 6), (96, 48), (24, 36)])
def test_views_keep_their_scale_but_not_below_half_the_largest_or_their_own(size, shown):
    """Beside the largest of 32, shown at 48, or of 224, shown at 96."""
    largest, side = (224, 96) if size == 96 else (32, 48)
    views = {"a": np.zeros((1, 1, largest, largest, 3)), "b": np.zeros((1, 1, size, size, 3))}
    picture = sheet(np.zeros((1, 8, 8, 3), np.uint8), views)
    assert picture.shape[0] == 2 * (side + GAP) + shown + 4 * GAP
    dark = (picture[2 * (side + GAP) + 3 * GAP :] == 0).all(-1)
    assert dark.sum() == shown**2


@pytest.mark.parametrize("channels", [2, 4])
def test_a_group_that_is_no_picture_is_left_out(channels):
    """It would have been the largest, and the first."""
    random = np.random.RandomState(0)
    originals = random.randint(0, 256, (2, 20, 20, 3)).astype(np.uint8)
    drawn = {"b": random.rand(2, 2, 32, 32, 3), "c": random.rand(2, 1, 16, 16, 1)}
    planes = {"a": random.rand(2, 3, 64, 64, channels)}
    np.testing.assert_array_equal(sheet(originals, planes | drawn), sheet(originals, drawn))


@pytest.mark.parametrize("size, side", [(8, 48), (64, 64), (300, 96)])
def test_without_pictures_the_images_stand_alone(size, side):
    levels = np.array([10, 60, 110])
    originals = np.full((3, size, size - 2, 3), levels[:, None, None, None], np.uint8)
    for none in ({}, {"a": np.zeros((3, 2, 32, 32, 2))}):
        picture = sheet(originals, none)
        assert picture.shape == (side + 2 * GAP, 3 * (side + GAP) + GAP, 3)
        for column, level in enumerate(levels):
            middle = tile(picture, 0, column, side)[:, side // 8 : -side // 8]
            assert (middle == level).all()


def test_values_beyond_black_and_white_are_clipped():
    values = np.array([-300.0, -0.02, 0.0, 0.5, 1.0, 1.02, 300.0])
    views = np.ones((1, 7, 48, 48, 1)) * values[None, :, None, None, None]
    picture = sheet(np.zeros((1, 8, 8, 1), np.uint8), views)
    shown = [tile(picture, row, 0, 48) for row in range(1, 8)]
    assert [np.unique(x).tolist() for x in shown] == [[0]] * 3 + [[128]] + [[255]] * 3


def test_answers_stand_below_their_image_in_lines_that_fit_its_column():
    views, white = np.zeros((3, 1, 96, 96, 1)), np.zeros((3, 20, 20, 1), np.uint8)
    plain = sheet(white, views)
    answers = ["", "turned", "turned by a number of degrees"]
    picture = np.asarray(Image.open(io.BytesIO(contact_sheet(white, {"a": views}, answers))))
    np.testing.assert_array_equal(picture[: len(plain)], plain)
    inked = (picture[len(plain) :] < 128).all(-1)  # [h, w]
    columns = [inked[:, GAP + c * (96 + GAP) :][:, :96] for c in range(3)]
    assert sum(column.sum() for column in columns) == inked.sum() > 0
    lines = [np.diff(column.any(1).astype(int), prepend=0).clip(0).sum() for column in columns]
    assert lines[:2] == [0, 1] and lines[2] > 1


def recipe():
    c = recipes.base()
    c.data.image_size = 32
    with c.unlocked():
        c.augment.views.local = recipes.view()
    c.augment.views.local.update(group="local", size=16, copies=4, area_max=0.3)
    return c


def test_a_run_whose_network_looks_at_no_picture_shows_its_images(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    source, c = Images(pixels, None, 0), recipe()
    inputs = Inputs(c, source, source)

    def look(batch):
        return {"planes": views.view_maker(c)(batch)["local"][..., :2]}

    views.draw(inputs, opened(tmp_path), look)
    picture = np.asarray(Image.open(tmp_path / "views.png"))
    np.testing.assert_array_equal(picture, sheet(inputs.originals(12), {}))


@pytest.mark.parametrize("turned", [False, True])
def test_a_run_shows_what_the_network_looks_at(tmp_path, turned):
    pixels = np.random.RandomState(0).randint(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    source, c = Images(pixels, None, 0), recipe()
    workdir = opened(tmp_path)

    def look(batch):
        """The first local view of each image in its four orientations."""
        return {"turns": quarter_turns(views.view_maker(c)(batch)["local"][:, 0])}

    inputs = Inputs(c, source, source)
    views.draw(inputs, workdir, look if turned else views.view_maker(c))
    picture = np.asarray(Image.open(tmp_path / "views.png"))
    made = jax.tree.map(np.asarray, jax.jit(views.view_maker(c))(inputs.first(12)))
    shown = {"turns": np.stack([np.rot90(made["local"][:, 0], k, (1, 2)) for k in range(4)], 1)}
    expected = sheet(inputs.originals(12), shown if turned else made)
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).max() <= 1  # rounded to 8 bits


def test_a_method_is_shown_what_was_looked_at_and_the_keys_it_was_made_with(tmp_path):
    source, c = Images(np.zeros((20, 32, 32, 3), np.uint8), None, 0), recipe()
    looked = []

    def look(batch):
        return {"planes": views.view_maker(c)(batch)["local"][..., :2]}

    def show(made, batch):
        looked.append((made["planes"].shape, np.asarray(batch["position"]).tolist()))
        return Seen({"gray": made["planes"][..., :1]}, ["yes"] * 12)

    inputs = Inputs(c, source, source)
    views.draw(inputs, opened(tmp_path), look, show)
    assert looked == [((12, 4, 16, 16, 2), [[0, i] for i in range(12)])]
    gray = np.asarray(look(inputs.first(12))["planes"][..., :1])
    expected = contact_sheet(inputs.originals(12), {"gray": gray}, ["yes"] * 12)
    assert (tmp_path / "views.png").read_bytes() == expected


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "continued"])
def test_a_picture_of_an_attempt_that_saved_nothing_is_drawn_anew(tmp_path, fresh):
    """The next attempt may have another recipe; a run that continues keeps its own."""
    source, c = Images(np.zeros((20, 32, 32, 3), np.uint8), None, 0), recipe()
    workdir = opened(tmp_path, fresh)
    (tmp_path / "views.png").write_bytes(b"earlier")
    views.draw(Inputs(c, source, source), workdir, lambda batch: {})
    assert ((tmp_path / "views.png").read_bytes() == b"earlier") == (not fresh)
