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
ROWS = 200
# Features as an encoder may give them: far from 0, and in units of their own.
X, Y = (7 + 0.01 * IMAGES[:ROWS]).astype(np.float32), DIGITS[:ROWS].astype(np.int32)
TEST, TEST_LABELS = (7 + 0.01 * IMAGES[ROWS:800]).astype(np.float32), DIGITS[ROWS:800]
PENALTIES = (1.0, 1e1, 1e3)
SPLITS = linear_probe.splits(Y, seed=0)


@functools.cache
def probe():
    return linear_probe.fit(X, Y, 10, SPLITS, linear_probe.accuracy, PENALTIES)


def in_units(x):
    """Centre features and bring them to mean square 1, by one number."""
    wide = X.astype(np.float64)
    unit = np.sqrt(np.mean((wide - wide.mean(0)) ** 2))
    return (x.astype(np.float64) - wide.mean(0)) / unit


def peer(penalty, rows):
    regression = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=10000)
    return regression.fit(in_units(X)[rows], Y[rows])


def test_chooses_and_predicts_what_scikit_learn_does():
    assert len(SPLITS) == 5  # up to 1000 examples; their scores are averaged
    scores = {
        p: np.mean([peer(p, a).score(in_units(X)[b], Y[b]) for a, b in SPLITS]) for p in PENALTIES
    }
    assert probe().scores == pytest.approx(scores, abs=0.0051)  # an example of a fold
    assert probe().penalty == max(scores, key=scores.get) and min(scores.values()) < 0.95
    last = peer(probe().penalty, np.arange(ROWS))
    outputs = np.asarray(logistic.logits(probe().weights, TEST))
    likely = np.exp(outputs - outputs.max(1, keepdims=True))
    got = likely / likely.sum(1, keepdims=True)
    np.testing.assert_allclose(got, last.predict_proba(in_units(TEST)), atol=2e-3)
    assert linear_probe.accuracy(outputs, TEST_LABELS) == last.score(in_units(TEST), TEST_LABELS)


def test_units_and_origin_of_features_change_nothing():
    other = linear_probe.fit(1000 * X - 3, Y, 10, SPLITS, linear_probe.accuracy, PENALTIES)
    assert other.penalty == probe().penalty
    a, b = (
        logistic.logits(found.weights, x)
        for found, x in ((probe(), TEST), (other, 1000 * TEST - 3))
    )
    np.testing.assert_allclose(a, b, atol=0.05)


def test_examples_that_choose_do_not_fit_while_they_choose():
    """With labels that mean nothing, they would be recognised if they had been fitted."""
    noise = np.random.RandomState(0).permutation(Y)
    splits = linear_probe.splits(noise, seed=0)
    found = linear_probe.fit(X, noise, 10, splits, linear_probe.accuracy, (1e-3, 1e-2))
    assert max(found.scores.values()) < 0.25
    everything = np.asarray(logistic.logits(found.weights, X))
    assert linear_probe.accuracy(everything, noise) > 0.4  # the last fit has seen them all


def test_what_is_answered_is_what_was_chosen(monkeypatch):
    """A weak penalty, fitted to its end from nothing, would be another classifier.

    With one tolerance for both: under two, how far apart they end hangs on float32's rounding.
    """
    monkeypatch.setattr(linear_probe, "LAST_TOLERANCE", linear_probe.TOLERANCE)
    everything, seen = np.arange(ROWS), []

    def score(outputs, labels):
        seen.append(outputs)
        return float(len(seen))  # the last is the best, and the weakest

    found = linear_probe.fit(X, Y, 10, [(everything, everything)], score, (1e-6, 1e-3, 1.0))
    assert found.penalty == 1e-6
    likely, before = (np.exp(x - x.max(1, keepdims=True)) for x in (
        np.asarray(logistic.logits(found.weights, X)), seen[-1]))  # fmt: skip
    error, before = (np.mean(1 - (x / x.sum(1, keepdims=True)).max(1)) for x in (likely, before))
    assert error == pytest.approx(before, rel=0.3)


def test_constant_features_are_no_error():
    same = np.full((ROWS, 64), 3, np.float32)
    found = linear_probe.fit(same, Y, 10, SPLITS[:1], linear_probe.accuracy, PENALTIES)
    assert np.isfinite(np.asarray(found.weights.bias)).all()


def test_equally_good_penalties_are_decided_for_the_strongest():
    found = linear_probe.fit(X, Y, 10, SPLITS[:1], lambda *_: 0.5, PENALTIES)
    assert found.penalty == 1e3


@pytest.mark.parametrize("count, splits", [(1000, 5), (1001, 1)])
def test_splits_keep_the_proportions_and_every_example(count, splits):
    labels = np.arange(count) % 7 % 3  # 3 : 2 : 2
    found = linear_probe.splits(labels, seed=3)
    assert len(found) == splits
    for fitting, choosing in found:
        np.testing.assert_array_equal(np.sort(np.concatenate([fitting, choosing])), range(count))
        share = np.bincount(labels[choosing]) / np.bincount(labels)
        np.testing.assert_allclose(share, 0.2, atol=0.011)  # to an example
    if splits > 1:
        chosen = np.sort(np.concatenate([choosing for _, choosing in found]))
        np.testing.assert_array_equal(chosen, range(count))
    again, other = (linear_probe.splits(labels, seed=seed)[0][1] for seed in (3, 4))
    assert np.array_equal(again, found[0][1]) and not np.array_equal(other, found[0][1])


def test_three_examples_are_split_as_far_as_they_go():
    assert [len(b) for _, b in linear_probe.splits(np.arange(3), seed=0)] == [1, 1, 1]


def test_nothing_to_fit_on_is_refused():
    with pytest.raises(UserError, match="no labelled examples are left"):
        linear_probe.fit(X, Y, 10, [([], [0])], linear_probe.accuracy)
