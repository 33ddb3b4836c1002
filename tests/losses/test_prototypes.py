"""ProtoNCE against its definition; PCL's own numbers are in parity/test_pcl_steps.py."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import brute_force
from losses.over_devices import assert_defined

from simclr_jax.losses.prototypes import Clustering, proto_nce


def clustering(clusters, assigned, negatives):
    prototypes = brute_force.unit(np.random.default_rng(clusters).normal(size=(clusters, 3)))
    concentration = np.linspace(0.2, 0.7, clusters)
    return Clustering(prototypes, concentration, np.array(assigned), np.array(negatives))


@pytest.mark.x64
def test_value_and_gradient_of_the_definition():
    """Images 0 and 2 share a cluster, and so each has its own prototype for a negative once."""
    found = [clustering(6, [1, 2, 1, 5], [0, 3, 4]), clustering(4, [0, 0, 2, 1], [3])]
    assert_defined(
        lambda views: proto_nce(views[0], found),
        lambda z: brute_force.proto_nce(brute_force.unit(z[0]), found),
        np.random.default_rng(0).normal(size=(1, 4, 3)),
    )


def test_equal_prototypes_cost_the_logarithm_of_the_choices():
    same = Clustering(jnp.ones((5, 3)), jnp.full(5, 0.2), jnp.array([0, 1]), jnp.array([2, 3, 4]))
    queries = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    value, _ = jax.jit(lambda q: proto_nce(q, [same]))(queries)
    assert float(value) == pytest.approx(math.log(5), rel=1e-6)


def test_a_prototype_that_another_image_shares_is_right_as_well():
    """Both images are of cluster 1 and next to it: the first of two equal candidates is theirs."""
    both = Clustering(jnp.eye(3), jnp.ones(3), jnp.array([1, 1]), jnp.array([0]))
    _, metrics = jax.jit(proto_nce)(jnp.eye(3)[jnp.array([1, 1])], [both])
    assert float(metrics["prototype_accuracy"]) == 1


def test_without_clusterings_there_is_no_loss():
    with pytest.raises(ValueError, match="at least one clustering"):
        proto_nce(jnp.ones((2, 3)), [])
