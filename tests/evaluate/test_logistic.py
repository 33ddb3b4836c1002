"""Logistic regression against scikit-learn, which fits to many digits."""

import chex
import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from simclr_jax.errors import UserError
from simclr_jax.evaluate import logistic

IMAGES, DIGITS = load_digits(return_X_y=True)
TRAIN, TEST = IMAGES[:300].astype(np.float32), IMAGES[300:600].astype(np.float32)
LABELS, TEST_LABELS = DIGITS[:300], DIGITS[300:600]


@pytest.fixture(scope="module")
def digits():
    return standardized(TRAIN, TEST)


def standardized(train, test):
    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)


def scikit_learn(features, labels, l2, **settings):
    peer = LogisticRegression(C=1 / (l2 * len(features)), tol=1e-10, max_iter=10000, **settings)
    return peer.fit(np.asarray(features, np.float64), labels)


def probabilities(weights, features):
    return jax.nn.softmax(logistic.logits(weights, features))


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_equals_scikit_learn(digits, l2):
    train, test = digits
    peer = scikit_learn(train, LABELS, l2)
    weights = logistic.fit(train, LABELS, 10, l2)
    expected = peer.predict_proba(np.asarray(test, np.float64))
    np.testing.assert_allclose(probabilities(weights, test), expected, atol=1e-3)
    accuracy = np.mean(np.asarray(logistic.logits(weights, test)).argmax(1) == TEST_LABELS)
    assert accuracy == peer.score(np.asarray(test, np.float64), TEST_LABELS) > 0.8
    assert logistic.gradient_norm(weights, train, LABELS, l2) <= 1e-6


def test_rows_of_weight_zero_do_not_exist(digits):
    train, test = digits
    kept = np.arange(300) % 3 == 0
    masked_labels = np.where(kept, LABELS, -1)
    weights = logistic.fit(train, masked_labels, 10, 1e-2, sample_weights=kept)
    peer = scikit_learn(train[kept], LABELS[kept], 1e-2)
    expected = peer.predict_proba(np.asarray(test, np.float64))
    np.testing.assert_allclose(probabilities(weights, test), expected, atol=1e-3)


def test_sample_weights_are_repetitions(digits):
    train, test = digits
    times = 1 + np.arange(300) % 3
    weights = logistic.fit(train, LABELS, 10, 1e-2, sample_weights=times)
    peer = scikit_learn(np.repeat(train, times, axis=0), np.repeat(LABELS, times), 1e-2)
    expected = peer.predict_proba(np.asarray(test, np.float64))
    np.testing.assert_allclose(probabilities(weights, test), expected, atol=1e-3)


def test_without_features_the_bias_learns_the_class_frequencies():
    # Fails if the bias is penalised.
    weights = logistic.fit(np.zeros((300, 64), np.float32), LABELS, 10, 10.0)
    got = probabilities(weights, np.zeros((1, 64), np.float32))[0]
    np.testing.assert_allclose(got, np.bincount(LABELS) / 300, atol=1e-5)


def test_warm_start_needs_fewer_steps_and_ends_at_the_same_place(digits):
    train, test = digits
    cold = logistic.fit(train, LABELS, 10, 1e-2)
    neighbour = logistic.fit(train, LABELS, 10, 1.2e-2)
    warm = logistic.fit(train, LABELS, 10, 1e-2, start=neighbour)
    np.testing.assert_allclose(probabilities(warm, test), probabilities(cold, test), atol=1e-4)
    few = [
        logistic.fit(train, LABELS, 10, 1e-2, start=start, max_steps=8)
        for start in (None, neighbour)
    ]
    norms = [logistic.gradient_norm(weights, train, LABELS, 1e-2) for weights in few]
    assert norms[1] < 0.3 * norms[0]
    # A solution is left where it is.
    chex.assert_trees_all_equal(logistic.fit(train, LABELS, 10, 1e-2, start=cold), cold)


