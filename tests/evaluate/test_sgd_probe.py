"""The papers' probe against Nesterov's rule and the cosine written out in float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simclr_jax.errors import UserError
from simclr_jax.evaluate import sgd_probe

RANDOM = np.random.RandomState(0)
X = RANDOM.normal(size=(50, 6)).astype(np.float32)
Y = RANDOM.randint(0, 3, 50)
STEPS, BATCH = 12, 16


def batches():
    return sgd_probe.shuffled(X, Y, BATCH, STEPS, seed=1)


def by_hand(rate):
    kernel, bias = np.zeros((6, 3)), np.zeros(3)
    velocities = [np.zeros_like(kernel), np.zeros_like(bias)]
    for step, (x, y) in enumerate(batches()):
        outputs = x @ kernel + bias
        likely = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
        error = (likely - np.eye(3)[y]) / len(x)
        now = rate * BATCH / 256 * (1 + math.cos(math.pi * step / STEPS)) / 2
        gradients = [x.T.astype(np.float64) @ error, error.sum(0)]
        for i, (weights, gradient) in enumerate(zip((kernel, bias), gradients, strict=True)):
            velocities[i] = 0.9 * velocities[i] + gradient
            weights -= now * (gradient + 0.9 * velocities[i])
    return kernel, bias


def test_is_nesterov_with_a_cosine_from_zero_for_each_rate():
    rates = (4.0, 40.0)
    found = sgd_probe.fit(batches(), 6, 3, rates, STEPS)
    for i, rate in enumerate(rates):
        kernel, bias = by_hand(rate)
        np.testing.assert_allclose(found.kernel[i], kernel, atol=1e-5)
        np.testing.assert_allclose(found.bias[i], bias, atol=1e-5)
    assert np.abs(kernel).max() > 0.3


def test_every_epoch_has_every_row_once():
    rows = np.arange(50)
    seen = np.concatenate([x for x, _ in sgd_probe.shuffled(rows, rows, 20, 5, seed=0)])
    for epoch in (seen[:50], seen[50:]):
        np.testing.assert_array_equal(np.sort(epoch), rows)
    assert not np.array_equal(seen[:50], seen[50:])


def test_rows_keep_their_labels_and_the_seed_decides_their_order():
    rows = np.arange(50)
    both = np.stack([rows % 7, rows % 3], axis=1)

    def drawn(seed, size=16, steps=10, labels=rows):
        found = list(sgd_probe.shuffled(rows[:, None], labels, size, steps, seed))
        assert len(found) == steps and all(len(x) == len(y) == size for x, y in found)
        return (np.concatenate(part) for part in zip(*found, strict=True))

    x, y = drawn(4)
    np.testing.assert_array_equal(x[:, 0], y)
    generator = np.random.RandomState(4)
    epochs = np.concatenate([generator.permutation(50) for _ in range(4)])
    np.testing.assert_array_equal(y, epochs[:160])
    assert not np.array_equal(y, list(drawn(5))[1])
    x, y = drawn(4, 70, 2, both)  # more than there are
    np.testing.assert_array_equal(y, both[x[:, 0]])
    np.testing.assert_array_equal(np.sort(x[:50, 0]), rows)


def test_several_labels_have_a_loss_of_their_own():
    several = np.stack([Y == 0, Y == 1], axis=1).astype(np.int8)
    several[::2, 1] = -1
    found = sgd_probe.fit(sgd_probe.shuffled(X, several, 50, 1, 0), 6, 2, (256 / 50,), 1)
    # The first step from zero weights: every probability is 1/2.
    gradient = X.T @ ((0.5 - (several == 1)) * (several >= 0)) / 50
    np.testing.assert_allclose(found.kernel[0], -1.9 * gradient, atol=1e-5)


def test_a_rate_that_is_too_high_leaves_the_others_alone():
    found = sgd_probe.fit(batches(), 6, 3, (4.0, 1e39), STEPS)
    np.testing.assert_allclose(found.kernel[0], by_hand(4.0)[0], atol=1e-5)
    assert np.isnan(found.kernel[1]).any()


def test_rates_that_cannot_work_are_named():
    with pytest.raises(UserError, match="not finite at any rate from 1e"):
        sgd_probe.fit(batches(), 6, 3, (1e39, 1e39), STEPS)
    with pytest.raises(UserError, match="a rate is 0"):
        sgd_probe.fit(batches(), 6, 3, (0.0,), STEPS)
