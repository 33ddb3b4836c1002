"""False negative cancellation: without any found, with all equal, and with a memory by images."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import brute_force
from losses.over_devices import assert_defined, on_one

from simclr_jax.errors import UserError
from simclr_jax.losses.false_negatives import false_negative_cancellation
from simclr_jax.losses.nt_xent import nt_xent


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.x64
@pytest.mark.parametrize(
    "cancel", ["attraction", pytest.param("elimination", marks=pytest.mark.slow)]
)
def test_none_found_is_nt_xent(cancel):
    options = {"temperature": 0.3, "top_k": 5, "threshold": 1.0, "cancel": cancel}
    z = draw(2, 5, 4)
    got = on_one(lambda views: false_negative_cancellation(views, **options), z)
    want = on_one(lambda views: nt_xent(*views, temperature=0.3), z)
    for i in (0, 2):
        np.testing.assert_allclose(got[i], want[i], rtol=1e-12, atol=1e-15)
    assert got[1]["false_negatives"] == 0


@pytest.mark.x64
@pytest.mark.parametrize(
    "cancel", [pytest.param("attraction", marks=pytest.mark.slow), "elimination"]
)
def test_a_memory_that_says_of_whom_it_is(cancel):
    """Rows of no image and of the anchor's own play no part; the others are candidates."""
    z, keys, old = draw(2, 4, 3), draw(2, 4, 3, seed=1), draw(6, 3, seed=2)
    keys, old = brute_force.unit(keys), brute_force.unit(old)
    old[[1, 4]] = 0.99 * keys[0, [2, 3]]  # of images that are no longer in the batch, and near
    number, example = np.array([-1, 8, -1, -1, 9, -1]), np.arange(4)
    options = {"temperature": 0.4, "top_k": 3, "threshold": 0.4, "cancel": cancel}

    def ours(views, kept):
        return false_negative_cancellation(
            views, keys=list(keys), memory=old, kept=kept, example=example, **options
        )

    rows = [old[k] for k in np.flatnonzero(number >= 0)]
    assert_defined(
        lambda views: ours(views, number),
        lambda z: brute_force.false_negative_cancellation(
            brute_force.unit(z), *options.values(), keys, rows
        ),
        z,
    )
    own = np.where(number == 8, 2, number)  # the nearest of image 2's candidates is now its own
    assert on_one(lambda v: ours(v, own), z)[0] != on_one(lambda v: ours(v, number), z)[0]


@pytest.mark.x64
def test_keys_carry_no_gradient():
    z, keys = draw(2, 4, 3), draw(2, 4, 3, seed=1)

    def loss(keys):
        options = {"temperature": 0.4, "top_k": 3, "threshold": 0.4, "keys": list(keys)}
        return false_negative_cancellation(list(z), **options)[0]

    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(keys), 0)


@pytest.mark.parametrize(("cancel", "left"), [("attraction", 11), ("elimination", 11 - 2)])
def test_equal_embeddings_cost_twice_the_logarithm_of_the_choices(cancel, left):
    same = [jnp.ones((4, 3))] * 3
    value, metrics = jax.jit(
        lambda views: false_negative_cancellation(
            views, temperature=0.1, top_k=2, threshold=0.9, cancel=cancel
        )
    )(same)
    assert float(value) == pytest.approx(2 * math.log(left), rel=1e-5)
    assert float(metrics["loss_mean"]) == pytest.approx(math.log(left), rel=1e-5)
    assert float(metrics["false_negatives"]) == 2


def test_what_cannot_be_is_said():
    z, rows = [jnp.ones((4, 3))] * 2, jnp.ones((5, 3))
    options = {"temperature": 0.1, "top_k": 2, "threshold": 0.9}
    with pytest.raises(UserError, match=r'"atraction".*did you mean "attraction"'):
        false_negative_cancellation(z, cancel="atraction", **options)
    for views, keys in ((z[:1], None), (z, z[:1])):
        with pytest.raises(ValueError, match="at least two, and a key each"):
            false_negative_cancellation(views, keys=keys, **options)
    for wrong in ({"memory": rows}, {"keys": z, "memory": rows, "kept": jnp.zeros(5, int)}):
        with pytest.raises(ValueError, match="a memory needs `keys`"):
            false_negative_cancellation(z, **options, **wrong)
