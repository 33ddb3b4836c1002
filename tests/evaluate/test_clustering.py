import numpy as np
import pytest
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


def test_user_errors():
    with pytest.raises(UserError, match="clusters is 5 but there are 4 features"):
        clustering.kmeans(np.eye(4), 5)
    with pytest.raises(UserError, match="not all finite"):
        clustering.kmeans(np.full((4, 2), np.nan), 2)
