"""Decoupled contrastive losses, DCL and DCLW: no positive in the denominator (arXiv 2110.06848).

The authors published no code of their own. What is compared with is the one that others copy:
raminnakhli/Decoupled-Contrastive-Learning `loss/dcl.py`, its classes DCL and DCLW.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from simclr_jax.losses import batch, two_views


def decoupled(
    z1: jax.Array,
    z2: jax.Array,
    *,
    temperature: float | jax.Array,
    sigma: float | None = None,
    scale: str = "sum",
    normalize: bool = True,
    both_directions: bool = True,
    added_to_own: float = -math.inf,
    weights: jax.Array | None = None,
    local: Sequence[jax.Array] = (),
    axis_name: str | None = None,
    at_once: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return this device's share of the decoupled contrastive loss, DCL, or of DCLW.

    Of an anchor it is -w s+/t + log sum exp(s-/t), over the 2N - 2 views of other images: NT-Xent
    without the positive in the denominator. It has no lower bound at 0.

    Args:
      z1: `[n, d]` projections of first views; computed in float32, or float64 if they are.
      z2: `[n, d]` projections of second views of the same images.
      temperature: divides the similarities.
      sigma: None is DCL, w = 1. With a number it is DCLW: w_i = 2 - N exp(s_i/sigma) / sum_j
        exp(s_j/sigma), of the similarities of all N pairs of the global batch; 0.5 in the paper.
        Images far from their partners weigh more, those near to them may weigh less than 0. The
        weight carries gradient, as in the public code. The N pairs of a local crop with one view
        are weighed among themselves.
      scale: "sum" adds the mean loss of first views to that of second views, as that code's
        training does; "mean" is half of it.
      normalize: compare by cosine rather than by inner product; that code leaves it to its network.
      both_directions: False takes first views alone as anchors, as one call of that code does.
      added_to_own: is added to the logits of an anchor's own two views, which are thereby no
        negatives. That code adds log(1e-45) = -103.6. At a temperature of 0.01 that takes them from
        100 to -3.6, among the others, and they are negatives after all; here they never are.
      weights: `[n]` weight of each image's loss; the mean is over images of nonzero weight. None
        weighs all equally.
      local: `[n, d]` each, local crops of the same images, which ask for both views as
        `multi_crop.py` says.
      axis_name: mesh axis over which the global batch is spread; None if this is all of it.
      at_once: images whose views are compared with all others at a time; None decides by size.

    Returns:
      loss: scalar; the sum over devices is the loss of the global batch.
      metrics: shares in the same sense: `loss_mean` (the mean over anchors), `contrast_accuracy`
        and `contrast_entropy`, as of NT-Xent.

    Raises:
      ValueError: if the global batch has one image.
    """
    z = batch.gather((z1, z2), normalize=normalize, axis_name=axis_name, local=local)

    def spread(anchors: two_views.Anchors, temperature: float | jax.Array) -> jax.Array:
        logits = anchors.everyone / temperature
        return jax.nn.logsumexp(jnp.where(anchors.own, logits + added_to_own, logits), axis=1)

    compared = two_views.compare(
        spread,
        z,
        temperature,
        temperature=temperature,
        only_first=not both_directions,
        at_once=at_once,
    )
    attraction = jnp.sum(z.own[0] * z.own[1], axis=1) / temperature  # [n]
    if sigma is not None:
        attraction *= _weights(z, sigma)
    views = [of_view - attraction for of_view in compared.views]

    def attracted(crop: jax.Array, target: jax.Array) -> jax.Array:
        positive = jnp.sum(crop * target, axis=1)  # [n]
        weight = 1 if sigma is None else _among(positive, z.row, sigma, axis_name)
        return weight * positive / temperature

    pairs = [(crop, target) for crop in z.local for target in z.own]
    local = [
        of_pair - attracted(*pair) for of_pair, pair in zip(compared.local, pairs, strict=True)
    ]
    return two_views.result(
        compared._replace(views=views, local=local),
        scale=scale,
        weights=weights,
        axis_name=axis_name,
    )


def chance(images: int, *, scale: str = "sum") -> float:
    """Return the loss of embeddings that are all equal, in a global batch of so many images.

    It is the log of the number of negatives, of each view: the similarities cancel, and w is 1.
    """
    return two_views.times(scale) * math.log(two_views.negatives(images))


def floor(images: int, *, temperature: float, scale: str = "sum") -> float:
    """Return the loss of unit vectors: of two views that are equal, at right angles to others."""
    return two_views.times(scale) * (math.log(two_views.negatives(images)) - 1 / temperature)


def _weights(z: batch.Views, sigma: float) -> jax.Array:
    """Return DCLW's weight of each of this device's images, `[n]`; the mean over all is 1."""
    of_all = jnp.sum(z.everyone[0] * z.everyone[1], axis=1)  # [N]
    return 2 - len(of_all) * jax.nn.softmax(of_all / sigma)[z.row]


def _among(positive: jax.Array, row: jax.Array, sigma: float, axis_name: str | None) -> jax.Array:
    """Return likewise the weights of pairs of a local crop and a target of these similarities."""
    of_all = batch.of_everyone(positive, axis_name)  # [N]
    return 2 - len(of_all) * jax.nn.softmax(of_all / sigma)[row]
