"""The soft nearest neighbour loss against its definition."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import brute_force
from losses.over_devices import assert_defined

from simclr_jax.errors import UserError
from simclr_jax.losses.soft_nearest_neighbour import descended, soft_nearest_neighbour

LABELS = np.array([0, 1, -1, 0, 2, 1])


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.x64
@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("L2", LABELS),
        pytest.param("squared-L2", None, marks=pytest.mark.slow),
        pytest.param("angular", LABELS, marks=pytest.mark.slow),
    ],
)
def test_value_and_gradient_of_the_definition(kind, labels):
    """An image without label takes no part; without any labels its own views are its class."""
    options = {"distance": kind, "temperature": 1.5, "epsilon": 1e-4}
    assert_defined(
        lambda views: soft_nearest_neighbour(views, labels, **options),
        lambda z: brute_force.soft_nearest_neighbour(z, labels, 1.5, kind, 1e-4),
        draw(2, 6, 4),
    )


@pytest.mark.x64
def test_what_all_rows_have_in_common_costs_no_digits():
    """Far from the origin squared distances are small differences of large numbers."""
    z = draw(1, 6, 4)

    def loss(z):
        return soft_nearest_neighbour(list(z), LABELS, temperature=1.5)[0]

    far, near = jax.jit(lambda z: (loss(z + 1e6), loss(z)))(z)
    np.testing.assert_allclose(far, near, rtol=1e-8)


@pytest.mark.x64
def test_a_step_goes_down_the_slope_of_the_temperature():
    z, options = list(draw(1, 6, 4)), {"temperature": 30.0}
    step = jax.jit(lambda z: descended(z, LABELS, t=2.0, rate=0.5, **options))(z)

    def loss(t):
        return brute_force.soft_nearest_neighbour(z[0][None], LABELS, 30.0, "squared-L2", 1e-5, t)

    slope = (loss(2 + 1e-5) - loss(2 - 1e-5)) / 2e-5
    np.testing.assert_allclose(step, 2 - 0.5 * slope, rtol=1e-9)


def test_equal_embeddings_cost_the_share_of_ones_class():
    same, labels = [jnp.ones((6, 3))], np.array([0, 0, 0, 1, 1, -1])
    value, _ = jax.jit(lambda v: soft_nearest_neighbour(v, labels, temperature=2.0))(same)
    want = -(3 * math.log(2 / 4) + 2 * math.log(1 / 4)) / 5
    assert float(value) == pytest.approx(want, rel=1e-4)


def test_nobody_near_and_nobody_labelled_are_finite():
    """All neighbourships vanish: each row costs -log of epsilon, and nothing has a slope."""
    z = 1e3 * jnp.eye(4)
    one = jax.jit(
        jax.value_and_grad(lambda z, y: soft_nearest_neighbour([z], y, temperature=0.1)[0])
    )
    value, gradient = one(z, jnp.zeros(4, int))
    assert float(value) == pytest.approx(-math.log(1e-5), rel=1e-6)
    np.testing.assert_array_equal(gradient, 0)
    value, gradient = one(z, jnp.full(4, -1))
    assert float(value) == 0 and not np.any(gradient)


def test_an_unknown_distance_is_said():
    with pytest.raises(UserError, match=r'distance is "L3".*choose one of L2, squared-L2, angular'):
        soft_nearest_neighbour([jnp.ones((2, 2))], temperature=1.0, distance="L3")
