"""The paired permutation test against exact tests and all swaps of a few examples."""

import itertools

import numpy as np
import pytest
import scipy.stats
from judging import by_hand

from simclr_jax.errors import UserError
from simclr_jax.evaluate.significance import permutation_test

RANDOM = np.random.RandomState(0)


def judged(labels, predictions):
    return {"labels": labels, "predictions": predictions, "examples": np.arange(len(labels))}


@pytest.fixture(autouse=True)
def same_numbers_whatever_ran_before():
    RANDOM.seed(0)


def test_top_1_is_the_exact_sign_test():
    # 30 examples right for the first only, 14 for the second only: a binomial.
    labels = np.zeros(100, int)
    first, second = np.ones(100, int), np.ones(100, int)
    first[:50] = 0
    second[30:64] = 0
    got = permutation_test(judged(labels, first), judged(labels, second))
    assert got["difference"] == pytest.approx(0.16)
    expected = scipy.stats.binomtest(30, 44).pvalue
    assert got["p"] == pytest.approx(expected, abs=4 * np.sqrt(expected / 100_000))


def test_mean_per_class_equals_all_sign_flips():
    labels = np.array([0] * 3 + [1] * 5 + [3] * 6)
    hits = RANDOM.uniform(size=(2, 14)) < [[0.9], [0.2]]
    share = np.where(labels == 0, 1 / 3, np.where(labels == 1, 1 / 5, 1 / 6)) / 3
    difference = (hits[0] * 1.0 - hits[1]) * share
    flips = np.array(list(itertools.product([-1, 1], repeat=14))) @ difference
    expected = np.mean(np.abs(flips) >= abs(difference.sum()) - 1e-12)
    first, second = (judged(labels, np.where(hit, labels, 7)) for hit in hits)
    got = permutation_test(first, second, "mean per class")
    assert got["difference"] == pytest.approx(difference.sum())
    assert 0.001 < expected < 0.9
    assert got["p"] == pytest.approx(expected, abs=4 * np.sqrt(expected / 100_000))


def multi(labels, scores):
    return {"labels": labels, "scores": scores, "examples": np.arange(len(labels))}


@pytest.mark.parametrize("metric", ["mAP", "11-point mAP"])
def test_rankings_swap_rows_of_ranks(metric):
    labels = np.array([[0, 1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 1, 0]], np.int8).T
    first = RANDOM.normal(size=(7, 2)) + 2 * labels
    second = RANDOM.normal(size=(7, 2))
    ranks = [scipy.stats.rankdata(x, axis=0) for x in (first, second)]
    score = {"mAP": by_hand.mean_average_precision, "11-point mAP": by_hand.eleven_points}[metric]
    differences = []
    for swaps in itertools.product([False, True], repeat=7):
        swap = np.array(swaps)[:, None]
        a, b = np.where(swap, ranks[1], ranks[0]), np.where(swap, ranks[0], ranks[1])
        differences.append(score(a, labels) - score(b, labels))
    observed = score(first, labels) - score(second, labels)
    got = permutation_test(multi(labels, first), multi(labels, second), metric)
    assert got["difference"] == pytest.approx(observed) and got["samples"] == 2_000
    expected = np.mean(np.abs(differences) >= abs(observed) - 1e-12)
    assert 0.001 < expected < 0.9
    assert got["p"] == pytest.approx(expected, abs=4 * np.sqrt(expected / 2000))
    # The scale of a model's scores is its own affair.
    assert permutation_test(multi(labels, first * 9 - 4), multi(labels, second), metric) == got


def test_top_5_is_the_exact_sign_test():
    labels = RANDOM.randint(0, 12, 40)
    first, second = (RANDOM.normal(size=(40, 12)) for _ in range(2))
    first[np.arange(40), labels] += 1.0
    hits = [np.argsort(-x, axis=1)[:, :5] == labels[:, None] for x in (first, second)]
    more, fewer = (np.sum(a.any(1) & ~b.any(1)) for a, b in (hits, hits[::-1]))
    got = permutation_test(multi(labels, first), multi(labels, second), "top-5")
    assert got["difference"] == pytest.approx((more - fewer) / 40)
    expected = scipy.stats.binomtest(int(more), int(more + fewer)).pvalue
    assert 0.001 < expected < 0.5 and got["samples"] == 100_000
    assert got["p"] == pytest.approx(expected, abs=4 * np.sqrt(expected / 100_000))
    top_1 = permutation_test(multi(labels, first), multi(labels, second))
    right = [x.argmax(1) == labels for x in (first, second)]
    assert top_1["difference"] == pytest.approx(right[0].mean() - right[1].mean())
    assert top_1["difference"] != pytest.approx(got["difference"])


def test_equal_models_have_p_1_and_no_p_is_0():
    labels = np.arange(400) % 2
    same = judged(labels, labels)
    assert permutation_test(same, same, samples=99)["p"] == 1
    assert permutation_test(same, judged(labels, 1 - labels), samples=99)["p"] == 1 / 100


def test_p_is_uniform_where_the_models_are_alike():
    labels = np.zeros(300, int)
    ps = []
    for _ in range(300):
        first, second = (judged(labels, RANDOM.randint(0, 2, 300)) for _ in range(2))
        ps.append(permutation_test(first, second, samples=400)["p"])
    assert 0.01 < np.mean(np.array(ps) <= 0.05) < 0.1
    assert 0.4 < np.mean(ps) < 0.62


def test_examples_are_matched_by_number():
    labels, order = RANDOM.randint(0, 4, 60), RANDOM.permutation(60)
    first, second = (
        judged(labels, np.where(RANDOM.uniform(size=60) < share, labels, 9)) for share in (0.6, 0.4)
    )
    shuffled = {name: x[order] for name, x in second.items()}
    assert permutation_test(first, shuffled) == permutation_test(first, second)
    right = [np.mean(x["predictions"] == x["labels"]) for x in (first, second)]
    assert permutation_test(first, shuffled)["difference"] == pytest.approx(right[0] - right[1])
    back = permutation_test(shuffled, first)["difference"]
    assert back == pytest.approx(right[1] - right[0]) and back != 0
    assert permutation_test(first, second) == permutation_test(first, second, seed=0)
    assert permutation_test(first, second) != permutation_test(first, second, seed=1)


@pytest.mark.parametrize(
    ("change", "metric", "message"),
    [
        ({"examples": np.arange(1, 7)}, "top-1", "6 and 6 examples, 5 of them the same"),
        ({"labels": np.ones(6, int)}, "top-1", "different labels"),
        ({}, "mAP", 'metric is "mAP" but an example has one label'),
        ({}, "top1", r'metric is "top1" \(did you mean "top-1"\?\)'),
        ({}, "top-5", "k is 5 but there are 1 classes"),
    ],
)
def test_user_errors(change, metric, message):
    model = judged(np.arange(6), np.arange(6))
    with pytest.raises(UserError, match=message):
        permutation_test(model, {**model, **change}, metric)
