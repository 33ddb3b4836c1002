"""Vectors of length 1."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def l2_normalize(x: jax.Array) -> jax.Array:
    """Scale each row of `[..., d]` to length 1; a row of zeros stays zero (as TensorFlow's).

    Source: `tf.math.l2_normalize` with its default epsilon, 1e-12 on the squared length.
    """
    return x * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))
