"""Nearest neighbours against brute force in float64 and scikit-learn."""

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from simclr_jax.errors import UserError
from simclr_jax.evaluate import knn

CLASSES = 5
_random = np.random.RandomState(0)
LABELS = _random.randint(0, CLASSES, 203)
CENTRES = _random.normal(size=(CLASSES, 8))
BANK = (CENTRES[LABELS] + 1.5 * _random.normal(size=(203, 8))).astype(np.float32)
QUERY_LABELS = _random.randint(0, CLASSES, 60)
QUERIES = (CENTRES[QUERY_LABELS] + 1.5 * _random.normal(size=(60, 8))).astype(np.float32)


def brute_force(k, temperature):
    """Predict in float64, one query and one neighbour at a time."""
    bank, queries = BANK.astype(np.float64), QUERIES.astype(np.float64)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    predictions = []
    for query in queries:
        similarity = bank @ query
        nearest = np.argsort(-similarity)[:k]
        votes = dict.fromkeys(LABELS[nearest], 0.0)  # in the order of nearness
        for i in nearest:
            votes[LABELS[i]] += 1 if temperature is None else np.exp(similarity[i] / temperature)
        predictions.append(max(votes, key=lambda label: votes[label]))
    return np.array(predictions)


@pytest.mark.parametrize(
    "sizes, k",
    [
        ([1], 1),
        ([577], 24),
        ([20_000, 20_000], 200),
        ([10**7, 10**7], 200),
        ([500, 12], 12),
        ([500, 2, 0], 5),
        ([3, 1], 2),
    ],
)
def test_as_many_vote_as_there_are_images_for(sizes, k):
    assert knn.votes(np.array(sizes)) == k


@pytest.mark.parametrize("tile", [64, 203, 512])
@pytest.mark.parametrize(("k", "temperature"), [(1, None), (10, None), (7, 0.1), (100, 0.1)])
def test_predictions_equal_brute_force_in_float64(k, temperature, tile):
    got = knn.classify(BANK, LABELS, QUERIES, CLASSES, k, temperature, tile)
    np.testing.assert_array_equal(got, brute_force(k, temperature))


@pytest.mark.parametrize("weighted", [False, True])
def test_predictions_equal_scikit_learn(weighted):
    peer = KNeighborsClassifier(
        n_neighbors=11,
        metric="cosine",
        weights=(lambda distance: np.exp((1 - distance) / 0.1)) if weighted else "uniform",
    ).fit(BANK, LABELS)
    if weighted:
        expected, compared = peer.predict(QUERIES), np.ones(len(QUERIES), bool)
    else:  # scikit-learn gives ties to the lowest class
        votes = np.sort(peer.predict_proba(QUERIES), axis=1)
        expected, compared = peer.predict(QUERIES), votes[:, -1] > votes[:, -2]
    got = knn.classify(BANK, LABELS, QUERIES, CLASSES, 11, 0.1 if weighted else None, tile=64)
    assert compared.sum() > 40
    np.testing.assert_array_equal(got[compared], expected[compared])


def test_neighbours_are_sorted_and_in_full_precision():
    similarity, index = knn.neighbours(BANK, QUERIES, 20, tile=64)
    bank, queries = BANK.astype(np.float64), QUERIES.astype(np.float64)
    cosine = queries @ bank.T
    cosine /= np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(bank, axis=1)
    np.testing.assert_array_equal(index, np.argsort(-cosine, axis=1)[:, :20])
    np.testing.assert_allclose(similarity, -np.sort(-cosine, axis=1)[:, :20], atol=1e-6)


@pytest.mark.parametrize("query_tile", [7, 20, 59])
def test_queries_in_tiles_find_the_same(query_tile):
    whole = knn.neighbours(BANK, QUERIES, 9, tile=64)
    tiled = knn.neighbours(BANK, QUERIES, 9, tile=64, query_tile=query_tile)
    np.testing.assert_array_equal(tiled[1], whole[1])
    np.testing.assert_allclose(tiled[0], whole[0], atol=1e-6)


