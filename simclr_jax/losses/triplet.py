"""Triplet losses: a positive must be nearer than a negative, by a margin (1503.03832, 1703.07737).

Source of both: TensorFlow Addons `losses/triplet.py`, with its way out where an anchor has no
positive or no negative. Compared are all rows of a batch, which come normalised there, and are
normalised here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.errors import choose
from simclr_jax.losses import batch, candidates, distances, tiles
from simclr_jax.losses.unit import l2_normalize
from simclr_jax.unlabelled import NO_LABEL

NORMALIZED = ("rows", "batch", "none")
Loss = tuple[jax.Array, dict[str, jax.Array]]
Sums = tuple[jax.Array, jax.Array, jax.Array]  # of losses, of those that cost, of triplets: `[r]`
Margin = float | jax.Array
Law = Callable[[jax.Array, jax.Array, jax.Array, Margin], Sums]


def semi_hard(
    views: Sequence[jax.Array],
    labels: jax.Array | None = None,
    *,
    margin: Margin,
    distance: str = "L2",
    normalize: str = "rows",
    axis_name: str | None = None,
    at_once: int | None = None,
) -> Loss:
    """Return this device's share of the triplet loss with semi-hard negatives.

    For every anchor a and positive p the negative n is the nearest that is farther than p, however
    far that is; if none is, the farthest of all. The loss is the mean over all ordered pairs of
    max(margin + d(a, p) - d(a, n), 0), those that are 0 too. An anchor without negatives has itself
    for one, at distance 0.

    Source: TensorFlow Addons `triplet_semihard_loss`. tf.contrib's, which Google's exemplar code
    calls, is that with squared distances; and that code normalises over the batch and not the rows
    (`google/revisiting-self-supervised, exemplar.py: model_fn`), which looks like a slip.

    Embeddings that are all equal cost the margin.

    Args:
      views: `[n, d]` each, of the same images; one or several; computed in float32, or float64 if
        they are.
      labels: int `[n]`, `NO_LABEL` (-1) for none: such an image takes no part. None: every image is
        a class of its own, whose members are its views.
      margin: in units of the distance.
      distance: one of `distances.DISTANCES`. Where two rows are equal it carries no gradient.
      normalize: scale each of the "rows" to length 1, or each dimension over the "batch" with all
        its views, or "none".
      axis_name: mesh axis over which the global batch is spread; None if this is all of it.
      at_once: images whose views are compared with all at a time (`tiles.by_rows`).

    Returns:
      loss: scalar; the sum over devices is the loss of the global batch, 0 without any pair.
      metrics: shares in the same sense: `active_triplets`, the share of triplets that cost
        something.

    Raises:
      UserError: if `distance` or `normalize` is not known.
    """
    return _triplets(_semi_hard, views, labels, margin, distance, normalize, axis_name, at_once)


def hard(
    views: Sequence[jax.Array],
    labels: jax.Array | None = None,
    *,
    margin: Margin | None,
    distance: str = "L2",
    normalize: str = "rows",
    axis_name: str | None = None,
    at_once: int | None = None,
) -> Loss:
    """Return this device's share of the triplet loss with the hardest of both kinds.

    Each anchor meets its farthest positive p and its nearest negative n; the loss is the mean over
    anchors of max(margin + d(a, p) - d(a, n), 0), or with a soft margin of
    log(1 + exp(d(a, p) - d(a, n))). An anchor without positives has itself for one, at distance 0;
    one without negatives costs the margin, or log 2, and moves nothing.

    Source: TensorFlow Addons `triplet_hard_loss`. Embeddings that are all equal cost the margin, or
    log 2.

    Args:
      views, labels, distance, ...: as for `semi_hard`.
      margin: in units of the distance; None is the soft margin.

    Returns:
      loss and metrics as `semi_hard` does; `active_triplets` counts, with a soft margin, those
      whose negative is nearer than the positive.

    Raises:
      UserError: if `distance` or `normalize` is not known.
    """
    law, margin = (_soft_hard, 0.0) if margin is None else (_hard, margin)
    return _triplets(law, views, labels, margin, distance, normalize, axis_name, at_once)


def _triplets(
    law: Law,
    views: Sequence[jax.Array],
    labels: jax.Array | None,
    margin: Margin,
    distance: str,
    normalize: str,
    axis_name: str | None,
    at_once: int | None,
) -> Loss:
    choose("distance", distance, distances.DISTANCES)
    choose("what the triplet loss normalises", normalize, NORMALIZED)
    z = batch.gather(views, normalize=normalize == "rows", axis_name=axis_name)
    if normalize == "batch":
        z = _over_batch(z)
    label = z.row if labels is None else labels
    rows = {"row": z.row, "label": label}
    fixed = {"labels": batch.of_everyone(label, axis_name)}
    function = functools.partial(_of_rows, law, distance)
    sums = tiles.by_rows(
        function, *distances.comparable(z, distance), [], rows, fixed, margin, at_once
    )
    # Pairs of large batches are more than 32 bits count.
    loss, active, counted = (jnp.sum(some, dtype=sums[0].dtype) for some in sums)
    triplets = jnp.maximum(batch.total(counted, axis_name), 1)
    return loss / triplets, {"active_triplets": active / triplets}


def _over_batch(z: batch.Views) -> batch.Views:
    """Scale each dimension to length 1 over all rows of all views of all devices."""
    count = len(z.row)
    everyone = jnp.split(l2_normalize(jnp.concatenate(z.everyone).T).T, len(z.everyone))
    own = [lax.dynamic_slice_in_dim(some, z.row[0], count) for some in everyone]
    return batch.Views(own, everyone, z.row)


def _of_rows(
    law: Law,
    distance: str,
    products: tiles.Similarities,
    rows: dict[str, jax.Array],
    fixed: dict[str, jax.Array],
    margin: Margin,
) -> Sums:
    """Return, for some images `[r]`, what `law` says of each of their views, added up.

    Args:
      law: from distances `[r, v N]` of anchors, which of the candidates are positives, which are
        negatives, and the margin, to sums over the triplets of each anchor.
      distance: what products of rows stand for.
      products: of each view, with all views `[r, N]`.
      rows: of the images: `row` and `label`, `[r]`.
      fixed: `labels` `[N]`, of all images.
      margin: see `semi_hard`.
    """
    row, label, labels = rows["row"], rows["label"], fixed["labels"]
    images, views = len(labels), len(products)
    same = candidates.same_label(label, labels, views)
    known = label != NO_LABEL
    negative = ~same & known[:, None] & candidates.labelled(labels, views)
    sums = []
    for view, of_view in enumerate(products):
        apart = distances.between(candidates.side_by_side(of_view), distance)
        positive = same & ~candidates.itself(row, view, images, views)
        losses, active, counted = law(apart, positive, negative, margin)
        sums.append([jnp.where(known, some, 0) for some in (losses, active, counted)])
    losses, active, counted = (jnp.sum(jnp.stack(some), 0) for some in zip(*sums, strict=True))
    return losses, active, counted


def _semi_hard(apart: jax.Array, positive: jax.Array, negative: jax.Array, margin: Margin) -> Sums:
    """Find the negatives of all positives of a row in its sorted ones: no array is [r, p, n].

    Sorting is most of the work: on a CPU some twenty times that of the other losses.
    """
    seen = lax.stop_gradient(jnp.where(negative, apart, jnp.inf))
    order = jnp.argsort(seen, axis=1)
    rising = jnp.take_along_axis(seen, order, axis=1)
    farther = jax.vmap(functools.partial(jnp.searchsorted, side="right"))(
        rising, lax.stop_gradient(apart)
    )
    count = jnp.sum(negative, axis=1, keepdims=True)
    place = jnp.maximum(jnp.minimum(farther, count - 1), 0)
    found = jnp.take_along_axis(apart, jnp.take_along_axis(order, place, axis=1), axis=1)
    costs = jnp.maximum(margin + apart - jnp.where(count > 0, found, 0), 0)
    costs = jnp.where(positive, costs, 0)
    return jnp.sum(costs, axis=1), jnp.sum(costs > 0, axis=1), jnp.sum(positive, axis=1)


def _hardest(
    apart: jax.Array, positive: jax.Array, negative: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return for each row its largest distance to a positive, its smallest to a negative."""
    far = jnp.max(jnp.where(positive, apart, 0), axis=1)
    near = jnp.min(jnp.where(negative, apart, jnp.inf), axis=1)
    return far, jnp.where(jnp.any(negative, axis=1), near, far)


def _hard(apart: jax.Array, positive: jax.Array, negative: jax.Array, margin: Margin) -> Sums:
    far, near = _hardest(apart, positive, negative)
    costs = jnp.maximum(margin + far - near, 0)
    return costs, costs > 0, jnp.ones_like(costs)


def _soft_hard(apart: jax.Array, positive: jax.Array, negative: jax.Array, margin: Margin) -> Sums:
    del margin
    far, near = _hardest(apart, positive, negative)
    return jax.nn.softplus(far - near), far > near, jnp.ones_like(far)
