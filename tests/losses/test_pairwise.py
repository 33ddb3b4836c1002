"""The pairwise margin loss of a whole batch against its definition; that of pairs in parity/."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import brute_force
from losses.over_devices import assert_defined

from simclr_jax import parallel
from simclr_jax.errors import UserError
from simclr_jax.losses import pairwise

LABELS = np.array([0, 1, -1, 0, 2, 1])


@pytest.mark.x64
@pytest.mark.parametrize(
    ("labels", "form", "factor"),
    [(LABELS, "addons", 1), pytest.param(None, "hadsell", 0.5, marks=pytest.mark.slow)],
)
def test_all_pairs_are_the_mean_of_the_means_of_both_kinds(labels, form, factor):
    assert_defined(
        lambda views: pairwise.all_pairs(views, labels, margin=1.3, form=form),
        lambda z: brute_force.all_pairs(brute_force.unit(z), labels, 1.3, factor),
        np.random.default_rng(0).normal(size=(2, 6, 4)),
    )


@pytest.mark.parametrize(("form", "factor"), [("hadsell", 0.5), ("addons", 1)])
def test_equal_embeddings_cost_the_margin_squared_and_do_not_move(form, factor):
    same, labels = jnp.ones((4, 3)), np.array([0, 0, 1, 1])
    one = jax.value_and_grad(
        lambda z: pairwise.all_pairs([z], labels, margin=0.8, form=form)[0],
    )
    value, gradient = jax.jit(one)(same)
    assert float(value) == pytest.approx(factor * 0.64 / 2, rel=1e-5)
    np.testing.assert_array_equal(gradient, 0)


def test_given_pairs_on_eight_devices():
    """The share of each device is of the pairs of all."""
    a, b = np.random.default_rng(0).normal(size=(2, 16, 3)).astype(np.float32)
    same, P = np.arange(16) % 3 == 0, jax.P

    def summed(a, b, same):
        share = pairwise.pairwise(a, b, same, margin=2.0, axis_name=parallel.AXIS)
        return jax.lax.psum(share, parallel.AXIS)

    split = jax.shard_map(
        summed, mesh=parallel.make_mesh(8), in_specs=P(parallel.AXIS), out_specs=P()
    )
    d = np.linalg.norm(a - b, axis=1)
    want = np.mean(np.where(same, d, np.maximum(2 - d, 0)) ** 2) / 2
    np.testing.assert_allclose(jax.jit(split)(a, b, same), want, rtol=1e-6)


def test_an_unknown_form_is_said():
    with pytest.raises(UserError, match='form of the pairwise loss is "chopra"'):
        pairwise.all_pairs([jnp.ones((2, 2))], margin=1.0, form="chopra")
