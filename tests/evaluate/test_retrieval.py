"""Nearest other images, recall among them and pairs of copies, against plain NumPy."""

import numpy as np
import pytest

from simclr_jax.errors import UserError
from simclr_jax.evaluate import retrieval

RANDOM = np.random.RandomState(0)
LABELS = RANDOM.randint(0, 6, 90)
FEATURES = (RANDOM.normal(size=(6, 5))[LABELS] + RANDOM.normal(size=(90, 5))).astype(np.float32)


@pytest.fixture(autouse=True)
def same_numbers_whatever_ran_before():
    RANDOM.seed(0)


def cosines(features):
    rows = features.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_recall_equals_plain_loops():
    similarity = cosines(FEATURES)
    got = retrieval.recall_hits(FEATURES, LABELS, (1, 4))
    for k in (1, 4):
        expected = []
        for i in range(90):
            ranked = [j for j in np.argsort(-similarity[i]) if j != i]
            expected.append(any(LABELS[j] == LABELS[i] for j in ranked[:k]))
        np.testing.assert_array_equal(got[k], expected)
    assert 0.2 < got[1].mean() < got[4].mean() < 1


def test_several_labels_match_where_they_share_one():
    shown = (RANDOM.uniform(size=(90, 4)) < 0.2).astype(np.int8)
    shown[RANDOM.uniform(size=(90, 4)) < 0.2] = -1
    _, nearest = retrieval.others(FEATURES, 3)
    expected = [
        any(((shown[i] == 1) & (shown[j] == 1)).any() for j in nearest[i]) for i in range(90)
    ]
    np.testing.assert_array_equal(retrieval.recall_hits(FEATURES, shown, (3,))[3], expected)


def test_an_image_is_not_its_own_neighbour_even_among_many_copies():
    copies = np.repeat(np.eye(2, 3, dtype=np.float32), [7, 3], axis=0)
    similarity, index = retrieval.others(copies, 4)
    assert (index != np.arange(10)[:, None]).all()
    assert all(len(set(row)) == 4 for row in index)
    np.testing.assert_allclose(similarity[:7], 1, atol=1e-6)
    _, some = retrieval.others(copies, 4, rows=[9, 2])
    np.testing.assert_array_equal(some, index[[9, 2]])


def test_similar_pairs_equals_plain_numpy():
    similarity = cosines(FEATURES)
    values, pairs = retrieval.similar_pairs(FEATURES, 0.9, tile=32)
    i, j = np.nonzero(np.triu(similarity, 1) >= 0.9)
    assert len(pairs) > 20
    assert set(map(tuple, pairs.tolist())) == set(zip(i.tolist(), j.tolist(), strict=True))
    np.testing.assert_allclose(values, similarity[tuple(pairs.T)], atol=1e-6)
    assert (np.diff(values) <= 0).all()


def test_as_many_pairs_are_found_as_the_limit_allows():
    count = int((np.triu(cosines(FEATURES), 1) >= 0.8).sum())
    found = retrieval.similar_pairs(FEATURES, 0.8, tile=32, limit=count)[1]
    assert len(found) == count > 100
    with pytest.raises(UserError, match=f"more than {count - 1} pairs"):
        retrieval.similar_pairs(FEATURES, 0.8, tile=32, limit=count - 1)


def test_the_default_is_recall_at_1_5_and_10():
    got = retrieval.recall_hits(FEATURES, LABELS)
    ranked = np.argsort(-(cosines(FEATURES) - 9 * np.eye(90)), axis=1)
    assert list(got) == [1, 5, 10]
    for k, hits in got.items():
        expected = (LABELS[ranked[:, :k]] == LABELS[:, None]).any(axis=1)
        np.testing.assert_array_equal(hits, expected)
    last = retrieval.recall_hits(FEATURES[:6], LABELS[:6], (5,))[5]
    np.testing.assert_array_equal(last, [np.sum(LABELS[:6] == x) > 1 for x in LABELS[:6]])


def test_equal_rows_have_similarity_1():
    rows = np.repeat(FEATURES[:20], 2, axis=0) * RANDOM.uniform(1, 9, (40, 1))
    _, pairs = retrieval.similar_pairs(rows, 1.0, tile=32)
    np.testing.assert_array_equal(pairs[np.argsort(pairs[:, 0])], np.arange(40).reshape(20, 2))


def test_user_errors():
    with pytest.raises(UserError, match="k is 90 but an image has 89 others"):
        retrieval.recall_hits(FEATURES, LABELS, (1, 90))
    with pytest.raises(UserError, match="similarity is 2"):
        retrieval.similar_pairs(FEATURES, 2)
    with pytest.raises(UserError, match="more than 100 pairs"):
        retrieval.similar_pairs(FEATURES, 0.5, tile=32, limit=100)
    with pytest.raises(UserError, match="not all finite"):
        retrieval.similar_pairs(np.full((4, 2), np.nan), 0.5)
