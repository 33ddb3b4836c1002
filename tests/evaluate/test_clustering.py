"""Groups by k-means, and how well they agree with classes, against scikit-learn."""

import numpy as np
import pytest
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from simclr_jax.errors import UserError
from simclr_jax.evaluate import clustering

RANDOM = np.random.RandomState(0)


@pytest.mark.parametrize(("classes", "clusters"), [(3, 4), (4, 1), (1, 1), (7, 7)])
def test_agreement_equals_scikit_learn(classes, clusters):
    labels = RANDOM.randint(0, classes, 120)
    found = np.where(RANDOM.uniform(size=120) < 0.6, labels % clusters, 0)
    got = clustering.agreement(labels, found)
    for weights in (np.ones(120), RANDOM.randint(0, 3, 120)):
        rows = np.repeat(np.arange(120), weights.astype(int))
        nmi = normalized_mutual_info_score(labels[rows], found[rows])
        ari = adjusted_rand_score(labels[rows], found[rows])
        assert got["NMI"](weights) == pytest.approx(nmi, abs=1e-12)
        assert got["ARI"](weights) == pytest.approx(ari, abs=1e-12)


@pytest.fixture(autouse=True)
def same_numbers_whatever_ran_before():
    RANDOM.seed(0)


@pytest.mark.parametrize("whole", [50_000, 100])  # 100: in small batches
def test_kmeans_finds_directions_whatever_their_length(whole, monkeypatch):
    monkeypatch.setattr(clustering, "WHOLE", whole)
    labels = RANDOM.randint(0, 4, 120)
    rows = np.eye(4, 6)[labels] + 0.05 * RANDOM.normal(size=(120, 6))
    rows *= 10 ** RANDOM.uniform(-2, 2, (120, 1))
    found = clustering.kmeans(rows, 4)
    assert adjusted_rand_score(labels, found) == 1
    np.testing.assert_array_equal(clustering.kmeans(rows, 4), found)
    assert adjusted_rand_score(labels, clustering.kmeans(rows, 4, normalize=False)) < 0.5


def test_kmeans_is_that_of_scikit_learn_with_the_seed():
    """On points in which several groupings are nearly as good."""
    rows = RANDOM.normal(size=(150, 4)) * [3, 1, 1, 1] + 0.4
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = {}
    for seed in range(4):
        for normalize, x in ((True, unit), (False, rows)):
            got = clustering.kmeans(rows, 6, seed, normalize)
            peer = KMeans(6, n_init=10, random_state=seed).fit_predict(x.astype(np.float32))
            assert adjusted_rand_score(got, peer) > 0.99
            found[seed, normalize] = got
    assert adjusted_rand_score(found[0, True], found[0, False]) < 0.9
    assert any(adjusted_rand_score(found[0, True], found[s, True]) < 0.95 for s in (1, 2, 3))
    assert (clustering.STARTS, clustering.WHOLE, clustering.BATCH) == (10, 50_000, 4096)


def test_small_batches_begin_above_the_limit(monkeypatch):
    monkeypatch.setattr(clustering, "WHOLE", 150)
    monkeypatch.setattr(clustering, "BATCH", 32)
    rows = RANDOM.normal(size=(151, 4))
    for count, peer in (
        (150, KMeans(6, n_init=10, random_state=3)),
        (151, MiniBatchKMeans(6, n_init=10, random_state=3, batch_size=32)),
    ):
        x = rows[:count] / np.linalg.norm(rows[:count], axis=1, keepdims=True)
        expected = peer.fit_predict(x.astype(np.float32))
        assert adjusted_rand_score(clustering.kmeans(rows[:count], 6, 3), expected) > 0.99


def test_user_errors():
    with pytest.raises(UserError, match="clusters is 5 but there are 4 features"):
        clustering.kmeans(np.eye(4), 5)
    with pytest.raises(UserError, match="not all finite"):
        clustering.kmeans(np.full((4, 2), np.nan), 2)
