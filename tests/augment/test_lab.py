"""Lab and back, and which images have colours; the recordings are in tests/parity."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from simclr_jax.augment.lab import has_colours, lab_to_rgb, rgb_to_lab


def test_lab_and_back_is_the_image():
    rgb = np.random.default_rng(0).uniform(size=(500, 3)).astype(np.float32)
    rgb[:8] = np.array(list(np.ndindex(2, 2, 2)))  # the corners, black and white among them
    np.testing.assert_allclose(lab_to_rgb(rgb_to_lab(jnp.asarray(rgb))), rgb, atol=2e-4)


def test_colours_that_no_screen_has_are_cut():
    made = np.asarray(lab_to_rgb(jnp.array([[50.0, 120.0, -120.0], [99.0, -90.0, 90.0]])))
    assert made.min() >= 0 and made.max() <= 1 and np.isfinite(made).all()


def test_an_image_has_colours_if_one_pixel_is_beyond_5():
    ab = np.zeros((4, 6, 6, 2), np.float32)
    ab[0, 3, 2, 1], ab[1, 0, 0, 0], ab[2, 5, 5, 1] = -5.1, 4.9, 5.1
    assert has_colours(jnp.asarray(ab)).tolist() == [True, False, True, False]
