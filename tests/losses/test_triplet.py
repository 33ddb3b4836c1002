"""Triplet losses against their definition, and where a row has no positive or no negative."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import brute_force
from losses.over_devices import assert_defined

from simclr_jax.errors import UserError
from simclr_jax.losses import triplet

LABELS = np.array([0, 1, -1, 0, 2, 1, 0])


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.x64
@pytest.mark.parametrize(
    ("labels", "kind", "law"),
    [
        (LABELS, "L2", "semi_hard"),
        pytest.param(None, "angular", "semi_hard", marks=pytest.mark.slow),
        pytest.param(LABELS, "squared-L2", "hard", marks=pytest.mark.slow),
        (LABELS, "L2", "soft"),
    ],
)
def test_value_and_gradient_of_the_definition(labels, kind, law):
    """An image without label takes no part; without any labels its own views are its class."""
    margin = None if law == "soft" else 0.4
    ours = triplet.semi_hard if law == "semi_hard" else triplet.hard
    defined = brute_force.semi_hard if law == "semi_hard" else brute_force.hard
    assert_defined(
        lambda views: ours(views, labels, margin=margin, distance=kind),
        lambda z: defined(brute_force.unit(z), labels, margin, kind),
        draw(2, 7, 4),
    )


def cost(law, z, labels, **options):
    """Return the loss and its gradient, of rows in one view that are not normalised."""
    options |= {"normalize": "none"}
    one = jax.value_and_grad(lambda z: law([z], labels, **options), has_aux=True)
    (value, metrics), gradient = jax.jit(one)(jnp.asarray(z, jnp.float32))
    return float(value), metrics, np.asarray(gradient)


def test_one_class_alone():
    """Semi-hard: a row is its own negative, at distance 0. Hard: nothing moves."""
    line, labels = [[0.0], [1.0], [3.0]], np.zeros(3, int)
    value, _, gradient = cost(triplet.semi_hard, line, labels, margin=0.5)
    assert value == pytest.approx(0.5 + (1 + 2 + 3) / 3) and np.any(gradient)
    value, _, gradient = cost(triplet.hard, line, labels, margin=0.5)
    assert value == pytest.approx(0.5) and not np.any(gradient)


def test_a_negative_as_far_as_the_positive_is_not_farther():
    """Of row 0 both are at distance 1, and the next negative at 3, which costs nothing."""
    line, labels = [[0.0], [1.0], [-1.0], [3.0]], np.array([0, 0, 1, 1])
    value, _, _ = cost(triplet.semi_hard, line, labels, margin=0.5)
    assert value == (0 + 0 + (0.5 + 4 - 2) + (0.5 + 4 - 3)) / 4


def test_without_pairs_or_labels_there_is_no_loss():
    line = [[0.0], [1.0], [3.0]]
    value, _, gradient = cost(triplet.semi_hard, line, np.arange(3), margin=0.5)
    assert value == 0 and not np.any(gradient)
    value, _, gradient = cost(triplet.hard, line, np.full(3, -1), margin=0.5)
    assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize("law", [triplet.semi_hard, triplet.hard])
def test_equal_embeddings_cost_the_margin(law):
    """And their gradient is finite, though the slope of a distance of 0 is not."""
    same, labels = np.ones((6, 3)), np.arange(6) % 2
    value, metrics, gradient = cost(law, same, labels, margin=0.7)
    assert value == pytest.approx(0.7) and float(metrics["active_triplets"]) == 1
    assert np.all(np.isfinite(gradient))
    if law is triplet.hard:
        assert cost(law, same, labels, margin=None)[0] == pytest.approx(math.log(2))


def test_active_triplets_are_those_that_cost():
    """On a line 0 and 1 are of one class and 2 of another: of two pairs one has no cost."""
    labels = np.array([0, 0, 1])
    value, metrics, _ = cost(triplet.semi_hard, [[0.0], [1.0], [3.0]], labels, margin=1.5)
    assert (value, float(metrics["active_triplets"])) == (pytest.approx(0.25), 0.5)


@pytest.mark.parametrize("wrong", [{"distance": "L1"}, {"normalize": "row"}])
def test_unknown_choices_are_said(wrong):
    with pytest.raises(UserError, match="choose one of"):
        triplet.semi_hard([jnp.ones((2, 2))], margin=1.0, **wrong)
