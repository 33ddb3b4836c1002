"""Dropout whose draws belong to images: the same on any number of devices and in any pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def drop(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Set a share of the numbers of each image to 0, and scale up the others (Hinton et al. 2012).

    Args:
      x: `[n, ...]`.
      keys: `[n]`, see `Keys.of_rows`.
      rate: the share, in [0, 1).
    """

    def of_image(row: jax.Array, key: jax.Array) -> jax.Array:
        kept = jax.random.uniform(key, row.shape, jnp.float32) >= rate
        return jnp.where(kept, row / (1 - rate), 0)

    return jax.vmap(of_image)(x, keys)
