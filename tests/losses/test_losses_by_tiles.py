"""What all losses over a batch with views or labels must hold to: devices, tiles, memory, types."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses.over_devices import DEVICES, assert_equal, on_eight, on_one

from simclr_jax import parallel
from simclr_jax.losses import pairwise, triplet
from simclr_jax.losses.false_negatives import false_negative_cancellation
from simclr_jax.losses.prototypes import Clustering, proto_nce
from simclr_jax.losses.soft_nearest_neighbour import descended, soft_nearest_neighbour
from simclr_jax.losses.supervised_contrastive import supervised_contrastive

CLASSES = 4


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def labels_of(n):
    """Return labels of which some are none, and one has a single image."""
    labels = np.arange(n, dtype=np.int32) % CLASSES
    labels[::5] = -1
    labels[1] = CLASSES
    return labels


def fnc(views, labels, cancel="attraction", kept=False, **options):
    """Find false negatives among other images; with `kept` in a memory of old keys."""
    memory = {}
    if kept:
        keys = [jnp.roll(view, 1, axis=1) for view in views]
        old = jnp.asarray(draw(3 * CLASSES, views[0].shape[1], seed=5))
        number = jnp.arange(3 * CLASSES) % (CLASSES + 2) - 1
        memory = {"keys": keys, "memory": old, "kept": number, "example": labels}
    return false_negative_cancellation(
        views, temperature=0.3, top_k=5, threshold=0.3, cancel=cancel, **memory, **options
    )


def proto(views, labels, **options):
    """Find the prototypes of `labels`, the clusters, -1 being one of them too."""
    d = views[0].shape[1]
    clusterings = [
        Clustering(
            jnp.asarray(draw(clusters, d, seed=clusters) / d**0.5),
            jnp.linspace(0.1, 0.4, clusters),
            labels % clusters,
            jnp.array([4, 3, 1]),
        )
        for clusters in (7, 9)
    ]
    return proto_nce(views[0], clusterings, **options)


def listed(views, labels, **options):
    """Supervised contrast with lists of positives that are not mutual."""
    example = labels + 100
    positives = jnp.stack([example, 101 + (labels + 1) % 3, jnp.full_like(labels, -1)], axis=1)
    return supervised_contrastive(
        views, positives=positives, example=example, temperature=0.3, **options
    )


def tuned(views, labels, **options):
    t = descended(views, labels, temperature=9.0, **options)
    return soft_nearest_neighbour(views, labels, temperature=9.0 / t, **options)


partial = functools.partial
LOSSES = {
    "supcon": partial(supervised_contrastive, temperature=0.2),
    "supcon_one": partial(supervised_contrastive, temperature=0.2, anchors="one"),
    "supcon_listed": listed,
    "soft_nearest_neighbour": partial(soft_nearest_neighbour, temperature=2.0),
    "soft_nearest_neighbour_tuned": tuned,
    "semi_hard": partial(triplet.semi_hard, margin=0.6),
    "semi_hard_over_batch": partial(
        triplet.semi_hard, margin=0.3, distance="squared-L2", normalize="batch"
    ),
    "hard": partial(triplet.hard, margin=0.4, distance="angular"),
    "hard_soft": partial(triplet.hard, margin=None, normalize="none"),
    "pairs": partial(pairwise.all_pairs, margin=1.2),
    "attraction": fnc,
    "elimination": partial(fnc, cancel="elimination"),
    "attraction_with_memory": partial(fnc, kept=True),
    "proto_nce": proto,
}
# One of each file; the others are options of these.
USUAL = {"supcon", "soft_nearest_neighbour_tuned", "semi_hard", "pairs", "attraction", "proto_nce"}


def each(usual):
    """Return the parametrisation over all losses, those that are not `usual` marked slow."""
    names = [n if n in usual else pytest.param(n, marks=pytest.mark.slow) for n in LOSSES]
    return pytest.mark.parametrize("name", names)


@pytest.mark.x64
@each(USUAL)
def test_eight_devices_and_their_tiles_give_the_value_and_gradient_of_one(name):
    """In tiles of two images, and one that is left of the three of a device."""
    z, labels = draw(2, 3 * DEVICES, 6), labels_of(3 * DEVICES)
    function = functools.partial(LOSSES[name], axis_name=parallel.AXIS, at_once=2)
    assert_equal(on_eight(function, z, labels), on_one(LOSSES[name], z, labels))


@each(USUAL)
def test_tiles_hold_no_matrix_of_all_pairs(name):
    """What the compiled program holds is a few tiles, and grows with the number of images."""
    n, rows = 512, 4
    z = jax.ShapeDtypeStruct((2, n, 8), jnp.float32)

    def value(z, labels):
        return LOSSES[name](list(z), labels, at_once=rows)[0]

    one = jax.jit(jax.grad(value)).lower(z, jnp.asarray(labels_of(n)))
    held = one.compile().memory_analysis().temp_size_in_bytes
    assert held < n * 2 * n * 4 / 2, held


@each({"supcon", "proto_nce"})
def test_bfloat16_is_reduced_in_float32(name):
    z, labels = jnp.asarray(draw(2, 16, 8), jnp.bfloat16), labels_of(16)
    both = jax.jit(lambda *zs: [LOSSES[name](list(z), labels) for z in zs])
    (got, metrics), (want, _) = both(z, z.astype(jnp.float32))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert all(np.isfinite(value) for value in metrics.values())
