"""Debiased contrastive loss (arXiv 2007.00224), and hard negatives on top of it (2010.04592).

Negatives are views of other images, some of which are of the same class. Both papers estimate, from
all of them and from the positive, the sum over those of other classes; the second weighs the hard
ones more. Sources: chingyaoc/DCL `main.py: train`, joshr17/HCL `image/main.py: criterion`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from simclr_jax.losses import batch, two_views


def debiased(
    z1: jax.Array,
    z2: jax.Array,
    *,
    temperature: float | jax.Array,
    tau_plus: float | jax.Array = 0.1,
    beta: float | jax.Array = 0.0,
    scale: str = "mean",
    normalize: bool = True,
    weights: jax.Array | None = None,
    local: Sequence[jax.Array] = (),
    axis_name: str | None = None,
    at_once: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return this device's share of the debiased loss, and by `beta` of that of hard negatives.

    Of an anchor it is -log(e^(s+/t) / (e^(s+/t) + G)). With K = 2N - 2 negatives, of which the one
    at similarity s counts by a = e^(beta s/t), made to have the mean 1,

        G = max((sum a e^(s/t) - tau K e^(s+/t)) / (1 - tau), K e^(-1/t)).

    The lower bound is what K negatives opposite to the anchor would sum up to, if vectors have
    length 1. An anchor that is there has no gradient through G, so that its negatives do not move;
    at a low temperature many are. The weights a carry gradient, as in the code.

    The codes exponentiate similarities as they are, which overflows in float32 from 1/t = 88 on.
    Here sums are kept as logarithms: the same numbers at any temperature.

    Args:
      z1: `[n, d]` projections of first views; computed in float32, or float64 if they are.
      z2: `[n, d]` projections of second views of the same images.
      temperature: divides the similarities.
      tau_plus: how likely a negative is of the anchor's class, at least 0, below 1. With 0 and a
        beta of 0 it is NT-Xent: the "easy" estimator of HCL, and DCL's where it does not debias.
      beta: how much more hard negatives weigh; 0 is the debiased loss.
      scale: "mean" is the mean over 2N views, as both codes have it; "sum" is twice that.
      normalize: compare by cosine rather than by inner product; the codes do so in their networks.
      weights: `[n]` weight of each image's loss; the mean is over images of nonzero weight. None
        weighs all equally.
      local: `[n, d]` each, local crops of the same images, which ask for both views as
        `multi_crop.py` says.
      axis_name: mesh axis over which the global batch is spread; None if this is all of it.
      at_once: images whose views are compared with all others at a time; None decides by size.

    Returns:
      loss: scalar; the sum over devices is the loss of the global batch.
      metrics: shares in the same sense: `loss_mean` (the mean over views), `contrast_accuracy` and
        `contrast_entropy`, as of NT-Xent.

    Raises:
      ValueError: if the global batch has one image.
    """
    z = batch.gather((z1, z2), normalize=normalize, axis_name=axis_name, local=local)
    numbers = {"temperature": temperature, "tau_plus": tau_plus, "beta": beta}
    compared = two_views.compare(_of_anchors, z, numbers, temperature=temperature, at_once=at_once)
    return two_views.result(compared, scale=scale, weights=weights, axis_name=axis_name)


def chance(images: int, *, scale: str = "mean") -> float:
    """Return the loss of embeddings that are all equal, in a global batch of so many images.

    Whatever tau and beta are it is that of NT-Xent, the log of the number of candidates: the mean
    over negatives is the positive.
    """
    return two_views.times(scale) * math.log(1 + two_views.negatives(images))


def floor(images: int, *, temperature: float, tau_plus: float = 0.1, scale: str = "mean") -> float:
    """Return the loss of unit vectors: of two views that are equal, at right angles to others."""
    sharp = math.exp(-1 / temperature)  # e^(s/t) of the negatives over that of the positive
    estimate = max((sharp - tau_plus) / (1 - tau_plus), sharp**2)
    return two_views.times(scale) * math.log1p(two_views.negatives(images) * estimate)


def _of_anchors(anchors: two_views.Anchors, numbers: dict[str, float | jax.Array]) -> jax.Array:
    """Return the losses `[r]`; see `debiased`."""
    t, tau, beta = numbers["temperature"], numbers["tau_plus"], numbers["beta"]
    count = anchors.own.shape[1] - 2
    positive, logits = anchors.positive / t, anchors.everyone / t

    def log_sum(of_all: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(jnp.where(anchors.own, -jnp.inf, of_all), axis=1)

    every = log_sum((1 + beta) * logits) - log_sum(beta * logits) + math.log(count)
    # log((e^every - tau K e^positive) / (1 - tau)), where that is more than 0.
    same_class = positive + jnp.log(tau * count) - every
    some = same_class < 0
    rest = jnp.log(-jnp.expm1(jnp.where(some, same_class, -1.0)))
    estimate = jnp.where(some, every + rest - jnp.log1p(-tau), -jnp.inf)
    least = math.log(count) - 1 / t
    return jax.nn.softplus(jnp.where(estimate >= least, estimate, least) - positive)
