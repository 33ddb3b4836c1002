"""Nearest-neighbour classification by cosine similarity, tiled over the bank."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.errors import UserError

MOST_VOTES = 200  # of InstDisc and most papers since, whose banks have 50 000 images or more


FEW_VOTES = 5  # below which a vote says little, however small a class is


def votes(sizes: np.ndarray) -> int:
    """Return how many neighbours should vote, where nobody has said.

    It is the square root of the images, as the textbooks have it, and 200 at most: 200 of some
    hundreds would be most of the bank, and the largest class would win every vote. So it would
    against a class of fewer images than vote, but then at least five do.

    Args:
      sizes: images in the bank of each class, int `[C]`; all of them where there are no classes.
    """
    smallest = int(min(sizes[sizes > 0], default=1))
    root = round(float(np.sum(sizes)) ** 0.5)
    return max(1, min(MOST_VOTES, root, max(FEW_VOTES, smallest)))


def neighbours(
    bank: Any, queries: Any, k: int, tile: int = 4096, query_tile: int = 16384
) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` rows of the bank most similar to each query.

    Bank and queries stay on the host and visit the device in tiles of one shape, so device memory
    is that of `query_tile` queries and a few `[query_tile, tile]` blocks whatever the size of
    either; the bank crosses to the device once for each tile of queries. A row of zeros has
    similarity 0 to everything; of equally similar rows the one earlier in the bank wins.

    Args:
        bank: features `[M, d]`, not necessarily normalised.
        queries: features `[Q, d]`.
        k: neighbours per query, 1 to M.
        tile: rows of the bank compared at once.
        query_tile: queries compared at once; fewer queries may also be an array on devices.

    Returns:
        Cosine similarities `[Q, k]`, falling, and the bank rows `[Q, k]` they belong to.

    Raises:
        UserError: `k` is below 1 or above M, a tile is below 1, or a feature is not finite.
    """
    bank = np.asarray(bank)
    if not 1 <= k <= len(bank):
        raise UserError(f"k is {k} but the bank has {len(bank)} rows: choose 1 to {len(bank)}")
    for name, size in (("tile", tile), ("query_tile", query_tile)):
        if size < 1:
            raise UserError(f"{name} is {size}: give at least 1")
    count = len(queries)
    if count <= query_tile:
        return _nearest(bank, queries, k, tile)
    parts = []
    for start in range(0, count, query_tile):
        rows = np.asarray(queries[start : start + query_tile])
        padded = np.pad(rows, ((0, query_tile - len(rows)), (0, 0)))  # one shape, one program
        parts.append([x[: len(rows)] for x in _nearest(bank, padded, k, tile)])
    similarity, index = (np.concatenate(x) for x in zip(*parts, strict=True))
    return similarity, index


def _nearest(bank: np.ndarray, queries: Any, k: int, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the neighbours of one tile of queries."""
    queries = normalize(jnp.asarray(queries))
    best = (
        jnp.full((len(queries), k), -jnp.inf, queries.dtype),
        jnp.zeros((len(queries), k), jnp.int32),
    )
    for start in range(0, len(bank), tile):
        rows = bank[start : start + tile]
        padded = np.pad(rows, ((0, tile - len(rows)), (0, 0)))
        best = _merge(best, queries, padded, start, len(rows))
    similarity, index = jax.device_get(best)
    if not np.isfinite(similarity).all():
        raise UserError("features are not all finite: look at the encoder that made them")
    return similarity, index


def classify(
    bank: Any,
    bank_labels: Any,
    queries: Any,
    classes: int,
    k: int,
    temperature: float | None = None,
    tile: int = 4096,
) -> np.ndarray:
    """Predict the class of each query by a vote of its `k` nearest neighbours.

    A neighbour of cosine similarity `s` has `exp(s / temperature)` votes (Wu et al. 2018,
    "InstDisc", section 3.4, k = 200 and temperature 0.1 by custom), or one vote when
    `temperature` is None. Of classes with equally many votes the one of the nearest neighbour
    among them wins.

    Args:
        bank: features `[M, d]`.
        bank_labels: integers `[M]` from 0 to `classes - 1`.
        queries: features `[Q, d]`.
        classes: number of classes.
        k, tile: as in `neighbours`.
        temperature: positive, or None for a majority vote.

    Returns:
        Integers `[Q]`.

    Raises:
        UserError: a number is out of its range, or labels and bank do not match.
    """
    bank_labels = np.asarray(bank_labels)
    if len(bank_labels) != len(bank):
        raise UserError(f"the bank has {len(bank)} rows but {len(bank_labels)} labels: match them")
    if bank_labels.size and not 0 <= bank_labels.min() <= bank_labels.max() < classes:
        raise UserError(
            f"bank labels run from {bank_labels.min()} to {bank_labels.max()}: "
            f"with {classes} classes they must lie in 0 to {classes - 1}"
        )
    if temperature is not None and temperature <= 0:
        raise UserError(f"temperature is {temperature}: give a positive one, or None for one vote")
    similarity, index = neighbours(bank, queries, k, tile)
    labels = bank_labels[index]  # [Q, k], nearest first
    # Relative to the nearest neighbour: the same winner, and no overflow at low temperatures.
    relative = similarity.astype(np.float64) - similarity[:, :1]
    weights = np.exp(relative / temperature) if temperature else np.ones_like(relative)
    rows = np.arange(len(labels))[:, None]
    cells = (rows * classes + labels).ravel()
    votes = np.bincount(cells, weights.ravel(), minlength=len(labels) * classes)
    votes = votes.reshape(len(labels), classes)
    wins = votes[rows, labels] == votes.max(axis=1, keepdims=True)  # [Q, k]
    return labels[rows[:, 0], wins.argmax(axis=1)]


def accuracy(
    bank: Any,
    bank_labels: Any,
    queries: Any,
    query_labels: Any,
    classes: int,
    k: int,
    temperature: float | None = None,
    tile: int = 4096,
) -> float:
    """Return the fraction of queries, 0 to 1, that `classify` labels right."""
    query_labels = np.asarray(query_labels)
    predictions = classify(bank, bank_labels, queries, classes, k, temperature, tile)
    if query_labels.shape != predictions.shape:
        raise UserError(
            f"there are {len(predictions)} queries but labels of shape {query_labels.shape}: "
            "give one label per query"
        )
    return float(np.mean(predictions == query_labels))


@jax.jit
def normalize(x: jax.Array) -> jax.Array:
    """Give the rows of `x` `[n, d]` norm 1; a row of zeros stays."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1)


@jax.jit
def _merge(
    best: tuple[jax.Array, jax.Array], queries: jax.Array, rows: jax.Array, start: int, count: int
) -> tuple[jax.Array, jax.Array]:
    """Merge the first `count` of `rows`, the bank from `start` on, into the best so far."""
    similarity, index = best  # [Q, k] each
    # Full precision: the default of some accelerators would reorder near neighbours.
    block = jnp.matmul(queries, normalize(rows).T, precision=jax.lax.Precision.HIGHEST)
    position = jnp.arange(len(rows), dtype=index.dtype)
    block = jnp.where(position < count, block, -jnp.inf)  # [Q, tile]
    # Earlier rows first: top_k keeps the first of equals.
    similarity, chosen = jax.lax.top_k(
        jnp.concatenate([similarity, block], axis=1), similarity.shape[1]
    )
    positions = jnp.broadcast_to(position + jnp.asarray(start, index.dtype), block.shape)
    index = jnp.take_along_axis(jnp.concatenate([index, positions], axis=1), chosen, axis=1)
    return similarity, index
