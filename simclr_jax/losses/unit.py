"""Vectors of length 1."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def l2_normalize(x: jax.Array, shortest: float = 1e-6) -> jax.Array:
    """Scale each row of `[..., d]` to length 1, or divide it by `shortest` if it is shorter.

    A row of zeros so stays zero.
    Source: `tf.math.l2_normalize` with its default epsilon, 1e-12 on the squared length. PyTorch's
    `CosineSimilarity` has 1e-8 on the length.
    """
    squared = jnp.sum(jnp.square(x), -1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(squared, shortest**2))
