"""The margin loss that SimCLR compares NT-Xent with (arXiv 2002.05709, section 5.1).

Table 2 gives it for one positive and one negative; the official code has no such loss. How the
negatives of a batch are joined is open, so three readings are here.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from simclr_jax.errors import choose
from simclr_jax.losses import batch, two_views


def margin_loss(
    z1: jax.Array,
    z2: jax.Array,
    *,
    margin: float | jax.Array,
    negatives: str = "mean",
    scale: str = "mean",
    normalize: bool = True,
    weights: jax.Array | None = None,
    local: Sequence[jax.Array] = (),
    axis_name: str | None = None,
    at_once: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return this device's share of the margin triplet loss, max(s- - s+ + m, 0) of an anchor.

    Args:
      z1: `[n, d]` projections of first views; computed in float32, or float64 if they are.
      z2: `[n, d]` projections of second views of the same images.
      margin: m, in units of similarity.
      negatives: "sum" or "mean" of the term over an anchor's 2N - 2 negatives; or "semi_hard", the
        term of one: the most similar negative that is less similar than the positive, and by less
        than the margin. An anchor without such a negative loses nothing.
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
      metrics: shares in the same sense: `loss_mean` (the mean over views) and `contrast_accuracy`,
        as of NT-Xent.

    Raises:
      UserError: if `negatives` or `scale` is none of those.
      ValueError: if the global batch has one image.
    """
    choose("negatives of the margin loss", negatives, two_views.NEGATIVES)
    z = batch.gather((z1, z2), normalize=normalize, axis_name=axis_name, local=local)

    def of_anchors(anchors: two_views.Anchors, margin: float | jax.Array) -> jax.Array:
        def of(negative: jax.Array, positive: jax.Array) -> jax.Array:
            return jax.nn.relu(negative - positive + margin)

        return two_views.over_negatives(of, anchors, negatives, margin)

    compared = two_views.compare(of_anchors, z, margin, at_once=at_once)
    return two_views.result(compared, scale=scale, weights=weights, axis_name=axis_name)


def chance(images: int, *, margin: float, negatives: str = "mean", scale: str = "mean") -> float:
    """Return the loss of an encoder that has learned nothing, in a global batch of so many images.

    Positives and negatives are then alike but for noise, and an anchor loses the margin, on each of
    the negatives that count. Where all embeddings are equal to the last bit no negative is
    semi-hard, and that loss is 0: collapse is a minimum of it.
    """
    return two_views.times(scale) * two_views.counted(images, negatives) * margin


def floor(images: int, *, margin: float, negatives: str = "mean", scale: str = "mean") -> float:
    """Return the loss of unit vectors: of two views that are equal, at right angles to others."""
    return chance(images, margin=max(margin - 1, 0), negatives=negatives, scale=scale)
