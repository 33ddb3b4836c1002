"""How well k-means finds the classes without being told them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import xlogy

from simclr_jax.errors import UserError
from simclr_jax.evaluate.scores import Statistic

STARTS = 10  # the best of so many, by inertia
WHOLE = 50_000  # with more rows, k-means takes them in small batches
BATCH = 4096


def kmeans(features: Any, clusters: int, seed: int = 0, normalize: bool = True) -> np.ndarray:
    """Group features with k-means (scikit-learn; k-means++, the best of `STARTS` starts).

    Above `WHOLE` rows it is mini-batch k-means (Sculley 2010), `BATCH` rows at a time.

    Args:
        features: `[m, d]`.
        clusters: how many, 1 to m.
        seed: 0 to 2**32 - 1.
        normalize: give rows norm 1 first, so that distance is that of directions.

    Returns:
        The cluster of each row, integers `[m]`.

    Raises:
        UserError: `clusters` is out of its range, or a feature is not finite.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans  # slow to import

    features = np.asarray(features, np.float32)
    if not 1 <= clusters <= len(features):
        raise UserError(
            f"clusters is {clusters} but there are {len(features)} features: choose 1 to "
            f"{len(features)}"
        )
    if not np.isfinite(features).all():
        raise UserError("features are not all finite: look at the encoder that made them")
    if normalize:
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        features = features / np.where(norms > 0, norms, 1)
    shared: dict[str, Any] = {"n_clusters": clusters, "n_init": STARTS, "random_state": seed}
    if len(features) > WHOLE:
        return MiniBatchKMeans(batch_size=BATCH, **shared).fit_predict(features)
    return KMeans(**shared).fit_predict(features)


def agreement(labels: Any, clusters: Any) -> dict[str, Statistic]:
    """Return how well clusters and classes agree, as functions of weights for `scores.intervals`.

    "NMI" is mutual information over the arithmetic mean of the entropies (0 to 1), "ARI" the pairs
    grouped alike, adjusted for chance (Hubert & Arabie 1985; 0 is chance, 1 is equal). Both are 1
    where classes and clusters are one group each.

    Args:
        labels, clusters: integers `[m]`, at least 0.
    """
    labels, clusters = np.asarray(labels), np.asarray(clusters)
    columns = int(clusters.max()) + 1
    shape = (int(labels.max()) + 1, columns)
    cells = labels * columns + clusters

    def table(weights: np.ndarray) -> np.ndarray:
        return np.bincount(cells, weights, minlength=shape[0] * shape[1]).reshape(shape)

    return {
        "NMI": lambda weights: _nmi(table(weights)),
        "ARI": lambda weights: _ari(table(weights)),
    }


def _nmi(table: np.ndarray) -> float:
    joint = table / table.sum()
    rows, columns, cells = (
        -np.sum(xlogy(p, p)) for p in (joint.sum(axis=1), joint.sum(axis=0), joint)
    )
    if rows == columns == 0:
        return 1.0
    return float(max(0.0, 2 * (rows + columns - cells) / (rows + columns)))


def _ari(table: np.ndarray) -> float:
    def pairs(x: np.ndarray) -> float:
        return float(np.sum(x * (x - 1)) / 2)

    both, rows, columns = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    everything = pairs(table.sum())
    expected = rows * columns / everything if everything else 0.0
    if (rows + columns) / 2 == expected:
        return 1.0
    return (both - expected) / ((rows + columns) / 2 - expected)
