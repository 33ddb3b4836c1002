"""NT-Logistic, which SimCLR compares NT-Xent with (arXiv 2002.05709, section 5.1).

Table 2 gives it for one positive and one negative; the official code has no such loss. How the
negatives of a batch are joined is open, so three readings are here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax

from simclr_jax.errors import choose
from simclr_jax.losses import batch, two_views


def nt_logistic(
    z1: jax.Array,
    z2: jax.Array,
    *,
    temperature: float | jax.Array,
    negatives: str = "mean",
    margin: float | jax.Array | None = None,
    scale: str = "mean",
    normalize: bool = True,
    weights: jax.Array | None = None,
    local: Sequence[jax.Array] = (),
    axis_name: str | None = None,
    at_once: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return this device's share of NT-Logistic: is a pair of one image or not?

    Of an anchor it is -log sigmoid(s+/t) - log sigmoid(-s-/t).

    Args:
      z1: `[n, d]` projections of first views; computed in float32, or float64 if they are.
      z2: `[n, d]` projections of second views of the same images.
      temperature: t, divides the similarities.
      negatives: "sum" or "mean" of the second term over an anchor's 2N - 2 negatives; or
        "semi_hard", the term of one: the most similar negative that is less similar than the
        positive, and by less than the margin. An anchor without such a negative keeps the first
        term alone.
      margin: for semi-hard negatives, in units of similarity; None for the others.
      scale: "mean" over 2N views; "sum" is twice that.
      normalize: compare by cosine, as in the paper, rather than by inner product.
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
      UserError: if `negatives` or `scale` is none of those.
      ValueError: if a margin is given without semi-hard negatives or lacks with them, or if the
        global batch has one image.
    """
    choose("negatives of NT-Logistic", negatives, two_views.NEGATIVES)
    if (margin is not None) is not (negatives == "semi_hard"):
        raise ValueError(f"margin is {margin} with {negatives} negatives: semi_hard alone has one")
    z = batch.gather((z1, z2), normalize=normalize, axis_name=axis_name, local=local)

    def of_anchors(anchors: two_views.Anchors, numbers: tuple) -> jax.Array:
        temperature, margin = numbers

        def of(negative: jax.Array, positive: jax.Array) -> jax.Array:
            return jax.nn.softplus(negative / temperature)

        attraction = jax.nn.softplus(-anchors.positive / temperature)
        return attraction + two_views.over_negatives(of, anchors, negatives, margin)

    numbers = temperature, 0.0 if margin is None else margin
    compared = two_views.compare(of_anchors, z, numbers, temperature=temperature, at_once=at_once)
    return two_views.result(compared, scale=scale, weights=weights, axis_name=axis_name)


def chance(images: int, *, negatives: str = "mean", scale: str = "mean") -> float:
    """Return the loss of an encoder that has learned nothing, in a global batch of so many images.

    It is that of cosines about 0, the least that is possible where positives and negatives are
    alike: log 2 for the positive, and for each of the negatives that count. Embeddings that are all
    equal lose more: softplus(-1/t), and softplus(1/t) for each of them. None of these is semi-hard
    if they are equal to the last bit; with semi-hard negatives that is the least of all losses.
    """
    return two_views.times(scale) * (1 + two_views.counted(images, negatives)) * math.log(2)


def floor(
    images: int,
    *,
    temperature: float,
    negatives: str = "mean",
    margin: float | None = None,
    scale: str = "mean",
) -> float:
    """Return the loss of unit vectors: of two views that are equal, at right angles to others."""
    chosen = margin is None or margin > 1  # else no negative is semi-hard
    repulsion = two_views.counted(images, negatives) * math.log(2) if chosen else 0.0
    return two_views.times(scale) * (math.log1p(math.exp(-1 / temperature)) + repulsion)
