"""Squared errors with weights, and the best single colour, image by image in NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.losses.reconstruction import one_colour, squared_error

pytestmark = pytest.mark.x64


def drawn():
    random = np.random.default_rng(0)
    made, wanted = random.normal(size=(2, 3, 5, 5, 2))
    weight = random.choice([0.0, 1.0, 10.0], size=(3, 5, 5))
    weight[2] = 0
    return made, wanted, weight


def test_each_image_by_itself_over_what_weighs_anything():
    made, wanted, weight = drawn()
    found = np.asarray(squared_error(jnp.asarray(made), jnp.asarray(wanted), jnp.asarray(weight)))
    for i in range(2):
        inside = weight[i] > 0
        error = (made[i] - wanted[i])[inside] ** 2 * weight[i][inside][:, None]
        assert found[i] == pytest.approx(error.mean(), rel=1e-12)
    assert found[2] == 0
    plain = squared_error(jnp.asarray(made), jnp.asarray(wanted))
    np.testing.assert_allclose(plain, ((made - wanted) ** 2).mean((1, 2, 3)), rtol=1e-12)


def test_no_single_colour_is_better():
    _, wanted, weight = drawn()
    arrays = jnp.asarray(wanted), jnp.asarray(weight)
    best = np.asarray(one_colour(*arrays))
    for i in range(2):
        for channel, by in np.ndindex(2, 2):
            colour = np.array([np.average(wanted[i, ..., c], weights=weight[i]) for c in range(2)])
            there = squared_error(
                jnp.full_like(wanted[i : i + 1], colour), *(a[i : i + 1] for a in arrays)
            )
            assert best[i] == pytest.approx(float(there[0]), rel=1e-12)
            colour[channel] += (-0.01, 0.01)[by]
            moved = squared_error(
                jnp.full_like(wanted[i : i + 1], colour), *(a[i : i + 1] for a in arrays)
            )
            assert best[i] < float(moved[0])
    assert best[2] == 0 and np.isfinite(best).all()
