"""Where patches lie, what is cut, what is taken away; and the permutations of a jigsaw."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from simclr_jax.augment.patches import NOISE, Grid, cut, mosaic, neighbours, one_colour
from simclr_jax.augment.permutations import NOROOZI, far_apart
from simclr_jax.models.inputs import standardised

GRID = Grid(2, 2, (3, 3), (6, 6), 2)  # cells of 5, a gap of 1: 11 pixels
SIZE = (14, 12)


@pytest.fixture(scope="module")
def corners():
    draw = jax.jit(jax.vmap(lambda key: GRID.drawn(key, SIZE)))
    return np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))  # [draws, 2, 2, 2]


def test_patches_lie_anywhere_in_their_cells_and_these_anywhere_in_the_image(corners):
    top, left = corners[..., 0], corners[..., 1]
    assert top.min() == left.min() == 0
    assert (top.max(), left.max()) == (14 - 3, 12 - 3)
    # Of neighbours: 6 pixels apart, and 2 either way; so a gap of 1 at least.
    for apart in (top[:, 1] - top[:, 0], left[:, :, 1] - left[:, :, 0]):
        values, counts = np.unique(apart, return_counts=True)
        assert values.tolist() == [4, 5, 6, 7, 8]
        share = np.array([1, 2, 3, 2, 1]) / 9  # of two uniform shifts of 0, 1 or 2
        np.testing.assert_allclose(counts / apart.size, share, atol=0.02)
    first = np.unique(top[:, 0, 0], return_counts=True)[1] / len(top)
    np.testing.assert_allclose(first, np.array([1, 2, 3, 3, 2, 1]) / 12, atol=0.03)


def test_what_is_cut_is_what_lies_there(corners):
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    patches = np.asarray(cut(image, corners[7], GRID.patch))
    for patch, (top, left) in zip(patches, corners[7].reshape(-1, 2), strict=True):
        np.testing.assert_array_equal(patch, image[top : top + 3, left : left + 3])


def test_a_grid_larger_than_the_image_is_named():
    with pytest.raises(ValueError, match=r"grid of \(11, 11\) pixels .* image of \(14, 10\)"):
        GRID.drawn(jax.random.key(0), (14, 10))


def test_of_three_colours_one_is_kept_and_standardisation_leaves_it_alone():
    random = np.random.default_rng(0)
    patch = random.uniform(0.2, 0.9, (32, 32, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 300)
    made = np.asarray(jax.vmap(one_colour, (0, None))(keys, patch))
    kept = (made == patch).all((1, 2))  # [300, 3]
    assert (kept.sum(1) == 1).all() and (kept.sum(0) > 70).all()
    for some, which in zip(made[:9], kept[:9].argmax(1), strict=True):
        others = np.delete(some, which, -1) - patch[..., which].mean()
        assert NOISE / 2.5 < np.abs(others).max() <= NOISE / 2 + 1e-6
        assert abs(others.mean()) < 1e-4  # not of one value
    shown = np.asarray(standardised(made[0]))
    deviation = shown.std((0, 1))
    assert np.sort(deviation)[1] < 0.02 * deviation.max()
    assert (made.reshape(300, -1).std(0).min()) > 0  # each patch has noise of its own


def test_a_mosaic_has_its_pieces_row_by_row_with_white_between():
    pieces = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1, 1) / 4 * np.ones((2, 1, 2, 2, 1))
    picture = np.asarray(mosaic(pieces, 2))[0, ..., 0]
    white = np.ones((2, 1))
    row = np.hstack([np.full((2, 2), 0.0), white, np.full((2, 2), 0.25)])
    last = np.hstack([np.full((2, 2), 0.5), white, np.ones((2, 2))])
    np.testing.assert_array_equal(picture, np.vstack([row, np.ones((1, 5)), last]))


@pytest.mark.parametrize("rows, columns, pairs", [(1, 1, 0), (1, 2, 2), (2, 2, 12), (3, 3, 40)])
def test_neighbours_are_paired_both_ways(rows, columns, pairs):
    found = neighbours(rows, columns)
    assert found.patches.shape == (pairs, 2) and len(set(map(tuple, found.patches))) == pairs
    named = {tuple(pair): label for pair, label in zip(*found, strict=True)}
    assert all(label + named[second, first] == 7 for (first, second), label in named.items())


def test_the_permutations_that_the_authors_published():
    """As they are described: the first, the smallest and the mean distance of a hundred."""
    found = far_apart(9, 100, NOROOZI, "matlab")
    assert found[0].tolist() == [7, 6, 5, 8, 4, 3, 2, 1, 0]
    assert found[3].tolist() == [5, 4, 8, 6, 1, 0, 7, 2, 3]
    assert (np.sort(found, 1) == np.arange(9)).all()
    apart = (found[:, None] != found).sum(-1)[np.triu_indices(100, 1)]
    assert apart.min() == 2 and apart.mean() == pytest.approx(8.08, abs=0.005)


@pytest.mark.parametrize("tiles, count", [(4, 25), (4, 0), (10, 5)])
def test_permutations_that_there_are_not(tiles, count):
    with pytest.raises(ValueError, match=f"no {count} permutations of {tiles} tiles"):
        far_apart(tiles, count)


def test_all_permutations_of_four_tiles_are_all():
    for order in ("lexicographic", "matlab"):
        assert len(set(map(bytes, far_apart(4, 24, 3, order)))) == 24
