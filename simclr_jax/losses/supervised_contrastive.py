"""The supervised contrastive loss: images of one class are each other's positives (2004.11362)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.errors import choose
from simclr_jax.losses import batch, candidates, tiles
from simclr_jax.unlabelled import NO_LABEL

ANCHORS = ("all", "one")


def supervised_contrastive(
    views: Sequence[jax.Array],
    labels: jax.Array | None = None,
    *,
    temperature: float | jax.Array,
    base_temperature: float = 0.07,
    anchors: str = "all",
    positives: jax.Array | None = None,
    example: jax.Array | None = None,
    normalize: bool = True,
    local: Sequence[jax.Array] = (),
    axis_name: str | None = None,
    at_once: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return this device's share of the supervised contrastive loss (L_out, eq. 2).

    An anchor's loss is temperature / base_temperature times the mean over its positives of
    -log p(positive), where p is a softmax over all views of all images but the anchor itself. Other
    views of an image are positives too. An anchor without any has a loss of 0, and counts.

    Source: SupContrast `losses.py: SupConLoss`. There a temperature leaves the base temperature at
    0.07, unless that is given too: at 0.1 the loss is 1/0.7 of the paper's. So it is here.
    Embeddings come normalised there, and are normalised here.

    Embeddings that are all equal cost temperature / base_temperature times log(v N - 1), if every
    anchor has a positive.

    Args:
      views: `[n, d]` each, any number v of views of the same images; computed in float32, or
        float64 if they are. One view is enough where classes have several images.
      labels: int `[n]`, `NO_LABEL` (-1) for none: such an image is a class of its own, and a
        negative of all others. None: so is every image, which is SimCLR's loss for two views.
      temperature: divides the similarities.
      base_temperature: of which the temperature is a multiple in the loss; equal to it: no factor.
      anchors: "all" views, or first views alone ("one"), which are still compared with all.
      positives: instead of labels, int `[n, k]`: the images whose views are positives of each, by
        their numbers in `example`, -1 where there are fewer than k. It need not be mutual, and an
        image that is not in its own list has no positive in its other views. That is the official
        `mask`, of which row i lists the columns.
      example: int `[n]`, the number of each image, not negative; needed with `positives`.
      normalize: compare by cosine rather than by inner product.
      local: `[n, d]` each, local crops of the same images: more anchors, whichever `anchors` are.
        The candidates of a local crop are all views, and no local ones; the views of its own image
        are positives like those of its class.
      axis_name: mesh axis over which the global batch is spread; None if this is all of it.
      at_once: images whose views are compared with all at a time (`tiles.by_rows`).

    Returns:
      loss: scalar; the sum over devices is the mean over all anchors of the global batch.
      metrics: shares in the same sense: `contrast_accuracy`, how often the nearest of all other
        views is a positive, of anchors that are no local crops.

    Raises:
      UserError: if `anchors` is not known.
      ValueError: if labels and positives are both given, or positives without `example`.
    """
    choose("anchors of the loss", anchors, ANCHORS)
    if positives is not None and (labels is not None or example is None):
        raise ValueError("positives stand in place of labels, and need `example`")
    z = batch.gather(views, normalize=normalize, axis_name=axis_name, local=local)
    rows = {"row": z.row}
    if positives is not None and example is not None:
        rows["wanted"], offered = positives, example
    else:
        offered = jnp.full(len(z.row), NO_LABEL) if labels is None else labels
        rows["label"] = offered
    fixed = {"offered": batch.of_everyone(offered, axis_name)}
    used = z.own if anchors == "all" else z.own[:1]
    contrast = functools.partial(_contrast, len(used))
    losses, found = tiles.by_rows(
        contrast, [*used, *z.local], z.everyone, [], rows, fixed, temperature, at_once
    )
    loss = batch.mean(losses, axis_name=axis_name) * temperature / base_temperature
    metrics = {"contrast_accuracy": batch.mean(found, axis_name=axis_name)}
    return loss, lax.stop_gradient(metrics)


def _contrast(
    whole: int,
    similarities: tiles.Similarities,
    rows: dict[str, jax.Array],
    fixed: dict[str, jax.Array],
    temperature: float | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return, for some images `[r]`, means over their anchors: the loss, the nearest is a positive.

    Args:
      whole: anchors that are views, in their order; those that follow are local crops.
      similarities: of each anchor with all views `[r, N]`.
      rows: of the images: `row` `[r]`, and `label` `[r]` or `wanted` `[r, k]`.
      fixed: `offered` `[N]`, of all images labels, or numbers that may be wanted.
      temperature: divides the similarities.
    """
    row, offered = rows["row"], fixed["offered"]
    images, views = len(offered), len(similarities[0])
    if "label" in rows:
        own = candidates.of_image(row, images, views)
        friends = own | candidates.same_label(rows["label"], offered, views)
    else:  # one of the list after another: all at once would be [r, k, N]
        listed = jnp.zeros((len(row), images), bool)
        for number in rows["wanted"].T:
            listed |= number[:, None] == offered
        friends = jnp.tile(listed, (1, views))

    losses, found = [], []
    for view, of_view in enumerate(similarities):
        logits = candidates.side_by_side(of_view) / temperature  # [r, v N]
        if view < whole:
            itself = candidates.itself(row, view, images, views)
        else:
            itself = jnp.zeros_like(friends)
        among = jnp.where(itself, -jnp.inf, logits)
        positive = friends & ~itself
        count = jnp.sum(positive, axis=1)
        mean = jnp.sum(jnp.where(positive, logits, 0), axis=1) / jnp.maximum(count, 1)
        losses.append(jnp.where(count > 0, jax.nn.logsumexp(among, axis=1) - mean, 0))
        nearest = jnp.argmax(among, axis=1, keepdims=True)
        found.append(jnp.take_along_axis(positive, nearest, axis=1)[:, 0])
    return jnp.mean(jnp.stack(losses), axis=0), jnp.mean(jnp.stack(found[:whole]), axis=0)
