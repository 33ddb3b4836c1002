"""Similar images: whether an image's nearest have its class, and which are nearly the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.errors import UserError
from simclr_jax.evaluate import knn


def recall_hits(
    features: Any, labels: Any, ks: Sequence[int] = (1, 5, 10)
) -> dict[int, np.ndarray]:
    """Return for each `k` which images have one of their class among the `k` most similar others.

    The mean of the hits is recall@k, leave-one-out (Jégou et al. 2011, Oh Song et al. 2016).
    Similarity is the cosine. An image that is alone in its class cannot be a hit.

    Args:
        features: `[m, d]`.
        labels: integers `[m]`, or int8 `[m, C]`, where images that share a positive class match.
        ks: each 1 to m - 1.

    Returns:
        For each `k` bool `[m]`.

    Raises:
        UserError: a `k` is out of its range, or a feature is not finite.
    """
    labels = np.asarray(labels)
    _, found = others(features, max(ks))
    if labels.ndim == 2:
        shown = labels == 1
        right = np.stack([(shown[f] & shown).any(axis=1) for f in found.T], axis=1)
    else:
        right = labels[found] == labels[:, None]  # [m, k]
    return {k: np.any(right[:, :k], axis=1) for k in ks}


def others(features: Any, k: int, rows: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` images most similar to each of `rows`, not counting itself.

    Args:
        features: `[m, d]`.
        k: 1 to m - 1.
        rows: integers `[q]`, by default all.

    Returns:
        Cosine similarities `[q, k]`, falling, and positions `[q, k]`.

    Raises:
        UserError: `k` is out of its range, or a feature is not finite.
    """
    features = np.asarray(features)
    rows = np.arange(len(features)) if rows is None else np.asarray(rows)
    if not 1 <= k < len(features):
        raise UserError(
            f"k is {k} but an image has {len(features) - 1} others: choose 1 to {len(features) - 1}"
        )
    similarity, index = knn.neighbours(features, features[rows], k + 1)
    own = index == rows[:, None]
    own[~own.any(axis=1), -1] = True  # outside the list where it has more than k equals
    shape = (len(rows), k)
    return similarity[~own].reshape(shape), index[~own].reshape(shape)


def similar_pairs(
    features: Any, similarity: float, tile: int = 4096, limit: int = 1_000_000
) -> tuple[np.ndarray, np.ndarray]:
    """Find all pairs of rows of at least this cosine similarity.

    Compares tile with tile, so device memory is that of a few `[tile, tile]` blocks.

    Args:
        features: `[m, d]`.
        similarity: above -1, at most 1.
        tile: rows compared at once.
        limit: pairs at most.

    Returns:
        Similarities `[p]`, falling, and pairs of positions `[p, 2]`, the lower first.

    Raises:
        UserError: `similarity` is out of its range, there are more than `limit` pairs, or a
            feature is not finite.
    """
    features = np.asarray(features, np.float32)
    if not -1 < similarity <= 1:
        raise UserError(f"similarity is {similarity}: choose at most 1, such as 0.95")
    if not np.isfinite(features).all():
        raise UserError("features are not all finite: look at the encoder that made them")
    tile = min(tile, max(len(features), 1))
    found: list[np.ndarray] = [np.zeros((0, 2), np.int64)]
    total = 0
    for first in range(0, len(features), tile):
        rows = knn.normalize(_padded(features, first, tile))
        for second in range(first, len(features), tile):
            columns = knn.normalize(_padded(features, second, tile))
            hits, count = _above(rows, columns, similarity, first, second, len(features))
            total += int(count)
            if total > limit:
                raise UserError(
                    f"more than {limit} pairs have a similarity of at least {similarity}: ask for "
                    "a higher one"
                )
            if count:  # few blocks have any: only those cross to the host
                found.append(np.argwhere(hits) + np.array([first, second]))
    pairs = np.concatenate(found)
    values = _cosines(features, pairs)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -values))
    return values[order], pairs[order]


def _padded(features: np.ndarray, start: int, tile: int) -> np.ndarray:
    rows = features[start : start + tile]
    return np.pad(rows, ((0, tile - len(rows)), (0, 0)))


@jax.jit
def _above(
    rows: jax.Array, columns: jax.Array, similarity: float, first: int, second: int, count: int
) -> tuple[jax.Array, jax.Array]:
    """Return which pairs of two tiles are similar enough `[tile, tile]`, and how many."""
    cosines = jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
    i = first + jnp.arange(len(rows))[:, None]
    j = second + jnp.arange(len(columns))[None, :]
    # Equal rows may differ from 1 by rounding.
    hits = (cosines >= similarity - 1e-6) & (i < j) & (j < count)
    return hits, hits.sum()


def _cosines(features: np.ndarray, pairs: np.ndarray, tile: int = 65536) -> np.ndarray:
    """Return the cosine similarity of each pair, `[p]` of float32."""
    values = [np.zeros(0, np.float32)]
    for start in range(0, len(pairs), tile):
        a, b = (features[rows] for rows in pairs[start : start + tile].T)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        values.append(np.einsum("ij,ij->i", a, b) / np.where(norms > 0, norms, 1))
    return np.minimum(np.concatenate(values), 1)
