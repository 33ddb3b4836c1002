"""The probe and its choice of penalty against scikit-learn, which chooses and fits by itself."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from simclr_jax.errors import UserError
from simclr_jax.evaluate import linear_probe, logistic

IMAGES, DIGITS = load_digits(return_X_y=True)
ROWS = 400
# Features as an encoder may give them: far from 0, and in units of their own.
X, Y = (7 + 0.01 * IMAGES[:ROWS]).astype(np.float32), DIGITS[:ROWS].astype(np.int32)
TEST, TEST_LABELS = (7 + 0.01 * IMAGES[ROWS:800]).astype(np.float32), DIGITS[ROWS:800]
PENALTIES = (1e-1, 1e1, 1e3)


@functools.cache
def probe():
    fitting, choosing = linear_probe.split(Y, seed=0)
    return linear_probe.fit(X, Y, 10, fitting, choosing, linear_probe.accuracy, PENALTIES)


def in_units(x):
    """Centre features and bring them to mean square 1, by one number."""
    wide = X.astype(np.float64)
    unit = np.sqrt(np.mean((wide - wide.mean(0)) ** 2))
    return (x.astype(np.float64) - wide.mean(0)) / unit


def peer(penalty, rows):
    regression = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=10000)
    return regression.fit(in_units(X)[rows], Y[rows])


def test_chooses_and_predicts_what_scikit_learn_does():
    fitting, choosing = linear_probe.split(Y, seed=0)
    scores = {p: peer(p, fitting).score(in_units(X)[choosing], Y[choosing]) for p in PENALTIES}
    assert probe().scores == pytest.approx(scores)
    assert scores[1e1] == scores[1e-1] > scores[1e3]
    assert probe().penalty == 1e1  # the strongest of equals
    last = peer(probe().penalty, np.arange(ROWS))
    outputs = np.asarray(logistic.logits(probe().weights, TEST))
    likely = np.exp(outputs - outputs.max(1, keepdims=True))
    got = likely / likely.sum(1, keepdims=True)
    np.testing.assert_allclose(got, last.predict_proba(in_units(TEST)), atol=2e-3)
    assert linear_probe.accuracy(outputs, TEST_LABELS) == last.score(in_units(TEST), TEST_LABELS)


def test_units_and_origin_of_features_change_nothing():
    fitting, choosing = linear_probe.split(Y, seed=0)
    other = linear_probe.fit(
        1000 * X - 3, Y, 10, fitting, choosing, linear_probe.accuracy, PENALTIES
    )
    assert other.penalty == probe().penalty
    a, b = (
        logistic.logits(found.weights, x)
        for found, x in ((probe(), TEST), (other, 1000 * TEST - 3))
    )
    np.testing.assert_allclose(a, b, atol=0.05)


def test_examples_that_choose_do_not_fit_while_they_choose():
    """With labels that mean nothing, they would be recognised if they had been fitted."""
    noise = np.random.RandomState(0).permutation(Y)
    fitting, choosing = linear_probe.split(noise, seed=0)
    found = linear_probe.fit(X, noise, 10, fitting, choosing, linear_probe.accuracy, (1e-4, 1e-3))
    assert max(found.scores.values()) < 0.3
    everything = np.asarray(logistic.logits(found.weights, X[choosing]))
    assert linear_probe.accuracy(everything, noise[choosing]) > 0.4  # the last fit has seen them


def test_constant_features_are_no_error():
    fitting, choosing = linear_probe.split(Y, seed=0)
    same = np.full((ROWS, 64), 3, np.float32)
    found = linear_probe.fit(same, Y, 10, fitting, choosing, linear_probe.accuracy, PENALTIES)
    assert np.isfinite(np.asarray(found.weights.bias)).all()


def test_a_split_keeps_the_proportions_and_every_example():
    labels = np.repeat([0, 1, 2], [50, 20, 1])
    fitting, choosing = linear_probe.split(labels, seed=3)
    assert np.bincount(labels[choosing], minlength=3).tolist() == [10, 4, 0]
    np.testing.assert_array_equal(np.sort(np.concatenate([fitting, choosing])), np.arange(71))
    again, other = linear_probe.split(labels, seed=3)[1], linear_probe.split(labels, seed=4)[1]
    assert np.array_equal(again, choosing) and not np.array_equal(other, choosing)
    assert len(linear_probe.split(np.arange(5), seed=0)[1]) == 1  # one example a class


def test_nothing_to_fit_on_is_refused():
    with pytest.raises(UserError, match="no labelled examples are left"):
        linear_probe.fit(X, Y, 10, [], [0], linear_probe.accuracy)
