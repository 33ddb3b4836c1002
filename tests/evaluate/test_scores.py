"""Scores and their intervals against scikit-learn, SciPy and plain loops."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    recall_score,
    top_k_accuracy_score,
)

from simclr_jax.errors import UserError
from simclr_jax.evaluate.scores import (
    Ranking,
    bootstrap_interval,
    intervals,
    mean_per_class_accuracy,
    per_class_accuracy,
    statistics,
    summary,
    top_k_hits,
)

_random = np.random.RandomState(0)
SCORES = _random.normal(size=(200, 7))
LABELS = _random.randint(0, 7, 200)


def top_k_accuracy(scores, labels, k=1, weights=None):
    return np.average(top_k_hits(scores, labels, k), weights=weights)


def average_precision(scores, labels, weights=None):
    weights = np.ones(len(labels)) if weights is None else weights
    return Ranking(scores, labels).average_precision(weights)


def eleven_point_precision(scores, labels, weights=None):
    weights = np.ones(len(labels)) if weights is None else weights
    return Ranking(scores, labels).eleven_points(weights)


def mean_average_precision(scores, labels):
    return summary(labels, scores, names=["mAP"])["mAP"]["value"]


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


RANDOM = np.random.RandomState(1)
SHOWN = RANDOM.choice([-1, 0, 1], (150, 4), p=[0.1, 0.7, 0.2]).astype(np.int8)
RANKED = RANDOM.normal(size=(150, 4)) + (SHOWN == 1)
WEIGHTS = RANDOM.randint(0, 4, 150)


@pytest.fixture(autouse=True)
def same_numbers_whatever_ran_before():
    RANDOM.seed(1)


def test_a_weight_is_so_many_repetitions():
    repeated = np.repeat(np.arange(200), np.arange(200) % 3)
    weights = np.arange(200) % 3
    assert top_k_accuracy(SCORES, LABELS, 2, weights) == pytest.approx(
        top_k_accuracy(SCORES[repeated], LABELS[repeated], 2)
    )
    predictions = SCORES.argmax(1)
    assert mean_per_class_accuracy(predictions, LABELS, weights) == pytest.approx(
        balanced_accuracy_score(LABELS[repeated], predictions[repeated])
    )


def test_mean_per_class_leaves_out_classes_without_examples():
    labels = np.where(LABELS == 3, 5, LABELS)
    predictions = SCORES.argmax(1)
    expected = np.mean([np.mean(predictions[labels == c] == c) for c in np.unique(labels)])
    assert mean_per_class_accuracy(predictions, labels) == pytest.approx(expected)


@pytest.mark.parametrize("decimals", [0, 8])  # 0: most scores are tied
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_average_precision_equals_scikit_learn(decimals, weights):
    scores = np.round(RANKED, decimals)
    expected = []
    for c in range(4):
        counted = SHOWN[:, c] >= 0
        expected.append(
            average_precision_score(
                SHOWN[counted, c],
                scores[counted, c],
                sample_weight=None if weights is None else weights[counted],
            )
        )
        got = average_precision(scores[:, c], SHOWN[:, c], weights)
        assert got == pytest.approx(expected[c], abs=1e-12)
    if weights is None:  # with weights: test_the_interval_of_map_is_that_of_resampled_examples
        got = mean_average_precision(scores, SHOWN)
        assert got == pytest.approx(np.mean(expected), abs=1e-12)


def voc(scores, labels):
    """Compute VOC's measure in plain loops, one threshold at a time."""
    positives, best = np.sum(labels == 1), [0.0] * 11
    for threshold in np.unique(scores):
        shown = labels[(scores >= threshold) & (labels >= 0)]
        found = int(np.sum(shown == 1))
        for i in range(11):
            if len(shown) and 10 * found >= i * positives:
                best[i] = max(best[i], found / len(shown))
    return np.mean(best)


@pytest.mark.parametrize("decimals", [0, 8])
def test_eleven_point_precision_equals_plain_loops(decimals):
    scores = np.round(RANKED, decimals)
    repeated = np.repeat(np.arange(150), WEIGHTS)
    for c in range(4):
        got = eleven_point_precision(scores[:, c], SHOWN[:, c])
        assert got == pytest.approx(voc(scores[:, c], SHOWN[:, c]), abs=1e-12)
        got = eleven_point_precision(scores[:, c], SHOWN[:, c], WEIGHTS)
        expected = voc(scores[repeated, c], SHOWN[repeated, c])
        assert got == pytest.approx(expected, abs=1e-12)


