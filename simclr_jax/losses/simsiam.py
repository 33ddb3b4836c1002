"""SimSiam's loss: a prediction points the way of what the other view became (arXiv 2011.10566)."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.losses.batch import mean
from simclr_jax.losses.unit import l2_normalize

SHORTEST = 1e-8  # PyTorch's `CosineSimilarity` counts a shorter vector as so long


def negative_cosine(
    prediction: jax.Array, target: jax.Array, *, axis_name: str | None = None
) -> jax.Array:
    """Return this device's share of the mean of minus cos(prediction, target) (eq. 1).

    The whole loss of SimSiam is the mean of both directions, from either view to the other (eq. 2),
    -1 at best. A prediction of zeros counts 0, and its gradient is officially, and here, that of a
    vector of length 1e-8: 1e8 times that of one of length 1.
    Source: facebookresearch/simsiam `main_simsiam.py: train`.

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
    cosine = l2_normalize(prediction, SHORTEST) * l2_normalize(target, SHORTEST)
    return -mean(jnp.sum(cosine, axis=-1), axis_name=axis_name)
