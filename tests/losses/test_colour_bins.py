"""Colours as distributions over bins: what the recordings do not say."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.losses import colour_bins
from simclr_jax.losses.colour_bins import BINS

pytestmark = pytest.mark.x64


def test_frequencies_are_means_of_the_distributions():
    ab = np.random.default_rng(0).uniform(-40, 40, size=(2, 3, 4, 2))
    found = colour_bins.soft_encoded(jnp.asarray(ab), neighbours=6, sigma=3.0)
    want = np.zeros((2, len(BINS)))
    for i, y, x in np.ndindex(2, 3, 4):
        distance = ((ab[i, y, x] - BINS) ** 2).sum(1)
        nearest = np.argsort(distance, kind="stable")[:6]
        share = np.exp(-distance[nearest] / (2 * 3.0**2))
        want[i, nearest] += share / share.sum() / 12
    np.testing.assert_allclose(found.spread(), want, atol=1e-12)


def test_gray_which_is_as_near_to_several_bins_has_ten_of_them():
    found = colour_bins.soft_encoded(jnp.zeros((1, 2)))
    assert BINS[int(found.bins[0, 0])].tolist() == [0, 0]
    assert len(set(found.bins[0].tolist())) == 10 and float(found.share.sum()) == pytest.approx(1)


def test_a_rare_colour_weighs_more_and_one_that_never_occurs_is_no_nan():
    prior = np.zeros(len(BINS))
    prior[:3] = 0.7, 0.2, 0.1
    weights = np.asarray(colour_bins.rebalancing(jnp.asarray(prior), uniform=0.0))
    np.testing.assert_allclose(weights[:3] * prior[:3], 1 / 3)  # alpha 1: all are worth the same
    assert np.isfinite(weights).all() and not weights[3:].any()
    even = np.asarray(colour_bins.rebalancing(jnp.asarray(prior), alpha=0.0))
    np.testing.assert_allclose(even[:3], 1)
    mixed = np.asarray(colour_bins.rebalancing(jnp.asarray(prior), uniform=0.5))
    want = 1 / (0.5 * prior[:3] + 0.5 / 3)
    np.testing.assert_allclose(mixed[:3], want / (prior[:3] @ want))


def test_a_distribution_becomes_its_mean_or_its_likeliest_colour():
    logits = np.full(len(BINS), -1e9)
    logits[[5, 9]] = 0.0, np.log(3)
    mean = colour_bins.annealed_mean(jnp.asarray(logits), 1.0)
    np.testing.assert_allclose(mean, (BINS[5] + 3 * BINS[9]) / 4)
    np.testing.assert_allclose(colour_bins.annealed_mean(jnp.asarray(logits), 0.02), BINS[9])