def test_three_of_ten_is_a_recall_of_three_tenths():
    # In floating point 3 / 10 is below 0.1 * 3; then the fourth level would start one late.
    labels = np.array([1] * 3 + [0] * 5 + [1] * 7)
    expected = (4 * 1 + 7 * 10 / 15) / 11
    assert eleven_point_precision(-np.arange(15.0), labels) == pytest.approx(expected)


def test_the_order_of_examples_does_not_matter():
    scores, order = np.round(RANKED), RANDOM.permutation(150)
    for score in (average_precision, eleven_point_precision):
        assert score(scores[:, 0], SHOWN[:, 0]) == score(scores[order, 0], SHOWN[order, 0])


def test_classes_without_a_positive_are_left_out():
    labels = SHOWN.copy()
    labels[:, 2] = np.minimum(labels[:, 2], 0)
    kept = [0, 1, 3]
    assert mean_average_precision(RANKED, labels) == mean_average_precision(
        RANKED[:, kept], labels[:, kept]
    )
    assert np.isnan(average_precision(RANKED[:, 2], labels[:, 2]))


def test_summary_has_the_scores_that_there_are():
    single = summary(LABELS, SCORES)
    assert list(single) == ["top-1", "top-5", "mean per class"]
    assert single["top-5"]["value"] == top_k_accuracy(SCORES, LABELS, 5)
    low, high = bootstrap_interval(SCORES.argmax(1) == LABELS, seed=0)
    assert single["top-1"] == {"value": top_k_accuracy(SCORES, LABELS), "low": low, "high": high}
    guesses = summary(LABELS, SCORES.argmax(1))
    assert guesses == {name: single[name] for name in ("top-1", "mean per class")}
    assert list(summary(LABELS % 5, SCORES[:, :5])) == ["top-1", "mean per class"]
    several = summary(SHOWN, RANKED, names=["mAP"])
    assert list(several) == ["mAP"]
    assert several["mAP"]["low"] < several["mAP"]["value"] < several["mAP"]["high"]


def test_the_interval_of_map_is_that_of_resampled_examples():
    generator, means = np.random.Generator(np.random.Philox(3)), []
    for _ in range(1000):
        rows = generator.integers(150, size=150)
        means.append(
            np.mean([average_precision(RANKED[rows, c], SHOWN[rows, c]) for c in range(4)])
        )
    got = summary(SHOWN, RANKED, seed=3)["mAP"]
    expected = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose([got["low"], got["high"]], expected, atol=1e-12)


@pytest.mark.parametrize("seed, level", [(3, 0.95), (4, 0.8)])
def test_intervals_are_of_resampled_examples(seed, level):
    """Of 7 classes one has a single example: some resamples lack it."""
    labels = np.where(LABELS == 6, 5, LABELS)
    labels[17] = 6
    scores = SCORES + 1.6 * np.eye(7)[LABELS]
    predictions = scores.argmax(1)
    first_five = np.argsort(-scores, axis=1)[:, :5]
    generator, drawn = np.random.Generator(np.random.Philox(seed)), []
    for _ in range(1000):
        rows = generator.integers(200, size=200)
        own = labels[rows]
        right = predictions[rows] == own
        drawn.append(
            (
                right.mean(),
                (first_five[rows] == own[:, None]).any(1).mean(),
                np.mean([right[own == c].mean() for c in np.unique(own)]),
            )
        )
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    got = intervals(statistics(labels, scores), 200, seed, level)
    assert list(got) == ["top-1", "top-5", "mean per class"]
    np.testing.assert_allclose([x["low"] for x in got.values()], low, atol=1e-12)
    np.testing.assert_allclose([x["high"] for x in got.values()], high, atol=1e-12)
    assert 0.4 < got["top-1"]["value"] < 0.8


def test_an_interval_is_about_two_standard_errors_to_either_side():
    hits = np.arange(1000) % 10 < 7
    low, high = bootstrap_interval(hits, seed=0)
    error = np.sqrt(0.7 * 0.3 / 1000)
    np.testing.assert_allclose([low, high], [0.7 - 1.96 * error, 0.7 + 1.96 * error], atol=0.004)
    quarter = bootstrap_interval(hits[:250], seed=0)
    assert (quarter[1] - quarter[0]) / (high - low) == pytest.approx(2, rel=0.12)


def test_summary_user_errors():
    with pytest.raises(UserError, match='score is "top-5"'):
        summary(LABELS, SCORES.argmax(1), names=["top-5"])
    with pytest.raises(UserError, match="match them"):
        summary(LABELS[:9], SCORES)
    with pytest.raises(UserError, match="match them"):
        summary(SHOWN, RANKED[:, :3])
    with pytest.raises(UserError, match="no class has a positive"):
        summary(np.zeros((4, 2), np.int8), np.zeros((4, 2)))
