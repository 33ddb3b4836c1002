import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import recall_score, top_k_accuracy_score

from simclr_jax.errors import UserError
from simclr_jax.evaluate.scores import bootstrap_interval, per_class_accuracy, top_k_accuracy

_random = np.random.RandomState(0)
SCORES = _random.normal(size=(200, 7))
LABELS = _random.randint(0, 7, 200)


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_top_k_equals_scikit_learn(k):
    expected = top_k_accuracy_score(LABELS, SCORES, k=k, labels=np.arange(7))
    assert top_k_accuracy(SCORES, LABELS, k) == pytest.approx(expected, abs=1e-12)


def test_top_k_gives_ties_to_the_lower_class_like_argmax():
    coarse = np.round(SCORES)
    assert top_k_accuracy(coarse, LABELS) == np.mean(coarse.argmax(1) == LABELS)
    assert top_k_accuracy(np.zeros((4, 4)), np.arange(4), 2) == 0.5
    assert top_k_accuracy(np.zeros((4, 4)), np.arange(4), 4) == 1


def test_scores_that_are_no_numbers_are_misses():
    assert top_k_accuracy(np.full((5, 3), np.nan), np.arange(5) % 3, 3) == 0


def test_top_k_needs_k_classes():
    with pytest.raises(UserError, match="k is 5 but there are 3 classes"):
        top_k_accuracy(np.zeros((2, 3)), np.zeros(2, int), 5)


def test_per_class_accuracy_is_recall_and_nan_without_examples():
    predictions = SCORES.argmax(1)
    expected = recall_score(LABELS, predictions, average=None)
    got = per_class_accuracy(predictions, LABELS, 8)
    np.testing.assert_allclose(got[:7], expected, rtol=1e-12)
    assert np.isnan(got[7])


def test_bootstrap_agrees_with_scipy():
    hits = (_random.uniform(size=400) < 0.7).astype(float)
    peer = scipy.stats.bootstrap(
        (hits,), np.mean, confidence_level=0.9, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    low, high = bootstrap_interval(hits, seed=0, level=0.9, resamples=4000)
    assert high - low > 0.06  # 2 x 1.645 x sqrt(.7 x .3 / 400) = 0.075
    np.testing.assert_allclose([low, high], peer, atol=0.005)


def test_bootstrap_is_seeded():
    values = _random.normal(size=50)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert bootstrap_interval(np.ones(9), seed=0) == (1, 1)


def test_bootstrap_user_errors():
    with pytest.raises(UserError, match="no values"):
        bootstrap_interval([], seed=0)
    with pytest.raises(UserError, match="level is 95"):
        bootstrap_interval([1.0], seed=0, level=95)
