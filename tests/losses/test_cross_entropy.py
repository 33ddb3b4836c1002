"""Cross entropy with labels against its definition, on one device and on eight."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from simclr_jax import parallel
from simclr_jax.losses.cross_entropy import NO_LABEL, binary_cross_entropy, cross_entropy

DEVICES = 8
ROWS, CLASSES = 2 * DEVICES, 5


def definition(logits, labels):
    """Return loss, accuracy and the gradient `[n, classes]`, row by row."""
    known = [i for i, label in enumerate(labels) if label != NO_LABEL]
    total, right, gradient = 0.0, 0, np.zeros_like(logits)
    for i in known:
        probabilities = np.exp(logits[i]) / sum(np.exp(logits[i]))
        total -= math.log(probabilities[labels[i]])
        right += max(range(len(logits[i])), key=lambda c, i=i: logits[i][c]) == labels[i]
        gradient[i] = probabilities
        gradient[i][labels[i]] -= 1
    return total / len(known), right / len(known), gradient / len(known)


def draw(unlabelled=()):
    random = np.random.default_rng(0)
    logits, labels = 3 * random.normal(size=(ROWS, CLASSES)), random.integers(CLASSES, size=ROWS)
    labels[list(unlabelled)] = NO_LABEL
    labels[3] = np.argmax(logits[3])  # right at least once, and wrong at least once
    labels[4] = np.argmin(logits[4])
    return logits, labels.astype(np.int32)


def sharded(logits, labels, **options):
    """Return the sums of loss and accuracy over eight devices, and the gradient."""

    def local(logits, labels):
        shares, gradient = jax.value_and_grad(
            lambda x: cross_entropy(x, labels, axis_name=parallel.AXIS, **options), has_aux=True
        )(logits)
        return lax.psum(shares, parallel.AXIS), gradient

    P, mesh = jax.P, parallel.make_mesh(DEVICES)
    specs = {"in_specs": P(parallel.AXIS), "out_specs": (P(), P(parallel.AXIS))}
    (loss, right), gradient = jax.jit(jax.shard_map(local, mesh=mesh, **specs))(logits, labels)
    return loss, right, gradient


@pytest.mark.x64
@pytest.mark.parametrize("unlabelled", [(), (0, 1, 5, 14)], ids=["all", "some"])
def test_definition_on_one_device_and_on_eight(unlabelled):
    """Both rows of the first device have no label: a mean of the devices' means would differ."""
    logits, labels = draw(unlabelled)
    want = definition(logits, labels)
    on_one = jax.jit(jax.value_and_grad(cross_entropy, has_aux=True))
    (loss, right), gradient = on_one(logits, labels)
    assert 0 < right < 1
    for found in ((loss, right, gradient), sharded(logits, labels)):
        for a, b in zip(found, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)
        assert not np.any(np.asarray(found[2])[list(unlabelled)])


@pytest.mark.x64
def test_over_all_rows_a_row_weighs_the_same_whatever_the_others_have():
    logits, labels = draw()
    parts = []
    for unlabelled in (range(0, 10), range(10, ROWS)):
        some = labels.copy()
        some[list(unlabelled)] = NO_LABEL
        parts.append(cross_entropy(logits, some, over_all_rows=True)[0])
        on_eight = sharded(logits, some, over_all_rows=True)[0]
        np.testing.assert_allclose(on_eight, parts[-1], rtol=1e-13)
    np.testing.assert_allclose(sum(parts), definition(logits, labels)[0], rtol=1e-13)


def test_without_any_label_there_is_nothing_to_learn():
    logits = jnp.asarray(draw()[0], jnp.float32)
    labels = np.full(ROWS, NO_LABEL, np.int32)
    for loss, right, gradient in (
        (*cross_entropy(logits, labels), jax.grad(lambda x: cross_entropy(x, labels)[0])(logits)),
        sharded(logits, labels),
    ):
        assert float(loss) == 0 and float(right) == 0 and not np.any(gradient)


def test_equal_logits_cost_the_logarithm_of_the_classes():
    for height in (0.0, 80.0, -80.0):
        loss, _ = cross_entropy(jnp.full((ROWS, CLASSES), height), draw()[1])
        assert float(loss) == pytest.approx(math.log(CLASSES), rel=1e-5)


def test_bfloat16_is_reduced_in_float32():
    logits, labels = draw()
    logits = jnp.asarray(logits, jnp.bfloat16)
    loss, _ = cross_entropy(logits, labels)
    assert loss.dtype == jnp.float32
    want, _, _ = definition(np.asarray(logits, np.float64), labels)
    np.testing.assert_allclose(loss, want, rtol=1e-6)


@pytest.mark.x64
def test_several_labels_by_definition_on_one_device_and_on_eight():
    """One row has no label at all, and some classes do not count in some rows."""
    logits, _ = draw()
    labels = (np.random.default_rng(1).random(logits.shape) < 0.4).astype(np.int8)
    labels[0], labels[5, 2:], labels[14, 0] = NO_LABEL, NO_LABEL, NO_LABEL
    total, right, gradient = 0.0, 0, np.zeros_like(logits)
    for i, c in zip(*np.nonzero(labels != NO_LABEL), strict=True):
        probability = 1 / (1 + math.exp(-logits[i, c]))
        total -= math.log(probability if labels[i, c] else 1 - probability)
        right += (probability > 0.5) == labels[i, c]
        gradient[i, c] = probability - labels[i, c]
    rows = ROWS - 1
    want = total / rows, right / (labels != NO_LABEL).sum(), gradient / rows

    def local(logits, labels):
        shares, gradient = jax.value_and_grad(
            lambda x: binary_cross_entropy(x, labels, axis_name=parallel.AXIS), has_aux=True
        )(logits)
        return lax.psum(shares, parallel.AXIS), gradient

    P, mesh = jax.P, parallel.make_mesh(DEVICES)
    specs = {"in_specs": P(parallel.AXIS), "out_specs": (P(), P(parallel.AXIS))}
    of_eight = jax.jit(jax.shard_map(local, mesh=mesh, **specs))(logits, labels)
    of_one = jax.jit(jax.value_and_grad(binary_cross_entropy, has_aux=True))(logits, labels)
    for (loss, share), moved in (of_one, of_eight):
        for a, b in zip((loss, share, moved), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)