def test_steps_and_tolerance_end_the_fit(digits):
    train, _ = digits
    zero = logistic.fit(train, LABELS, 10, 1e-2, max_steps=0)
    chex.assert_trees_all_equal(zero, jax.tree.map(np.zeros_like, zero))
    loose = logistic.fit(train, LABELS, 10, 1e-2, tolerance=1e-2)
    assert 1e-4 < logistic.gradient_norm(loose, train, LABELS, 1e-2) <= 1e-2


def test_rounding_ends_a_fit_that_cannot_reach_its_tolerance(digits):
    train, _ = digits
    weights = logistic.fit(train, LABELS, 10, 1e-3, tolerance=0.0, max_steps=10**8)
    assert 0 < logistic.gradient_norm(weights, train, LABELS, 1e-3) < 1e-4


def test_one_program_for_every_penalty_tolerance_and_mask(digits):
    train, _ = digits
    logistic.fit(train, LABELS, 10, 1e-2)
    before = logistic._minimise._cache_size()
    logistic.fit(
        train, LABELS, 10, 1, tolerance=1e-3, max_steps=7, sample_weights=np.arange(300) % 2
    )
    assert logistic._minimise._cache_size() == before


def several_labels():
    """Return for each digit whether it is even, below 5, and (ignored for a third) above 7."""
    labels = np.stack([LABELS % 2 == 0, LABELS < 5, LABELS > 7], axis=1).astype(np.int8)
    labels[::3, 2] = -1
    return labels


def test_several_labels_are_as_many_regressions(digits):
    train, test = digits
    labels = several_labels()
    weights = logistic.fit(train, labels, 3, 1e-2)
    got = jax.nn.sigmoid(logistic.logits(weights, test))
    for c in range(3):
        known = labels[:, c] >= 0
        # The mean is over all examples, those ignored for this class included.
        peer = LogisticRegression(C=1 / (1e-2 * 300), tol=1e-10, max_iter=10000)
        peer.fit(np.asarray(train[known], np.float64), labels[known, c])
        expected = peer.predict_proba(np.asarray(test, np.float64))[:, 1]
        np.testing.assert_allclose(got[:, c], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS[:9]}, r"300 features, labels of shape \(9,\)"),
        ({"classes": 9}, "labels run from 0 to 9"),
        ({"l2": -1.0}, "l2 is -1.0"),
        ({"labels": 2 * np.ones((300, 10), int)}, "with 10 classes they must lie in -1 to 1"),
        ({"sample_weights": np.zeros(300)}, "not all 0"),
        ({"sample_weights": -np.ones(300)}, "at least 0"),
        ({"features": np.full((300, 2), np.nan)}, "not all finite"),
    ],
)
def test_user_errors(change, message):
    arguments = {"features": TRAIN, "labels": LABELS, "classes": 10, "l2": 1e-2}
    with pytest.raises(UserError, match=message):
        logistic.fit(**{**arguments, **change})


@pytest.mark.x64
def test_float64_equals_scikit_learn_to_many_digits():
    train, test = standardized(TRAIN.astype(np.float64), TEST.astype(np.float64))
    # Its own L-BFGS stops at a gradient norm of 4e-8, 1e-6 away in probability.
    peer = scikit_learn(train, LABELS, 1e-2, solver="newton-cholesky")
    weights = logistic.fit(train, LABELS, 10, 1e-2, tolerance=1e-9)
    assert weights.kernel.dtype == np.float64
    np.testing.assert_allclose(probabilities(weights, test), peer.predict_proba(test), atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_of_the_product_is_the_plain_one(dtype):
    """XLA is told to compute it in another way than it would."""
    random = np.random.default_rng(0)
    x, kernel, g = (random.normal(size=s).astype(dtype) for s in ((70, 12), (12, 5), (70, 5)))
    product, pull = jax.vjp(logistic._product, x, kernel)
    tolerance = 1e-5 if dtype == "float32" or not jax.config.jax_enable_x64 else 1e-13
    np.testing.assert_allclose(product, x @ kernel, rtol=tolerance, atol=tolerance)
    for found, expected in zip(jax.jit(pull)(g), (g @ kernel.T, x.T @ g), strict=True):
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
