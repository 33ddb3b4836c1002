"""The pairwise margin loss of Hadsell, Chopra and LeCun (2006): pull the same, push the rest.

A different pair at distance 0 has no direction in which to part and carries no gradient, so that an
encoder whose embeddings are all exactly equal stays so.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from simclr_jax.errors import choose
from simclr_jax.losses import batch, candidates, distances, tiles
from simclr_jax.unlabelled import NO_LABEL

FORMS = {"hadsell": 0.5, "addons": 1.0}  # the factor of both terms
Loss = tuple[jax.Array, dict[str, jax.Array]]


def of_distances(
    distance: jax.Array, same: jax.Array, *, margin: float | jax.Array, form: str = "hadsell"
) -> jax.Array:
    """Return the losses of pairs: d^2 of the same, max(margin - d, 0)^2 of different ones.

    Source: eq. 4 of the paper, where both are halved and Y = 1 is *different* ("hadsell");
    TensorFlow Addons `losses/contrastive.py: contrastive_loss`, not halved, where y = 1 is the
    *same* ("addons"). Here `same` is what it says with both.

    Args:
      distance: of any shape, not squared.
      same: of that shape, nonzero where a pair is the same.
      margin: beyond which different pairs cost nothing.
      form: one of `FORMS`.

    Raises:
      UserError: if the form is not known.
    """
    choose("form of the pairwise loss", form, FORMS)
    chex.assert_equal_shape((distance, same))
    apart = jnp.maximum(margin - distance, 0)
    return FORMS[form] * jnp.square(jnp.where(same.astype(bool), distance, apart))


def pairwise(
    a: jax.Array,
    b: jax.Array,
    same: jax.Array,
    *,
    margin: float | jax.Array,
    form: str = "hadsell",
    axis_name: str | None = None,
) -> jax.Array:
    """Return this device's share of the mean loss of given pairs, by Euclidean distance.

    Embeddings that are all equal cost the margin's square, halved with "hadsell", times the share
    of different pairs.

    Args:
      a: `[n, d]`, not normalised; computed in float32, or float64 if they are.
      b: `[n, d]`, the other of each pair.
      same: `[n]`, nonzero where the two are the same.
      margin, form: see `of_distances`.
      axis_name: mesh axis over which the pairs are spread; None if these are all.

    Returns:
      A scalar whose sum over the devices is the mean over all pairs.

    Raises:
      UserError: if the form is not known.
    """
    chex.assert_equal_shape((a, b))
    wide = jnp.promote_types(a.dtype, jnp.float32)
    squares = jnp.sum(jnp.square(a.astype(wide) - b.astype(wide)), axis=1)
    losses = of_distances(distances.root(squares), same, margin=margin, form=form)
    return batch.mean(losses, axis_name=axis_name)


def all_pairs(
    views: Sequence[jax.Array],
    labels: jax.Array | None = None,
    *,
    margin: float | jax.Array,
    form: str = "hadsell",
    normalize: bool = True,
    axis_name: str | None = None,
    at_once: int | None = None,
) -> Loss:
    """Return this device's share of the loss of all pairs of a batch, as if half were the same.

    The paper's pairs are given, and its loss is their mean. Of the pairs of a batch almost all are
    different; so the mean is taken of each kind, and the loss is the mean of the two: that of a
    list in which each kind comes equally often.

    Embeddings that are all equal cost half the margin's square, and half of that with "hadsell".

    Args:
      views: `[n, d]` each, of the same images; one or several; computed in float32, or float64 if
        they are.
      labels: int `[n]`, `NO_LABEL` (-1) for none: such an image takes no part. None: every image is
        a class of its own, whose members are its views.
      margin, form: see `of_distances`.
      normalize: scale rows to length 1 first; distances are then at most 2.
      axis_name: mesh axis over which the global batch is spread; None if this is all of it.
      at_once: images whose views are compared with all at a time (`tiles.by_rows`).

    Returns:
      loss: scalar; the sum over devices is the loss of the global batch. A kind without pairs
        costs 0.
      metrics: shares in the same sense: `close_pairs`, the share of different pairs within the
        margin.

    Raises:
      UserError: if the form is not known.
    """
    choose("form of the pairwise loss", form, FORMS)
    z = batch.gather(views, normalize=normalize, axis_name=axis_name)
    label = z.row if labels is None else labels
    rows = {"row": z.row, "label": label}
    fixed = {"labels": batch.of_everyone(label, axis_name)}
    sums = tiles.by_rows(
        functools.partial(_pairs, form),
        *distances.comparable(z, "L2"),
        [],
        rows,
        fixed,
        margin,
        at_once,
    )
    # Pairs of large batches are more than 32 bits count.
    pulled, pushed, close, positives, negatives = (
        jnp.sum(some, dtype=sums[0].dtype) for some in sums
    )
    positives, negatives = (
        jnp.maximum(batch.total(count, axis_name), 1) for count in (positives, negatives)
    )
    loss = (pulled / positives + pushed / negatives) / 2
    return loss, {"close_pairs": close / negatives}


def _pairs(
    form: str,
    products: tiles.Similarities,
    rows: dict[str, jax.Array],
    fixed: dict[str, jax.Array],
    margin: float | jax.Array,
) -> tuple[jax.Array, ...]:
    """Return, for some images `[r]`, sums over the pairs of their views, by kind.

    They are losses of the same and of different pairs, different ones within the margin, and
    numbers of the same and of different pairs.
    """
    row, label, labels = rows["row"], rows["label"], fixed["labels"]
    images, views = len(labels), len(products)
    same = candidates.same_label(label, labels, views)
    paired = (label != NO_LABEL)[:, None] & candidates.labelled(labels, views)
    sums = []
    for view, of_view in enumerate(products):
        apart = distances.between(candidates.side_by_side(of_view), "L2")
        positive = same & ~candidates.itself(row, view, images, views)
        negative = paired & ~same
        losses = of_distances(apart, same, margin=margin, form=form)
        sums.append(
            [
                jnp.where(positive, losses, 0),
                jnp.where(negative, losses, 0),
                negative & (apart < margin),
                positive,
                negative,
            ]
        )
    return tuple(jnp.sum(jnp.stack(some), axis=(0, 2)) for some in zip(*sums, strict=True))
