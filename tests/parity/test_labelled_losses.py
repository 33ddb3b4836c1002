"""Losses of labelled rows against recordings of SupContrast, cleverhans and TensorFlow Addons.

All in float64; what may differ is the rounding of the recorded program.
"""

from __future__ import annotations

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.losses import pairwise, triplet
from simclr_jax.losses.nt_xent import NO_IMAGE
from simclr_jax.losses.soft_nearest_neighbour import descended, soft_nearest_neighbour
from simclr_jax.losses.supervised_contrastive import supervised_contrastive

pytestmark = pytest.mark.x64

DISTANCE = {True: "angular", False: "squared-L2"}  # by `cosine_distance`
NORMALIZE = {0: "batch", -1: "none", None: "none"}  # by the axis; rows are recorded of length 1


def checked(recording, name, shape):
    """Return a recorded array in float64; its shape must be that of the settings."""
    array = recording.arrays[name]
    assert array.shape == shape, f"{recording.name}: {name} is {array.shape}, not {shape}"
    return array.astype(np.float64)


def labels_of(recording, n):
    """Return the recorded labels `[n]`, which settings may repeat, or None if there are none."""
    labels = recording.arrays.get("labels")
    said = recording.settings.get("labels")
    if labels is not None:
        assert labels.shape == (n,) and (said is None or list(labels) == said), recording.name
        labels = labels.astype(np.int32)
    return labels


def compare(recording, record_parity, found, float32=16 * golden.EPS32):
    """Enter errors relative to the largest entry, or to a least one, of what is found by name.

    `float32` is what may differ if the recorded program computed so.
    """
    for (name, floor), got in found.items():
        wanted = recording.arrays[name]
        narrow = wanted.dtype == np.float32
        limit, precision = (float32, "float32") if narrow else (1e-12, "float64")
        error = golden.error(got, wanted, floor)
        record_parity(recording.spec["kind"], recording.name, error, limit, precision)


def listed(mask):
    """Return the columns of a mask `[n, n]` that each row has, `[n, k]`, padded."""
    columns = [np.flatnonzero(row) for row in mask]
    width = max(map(len, columns))
    return np.array([[*row, *[NO_IMAGE] * (width - len(row))] for row in columns], np.int32)


@pytest.mark.parametrize("recording", golden.cases("supcon"))
def test_supervised_contrastive(recording, record_parity):
    settings = recording.settings
    n, views, dim = (settings[key] for key in ("n", "views", "dim"))
    features = checked(recording, "features", (n, views, dim))
    positives = {}
    if "mask" in recording.arrays:
        assert recording.arrays["mask"].shape == (n, n), recording.name
        positives = {"positives": listed(recording.arrays["mask"]), "example": np.arange(n)}

    @jax.jit
    @jax.value_and_grad
    def loss(features):
        return supervised_contrastive(
            list(jnp.moveaxis(features, 1, 0)),
            labels_of(recording, n),
            temperature=settings["temperature"],
            base_temperature=settings["base_temperature"],
            anchors=settings["contrast_mode"],
            normalize=False,
            **positives,
        )[0]

    value, gradient = loss(features)
    found = {("loss", 1.0): value, ("grad", 0.0): gradient}
    compare(recording, record_parity, found)


def alone(labels):
    """Tell whether a label has one row, whose gradient is officially rounding and nothing else."""
    return 1 in np.unique(labels, return_counts=True)[1]


@pytest.mark.parametrize("recording", golden.cases("soft_nearest_neighbour"))
def test_soft_nearest_neighbour(recording, record_parity):
    settings = recording.settings
    x = checked(recording, "x", (settings["n"], settings["dim"]))
    labels = labels_of(recording, len(x))
    options = {"distance": DISTANCE[settings["cosine_distance"]], "epsilon": settings["eps"]}
    temperature, optimised = settings["temperature"], settings["optimised_temperature"]

    @jax.jit
    @jax.value_and_grad
    def loss(x):
        at = temperature
        if optimised:
            at = temperature / descended([x], labels, temperature=temperature, **options)
        return soft_nearest_neighbour([x], labels, temperature=at, **options)[0]

    value, gradient = loss(x)
    found = {("loss", 1.0): value}
    if not alone(labels):
        found["grad", 0.0] = gradient
    limit = golden.float32_tolerance(recording.spec["sensitivity"])
    compare(recording, record_parity, found, limit)


@pytest.mark.parametrize("recording", golden.cases("pairwise"))
def test_pairwise(recording, record_parity):
    settings, arrays = recording.settings, recording.arrays
    n, margin, same = settings["n"], settings["margin"], arrays["same"]
    assert same.shape == (n,), recording.name
    if "distance" in arrays:  # of pairs that are not averaged; TensorFlow Addons
        loss = functools.partial(pairwise.of_distances, same=same, margin=margin, form="addons")
        distance = checked(recording, "distance", (n,))
        gradients = [jax.jit(jax.grad(lambda d: jnp.sum(loss(d))))(distance)]
        found = {("losses", 1.0): loss(distance), ("grad", 0.0): gradients[0]}
    else:
        a, b = (checked(recording, name, (n, settings["dim"])) for name in ("a", "b"))
        loss = functools.partial(pairwise.pairwise, same=same, margin=margin, form="hadsell")
        value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(a, b)
        found = {("loss", 1.0): value}
        found |= {(f"grad_{of}", 0.0): g for g, of in zip(gradients, "ab", strict=True)}
    compare(recording, record_parity, found)


def triplets(recording, record_parity, law):
    """Compare a triplet loss; where two rows are equal, whose distance has no slope, its value."""
    settings = recording.settings
    x = checked(recording, "x", (settings["n"], settings["dim"]))
    labels, axis = labels_of(recording, len(x)), settings["normalised_over_axis"]
    if axis == -1:
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
    options = {"distance": settings["distance"], "normalize": NORMALIZE[axis]}
    value, gradient = jax.jit(
        jax.value_and_grad(lambda x: law([x], labels, margin=settings["margin"], **options)[0])
    )(x)
    found = {("loss", 1.0): value}
    if len(np.unique(x, axis=0)) == len(x):
        found["grad", 0.0] = gradient
    compare(recording, record_parity, found)


@pytest.mark.parametrize("recording", golden.cases("triplet_semi_hard"))
def test_semi_hard_triplets(recording, record_parity):
    assert not recording.settings["soft"], recording.name
    triplets(recording, record_parity, triplet.semi_hard)


@pytest.mark.parametrize("recording", golden.cases("exemplar_triplet"))
def test_exemplar_triplets(recording, record_parity):
    assert not recording.settings["soft"], recording.name
    triplets(recording, record_parity, triplet.semi_hard)


@pytest.mark.parametrize("recording", golden.cases("triplet_hard"))
def test_hard_triplets(recording, record_parity):
    soft = recording.settings["soft"]

    def law(views, labels, *, margin, **options):
        return triplet.hard(views, labels, margin=None if soft else margin, **options)

    triplets(recording, record_parity, law)
