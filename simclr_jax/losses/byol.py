"""BYOL's loss: a prediction meets the other view's target on the unit sphere (arXiv 2006.07733)."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.losses.unit import l2_normalize


def regression(
    prediction: jax.Array, target: jax.Array, *, axis_name: str | None = None
) -> jax.Array:
    """Return this device's share of the mean squared distance of unit vectors (eq. 2).

    That is 2 - 2 cos(prediction, target) for rows that are not zero. The whole loss of BYOL is the
    sum of both directions, from either view to the other.
    Source: deepmind-research `byol/utils/helpers.py: regression_loss`.

    Args:
      prediction: `[n, d]`; computed in float32, or float64 if they are.
      target: `[n, d]`, which carries no gradient.
      axis_name: mesh axis over which the batch is spread; None if this is all of it.

    Returns:
      A scalar whose sum over the devices is the mean over all rows.
    """
    chex.assert_equal_shape((prediction, target))
    wide = jnp.promote_types(prediction.dtype, jnp.float32)
    prediction, target = prediction.astype(wide), lax.stop_gradient(target).astype(wide)
    apart = jnp.sum(jnp.square(l2_normalize(prediction) - l2_normalize(target)), axis=-1)  # [n]
    rows = len(apart) * (1 if axis_name is None else lax.axis_size(axis_name))
    return jnp.sum(apart) / rows
