"""The supervised contrastive loss against its definition, and what it is without labels."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import brute_force
from losses.over_devices import assert_defined, on_one

from simclr_jax.errors import UserError
from simclr_jax.losses.nt_xent import nt_xent
from simclr_jax.losses.supervised_contrastive import supervised_contrastive


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.x64
def test_an_image_without_label_has_its_views_and_is_everybody_elses_negative():
    labels = np.array([1, -1, 0, 1, -1])

    def is_positive(i, j):
        return i == j or (labels[i] == labels[j] != -1)

    assert_defined(
        lambda views: supervised_contrastive(views, labels, temperature=0.3, base_temperature=0.1),
        lambda z: brute_force.supervised_contrastive(brute_force.unit(z), is_positive, 0.3, 0.1),
        draw(2, 5, 4),
    )


@pytest.mark.x64
def test_two_views_without_labels_are_simclr():
    z = draw(2, 6, 4)
    got = on_one(lambda views: supervised_contrastive(views, temperature=0.2), z)
    want = on_one(lambda views: nt_xent(*views, temperature=0.2, scale="mean"), z)
    for i in (0, 2):
        np.testing.assert_allclose(got[i], want[i] * 0.2 / 0.07, rtol=1e-12, atol=1e-14)


@pytest.mark.x64
def test_an_anchor_without_positives_costs_nothing_and_counts():
    """Single views: images 0 and 2 are alone, 1 and 3 have each other."""
    labels = np.array([0, 1, 2, 1])
    options = {"temperature": 0.5, "base_temperature": 0.5}
    z = draw(1, 4, 3)
    value, _, gradient = on_one(lambda v: supervised_contrastive(v, labels, **options), z)
    unit = brute_force.unit(z[0])
    logits = unit @ unit.T / 0.5 + np.where(np.eye(4), -np.inf, 0)
    every = np.log(np.sum(np.exp(logits), 1))
    np.testing.assert_allclose(value, (every[1] + every[3] - 2 * logits[1, 3]) / 4, rtol=1e-12)
    assert np.all(np.isfinite(gradient))


def test_equal_embeddings_cost_the_logarithm_of_the_choices():
    same = [jnp.ones((4, 3))] * 3
    labels = np.array([0, 0, 1, -1])
    value, _ = jax.jit(lambda v: supervised_contrastive(v, labels, temperature=0.1))(same)
    assert float(value) == pytest.approx(0.1 / 0.07 * math.log(11), rel=1e-5)


def test_accuracy_counts_nearest_rows_that_are_positives():
    """Of images 0 to 3 in a plane, the nearest of 0 and 1 are each other, of 2 it is 1, of 3, 2."""
    angles = np.array([0.0, 0.1, 0.3, 0.7])
    z = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.array([0, 0, 1, 1])
    _, metrics = jax.jit(lambda z: supervised_contrastive([z], labels, temperature=0.1))(z)
    assert float(metrics["contrast_accuracy"]) == 0.75


def test_what_cannot_be_is_said():
    z, labels = [jnp.ones((4, 3))], jnp.zeros(4, int)
    with pytest.raises(UserError, match='anchors of the loss is "al"'):
        supervised_contrastive(z, labels, temperature=0.1, anchors="al")
    for wrong in ({"labels": labels, "example": labels}, {}):
        with pytest.raises(ValueError, match="need `example`"):
            supervised_contrastive(z, temperature=0.1, positives=labels[:, None], **wrong)
