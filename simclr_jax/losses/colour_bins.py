"""Colours as classes: 313 bins of the plane (a, b) of CIE Lab (Zhang et al. 2016, 1603.08511).

The published law, as in richzhang/colorization `resources/caffe_traininglayers.py`: a colour is a
distribution over the bins that are nearest to it, and a pixel weighs the more the rarer its colour
is. Beside it the simple form, regression of a and b.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SIDE = 10  # of a bin, in units of a and b
LARGEST = 110.0  # about the largest |a| or |b| of a colour that screens have
ANNEALED = 0.38  # the published temperature at which a distribution becomes one colour

# The bins that hold colours of sRGB: for each a the least and the largest b (`pts_in_hull.npy`).
ROWS: tuple[tuple[int, int, int], ...] = (
    *((-90, 50, 90), (-80, 20, 90), (-70, 0, 90), (-60, -20, 90), (-50, -30, 100)),
    *((-40, -40, 100), (-30, -50, 100), (-20, -50, 100), (-10, -60, 100), (0, -70, 100)),
    *((10, -80, 90), (20, -80, 90), (30, -90, 90), (40, -100, 90), (50, -100, 80)),
    *((60, -110, 80), (70, -110, 80), (80, -110, 70), (90, -110, 70), (100, -90, 0)),
)
# Their centres (a, b) in the official order, `[313, 2]`.
BINS = np.array([(a, b) for a, low, high in ROWS for b in range(low, high + 1, SIDE)])


class Encoded(NamedTuple):
    """Colours as distributions over bins.

    Attributes:
      bins: int `[..., k]`, the k bins nearest to a colour, from the nearest on.
      share: `[..., k]`, what each of them has of it; they sum to 1.
    """

    bins: jax.Array
    share: jax.Array

    def spread(self) -> jax.Array:
        """Return the mean distribution of all pixels of each image, `[n, 313]`.

        It is what `rebalancing` wants to know of many images: how frequent colours are.
        """
        n, pixels = len(self.share), self.share[0, ..., 0].size
        rows = jnp.broadcast_to(jnp.arange(n)[:, None], (n, self.share[0].size))
        counts = jnp.zeros((n, len(BINS)), self.share.dtype)
        return counts.at[rows, self.bins.reshape(n, -1)].add(self.share.reshape(n, -1)) / pixels


def soft_encoded(ab: jax.Array, *, neighbours: int = 10, sigma: float = 5.0) -> Encoded:
    """Return colours as distributions over the nearest bins, by a Gaussian of their distance.

    Args:
      ab: `[..., 2]`; computed in float32, or float64 if they are. Carries no gradient.
      neighbours: how many bins.
      sigma: deviation of the Gaussian.
    """
    ab = lax.stop_gradient(ab.astype(jnp.promote_types(ab.dtype, jnp.float32)))
    centres = jnp.asarray(BINS, ab.dtype)
    # Differences squared: expanded, the squares would cancel.
    apart = sum(jnp.square(ab[..., i, None] - centres[:, i]) for i in range(2))
    nearest, bins = lax.top_k(-apart, neighbours)  # of equals the first
    return Encoded(bins, jax.nn.softmax(nearest / (2 * sigma**2), -1))


def rebalancing(prior: jax.Array, *, alpha: float = 1.0, uniform: float = 0.5) -> jax.Array:
    """Return the weight of a pixel by the bin nearest to its colour, `[313]`.

    w = ((1 - uniform) p + uniform / (number of bins that occur))^-alpha, scaled so that it is 1 in
    the mean over p.

    Args:
      prior: `[313]`, how frequent each bin is among the training images; sums to 1.
      alpha: 0: all pixels weigh the same.
      uniform: share of the uniform distribution in the mixture, lambda of the paper, in [0, 1].
    """
    chex.assert_shape(prior, (len(BINS),))
    occurs = (prior > 0).astype(prior.dtype)
    even = occurs / jnp.sum(occurs)
    mixed = (1 - uniform) * prior + uniform * even
    # A bin that never occurs weighs nothing where the mixture leaves it at 0: nobody asks.
    weight = jnp.where(mixed > 0, jnp.maximum(mixed, jnp.finfo(prior.dtype).tiny) ** -alpha, 0)
    return weight / jnp.sum(prior * weight)


def cross_entropy(logits: jax.Array, colours: Encoded) -> jax.Array:
    """Return the cross entropy of each pixel, `[...]`, in nats.

    Args:
      logits: `[..., 313]`; computed in float32, or float64 if they are.
      colours: of the same pixels.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    found = jnp.take_along_axis(logits, colours.bins, -1)  # [..., k]
    return jax.nn.logsumexp(logits, -1) - jnp.sum(colours.share * found, -1)


def weight_of(colours: Encoded, weights: jax.Array) -> jax.Array:
    """Return the weight of each pixel, `[...]`: that of the bin nearest to its colour.

    In the official program it multiplies the gradient of the cross entropy; as a factor of the loss
    it gives the same gradient.
    """
    return weights[colours.bins[..., 0]]


def annealed_mean(logits: jax.Array, temperature: float = ANNEALED) -> jax.Array:
    """Return one colour (a, b) for each distribution, `[..., 2]`.

    Temperature 1 is the mean, which is dull; towards 0 it becomes the most likely bin.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    share = jax.nn.softmax(logits / temperature, -1)
    return jnp.matmul(share, jnp.asarray(BINS, share.dtype), precision="highest")
