"""Label-free indicators of what embeddings look like, above all of collapse."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.errors import UserError
from simclr_jax.losses.unit import l2_normalize


@jax.jit
def alignment(z1: jax.Array, z2: jax.Array) -> jax.Array:
    """Return the mean squared distance of positive pairs, 0 to 4 (Wang & Isola 2020, alpha = 2).

    `z1` and `z2` are `[n, d]`, row i of both the two views of one image, of norm 1.
    """
    difference = _widen(z1) - _widen(z2)
    return jnp.mean(jnp.sum(difference**2, axis=1))


@jax.jit
def uniformity(z: jax.Array) -> jax.Array:
    """Return the log of the mean of `exp(-2 ||z_i - z_j||^2)` over i != j (Wang & Isola 2020).

    `z` is `[n, d]`, rows of norm 1. 0 when all rows are equal, lower the more evenly they
    cover the sphere. Takes memory for `[n, n]`: give it a few thousand rows.

    Raises:
        UserError: there are fewer than 2 rows.
    """
    rows = len(z)
    if rows < 2:
        raise UserError(f"uniformity needs pairs but got {rows} embeddings: give at least 2")
    z = _widen(z)
    squares = jnp.sum(z**2, axis=1)
    products = jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST)
    distances = jnp.maximum(squares[:, None] + squares[None, :] - 2 * products, 0)  # [n, n]
    pairs = ~jnp.eye(rows, dtype=bool)
    return jax.nn.logsumexp(-2 * distances, where=pairs) - math.log(rows * (rows - 1))


@jax.jit
def effective_rank(x: jax.Array) -> jax.Array:
    """Return exp of the entropy of the normalised singular values (Roy & Vetterli 2007).

    `x` is `[n, d]`; its column means are subtracted first (RankMe, Garrido et al. 2023, does
    not), so that a common offset does not count as a dimension. Between 1 and min(n - 1, d).
    Singular values below the rounding of `x` itself count as 0, and when all do the result is
    1: a collapsed batch reads 1, not the rank of its rounding noise.
    """
    rounding = jnp.finfo(x.dtype).eps
    x = _widen(x)
    values = jnp.linalg.svd(x - jnp.mean(x, axis=0), compute_uv=False)
    values = jnp.where(values > rounding * jnp.linalg.norm(x), values, 0)
    total = jnp.sum(values)
    shares = values / jnp.where(total > 0, total, 1)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(shares)))


def indicators(first: np.ndarray, second: np.ndarray | None = None) -> dict[str, float]:
    """Return `uniformity` and `effective_rank`, and of two views of each image `alignment`.

    Alignment and uniformity are of the rows scaled to norm 1, the rank is of them as they are.

    Args:
        first: `[n, d]`, rows of any norm.
        second: `[n, d]`, another view of the images in `first`, row by row; None: there is none.

    Raises:
        UserError: there are fewer than 2 rows.
    """
    unit, found = l2_normalize(jnp.asarray(first)), {}
    if second is not None:
        found["alignment"] = float(alignment(unit, l2_normalize(jnp.asarray(second))))
    found["uniformity"] = float(uniformity(unit))
    found["effective_rank"] = float(effective_rank(jnp.asarray(first)))
    return found


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
