"""Distances of rows as inner products, so that they can be compared by tiles (`tiles.by_rows`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.losses.batch import Views
from simclr_jax.losses.unit import l2_normalize

DISTANCES = ("L2", "squared-L2", "angular")  # as TensorFlow Addons calls them


def comparable(z: Views, distance: str) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return anchors and candidates of whose inner products `between` makes distances.

    The squared distance of a and b is the product of (a, |a|^2, 1) and (-2b, 1, |b|^2). All rows
    are first moved by what they have in common, which changes no distance and saves the digits
    that would cancel.

    Args:
      z: embeddings of the views of a batch, `[n, d]` of this device, `[N, d]` of all.
      distance: one of `DISTANCES`; "angular" is 1 - cosine.

    Returns:
      `[n, d']` and `[N, d']` for each view.
    """
    if distance == "angular":
        return list(map(l2_normalize, z.own)), list(map(l2_normalize, z.everyone))
    centre = lax.stop_gradient(jnp.mean(z.everyone[0], axis=0))

    def parts(rows: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        rows = rows - centre
        square = jnp.sum(jnp.square(rows), axis=1, keepdims=True)
        return rows, square, jnp.ones_like(square)

    def anchor(rows: jax.Array) -> jax.Array:
        rows, square, one = parts(rows)
        return jnp.concatenate([rows, square, one], axis=1)

    def candidate(rows: jax.Array) -> jax.Array:
        rows, square, one = parts(rows)
        return jnp.concatenate([-2 * rows, one, square], axis=1)

    return list(map(anchor, z.own)), list(map(candidate, z.everyone))


def between(products: jax.Array, distance: str) -> jax.Array:
    """Return the distances that inner products of what `comparable` returns stand for.

    Rounding makes none negative, and where two rows are one and the same the distance, whose slope
    is undefined there, carries no gradient.
    Source: TensorFlow Addons `metric_learning.py: pairwise_distance, angular_distance`.
    """
    if distance == "angular":
        return jnp.maximum(1 - products, 0)
    return jnp.maximum(products, 0) if distance == "squared-L2" else root(products)


def root(squares: jax.Array) -> jax.Array:
    """Return square roots; of what is not positive 0, which carries no gradient."""
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
