"""Maps pooled to about 9000 numbers: the published sides, and means over areas, cell by cell."""

from __future__ import annotations

import numpy as np
import pytest

from simclr_jax.evaluate import maps


@pytest.mark.parametrize(
    "channels, of_map, want",
    [(64, 55, 12), (256, 56, 6), (512, 28, 4), (1024, 14, 3), (2048, 7, 2)],
)
def test_sides_are_those_of_goyal_et_al(channels, of_map, want):
    """ResNet-50 of 224 pixels: 9216, 9216, 8192, 9216 and 8192 numbers (1905.01235, section 6)."""
    assert maps.side(channels, of_map) == want


def test_a_side_is_no_larger_than_the_map_and_never_none():
    assert maps.side(16, 8) == 8 and maps.side(100_000, 8) == 1 and maps.side(16, 8, 64) == 2


@pytest.mark.parametrize("height, width, cells", [(8, 8, 4), (8, 8, 3), (7, 7, 5), (6, 9, 4)])
def test_a_cell_is_the_mean_over_its_area(height, width, cells):
    """Each pixel is cut into as many parts as there are cells, so that cells hold whole ones."""
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    fine = x.repeat(cells, 1).repeat(cells, 2)  # [2, cells * height, cells * width, 3]
    want = fine.reshape(2, cells, height, cells, width, 3).mean((2, 4)).reshape(2, -1)
    found = maps.pooled(x, cells * cells * 3)
    assert found.shape == (2, cells * cells * 3)
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_the_whole_map_is_left_as_it_is():
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(maps.pooled(x, 10**6), x.reshape(2, -1), atol=1e-7)