def test_a_tied_majority_goes_to_the_class_of_the_nearest_among_the_tied():
    angles = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 2.0])
    bank = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.array([0, 2, 1, 1, 2, 0])
    query = np.array([[1.0, 0.0]])
    # Of 5 neighbours classes 1 and 2 have two each; class 0 is nearest but has one.
    assert knn.classify(bank, labels, query, 3, k=5) == [2]
    assert knn.classify(bank, labels, query, 3, k=2) == [0]


def test_equally_similar_rows_are_taken_in_the_order_of_the_bank():
    bank = np.tile([[1.0, 0.0]], (10, 1))
    _, index = knn.neighbours(bank, bank[:2], 6, tile=4)
    np.testing.assert_array_equal(index, np.tile(np.arange(6), (2, 1)))


def test_padding_never_votes_even_when_all_similarities_are_negative():
    bank = -np.abs(BANK[:5])
    similarity, index = knn.neighbours(bank, np.abs(QUERIES), 5, tile=64)
    assert (similarity < 0).all()
    np.testing.assert_array_equal(np.sort(index, axis=1), np.tile(np.arange(5), (60, 1)))


def test_low_temperature_does_not_overflow():
    # exp(s / T) is beyond float64, yet two neighbours almost as near outvote the nearest.
    angles = np.array([0.1, 0.1001, 0.1001])
    bank = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    query, labels = np.array([[1.0, 0.0]]), np.array([0, 1, 1])
    assert knn.classify(bank, labels, query, 2, k=3, temperature=1e-3) == [1]
    assert knn.classify(bank, labels, query, 2, k=3, temperature=1e-6) == [0]


def test_rows_of_zeros_have_similarity_zero():
    similarity, index = knn.neighbours(np.eye(2), np.zeros((1, 2)), 2)
    np.testing.assert_array_equal(similarity, [[0, 0]])
    np.testing.assert_array_equal(index, [[0, 1]])


def test_queries_may_be_sharded():
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    got = knn.classify(BANK, LABELS, jax.device_put(QUERIES, sharding), CLASSES, 7, 0.1, tile=64)
    np.testing.assert_array_equal(got, brute_force(7, 0.1))


def test_accuracy():
    got = knn.accuracy(BANK, LABELS, QUERIES, QUERY_LABELS, CLASSES, 10, tile=64)
    assert got == np.mean(brute_force(10, None) == QUERY_LABELS)
    assert got > 0.4


def test_one_program_for_all_tiles_and_banks():
    def count(rows):
        before = knn._merge._cache_size()
        knn.neighbours(BANK[:rows], QUERIES, 9, tile=32)
        return knn._merge._cache_size() - before

    assert [count(203), count(150), count(203)] == [1, 0, 0]


@pytest.mark.parametrize("where", ["bank", "queries"])
def test_features_that_are_not_finite_are_refused(where):
    features = {"bank": BANK.copy(), "queries": QUERIES.copy()}
    features[where][7, 3] = np.nan
    with pytest.raises(UserError, match="not all finite"):
        knn.neighbours(**features, k=9, tile=32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 204}, "k is 204 but the bank has 203 rows"),
        ({"k": 0}, "k is 0"),
        ({"tile": 0}, "tile is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"classes": 4}, "labels run from 0 to 4"),
        ({"bank_labels": LABELS[:9]}, "203 rows but 9 labels"),
    ],
)
def test_user_errors(change, message):
    arguments = {
        "bank": BANK,
        "bank_labels": LABELS,
        "queries": QUERIES,
        "classes": CLASSES,
        "k": 5,
    }
    with pytest.raises(UserError, match=message):
        knn.classify(**{**arguments, **change})


def test_a_tile_of_no_queries_is_refused():
    with pytest.raises(UserError, match="query_tile is 0"):
        knn.neighbours(BANK, QUERIES, 5, query_tile=0)
