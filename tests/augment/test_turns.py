from __future__ import annotations

import numpy as np
import pytest

from simclr_jax.augment.geometry import quarter_turns


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_turn_k_is_k_quarters_counter_clockwise(dtype):
    images = np.random.default_rng(0).integers(0, 256, (3, 7, 7, 3)).astype(dtype)
    turned = np.asarray(quarter_turns(images))
    assert turned.shape == (3, 4, 7, 7, 3) and turned.dtype == dtype
    for image, four in zip(images, turned, strict=True):
        for k in range(4):
            np.testing.assert_array_equal(four[k], np.rot90(image, k))


def test_the_top_right_corner_goes_to_the_top_left():
    image = np.zeros((1, 3, 3, 1), np.uint8)
    image[0, 0, 2] = 1
    corners = [tuple(np.argwhere(turn[..., 0])[0]) for turn in np.asarray(quarter_turns(image))[0]]
    assert corners == [(0, 2), (0, 0), (2, 0), (2, 2)]


@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (4, 4, 3)])
def test_images_that_are_not_square_are_named(shape):
    with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        quarter_turns(np.zeros(shape))
