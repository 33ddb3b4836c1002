"""What losses of two views share: an anchor, its partner, and the views of all other images.

Each of the 2N views of a batch is an anchor in turn. Its partner is the other view of its image;
the 2N - 2 views of other images are its negatives. Local crops are anchors too, twice each: with
either view of their image for a partner, and the same negatives (`multi_crop.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.errors import choose
from simclr_jax.losses import batch, multi_crop, tiles

SCALES = ("sum", "mean")
NEGATIVES = ("sum", "mean", "semi_hard")  # of which of its negatives an anchor's loss is made


class Anchors(NamedTuple):
    """Similarities of r anchors, which are views of one group, with all views of the batch.

    Attributes:
      positive: `[r]`, with their partners.
      everyone: `[r, 2N]`, with all first views, then all second views.
      own: bool `[r, 2N]`, which two of them are of the anchor's image: itself and its partner, of
        a local crop both partners.
    """

    positive: jax.Array
    everyone: jax.Array
    own: jax.Array


class Compared(NamedTuple):
    """What was found of this device's n images.

    Attributes:
      views: what a loss is of each group of anchors, `[n]` each: of first views, of second ones.
      told: by name what is told beside the loss, `[n]` each.
      local: what a loss is of the pairs of each local crop with first views, then with second ones,
        `[n]` each, one crop after the other.
    """

    views: list[jax.Array]
    told: dict[str, jax.Array]
    local: Sequence[jax.Array] = ()


def negatives(images: int) -> int:
    """Return how many negatives a view has in a global batch of so many images.

    Raises:
      ValueError: if there are none.
    """
    if images < 2:
        raise ValueError("negatives are views of other images: a batch needs 2 images or more")
    return 2 * images - 2


def times(scale: str) -> int:
    """Return how many means over all views a loss of this scale is."""
    choose("loss scale", scale, SCALES)
    return 2 if scale == "sum" else 1


def compare(
    function: Callable[[Anchors, Any], jax.Array],
    z: batch.Views,
    numbers: Any,
    *,
    temperature: float | jax.Array | None = None,
    only_first: bool = False,
    at_once: int | None = None,
) -> Compared:
    """Return what a function of similarities finds of each view, by tiles of rows.

    Args:
      function: from `Anchors` of r rows and from `numbers` to `[r]`.
      z: two views of each image, and its local crops.
      numbers: of Python, or arrays, which carry gradient.
      temperature: of the softmax whose entropy is told; None: no entropy is.
      only_first: only first views are anchors.
      at_once: images whose views are compared with all others at a time; None decides by size.

    Raises:
      ValueError: if the global batch has one image.
    """
    negatives(len(z.everyone[0]))

    def of_rows(similarities, rows, fixed, numbers):
        numbers, temperature = numbers
        itself = rows[:, None] == jnp.arange(similarities[0][0].shape[1])  # [r, N]
        own = jnp.concatenate([itself, itself], axis=1)

        def of_pair(anchor: int, target: int) -> jax.Array:
            of_anchor = similarities[anchor]
            anchors = Anchors(
                positive=jnp.sum(jnp.where(itself, of_anchor[target], 0), axis=1),
                everyone=jnp.concatenate(of_anchor, axis=1),
                own=own,
            )
            return function(anchors, numbers)

        views = [of_pair(view, 1 - view) for view in range(count)]
        local = [of_pair(crop, t) for crop in range(count, len(similarities)) for t in (0, 1)]
        return Compared(views, found(similarities[0][1], rows, temperature), local)

    count = 1 if only_first else 2
    anchors = [*z.own[:count], *z.local]
    return tiles.by_rows(
        of_rows, anchors, z.everyone, [], z.row, {}, (numbers, temperature), at_once
    )


def found(
    similarities: jax.Array, partner: jax.Array, temperature: float | jax.Array | None
) -> dict[str, jax.Array]:
    """Return what is told of r rows beside the loss, which carries no gradient.

    Args:
      similarities: `[r, N]` with all candidates, before they are divided by a temperature.
      partner: int `[r]`, which candidate is the right one.
      temperature: None if the loss has none.

    Returns:
      `[r]` each: `contrast_accuracy`, whether the partner is nearest, and with a temperature
      `contrast_entropy`, nats of the softmax over all candidates.
    """
    seen = lax.stop_gradient(similarities)
    told = {"contrast_accuracy": (jnp.argmax(seen, axis=1) == partner).astype(seen.dtype)}
    if temperature is not None:
        probabilities = jax.nn.softmax(seen / temperature)
        # The epsilon is of the official NT-Xent (`tf2/metrics.py`).
        told["contrast_entropy"] = -jnp.sum(probabilities * jnp.log(probabilities + 1e-8), axis=1)
    return told


def result(
    compared: Compared,
    *,
    scale: str,
    weights: jax.Array | None,
    axis_name: str | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return this device's share of a loss and of its metrics.

    Args:
      compared: with the losses of all anchors in `views`, and of pairs of local crops in `local`.
      scale: "sum" adds the mean loss of first views to that of second views; "mean" is the mean
        over all of them. With local crops it is the mean over all pairs, or twice that.
      weights: `[n]` of the images; None weighs all equally.
      axis_name: mesh axis over which the global batch is spread; None if this is all of it.

    Returns:
      The loss, and as metrics `loss_mean` (by the scale "mean") and the means of what was told.
    """
    choose("loss scale", scale, SCALES)
    if compared.local:
        of_images = multi_crop.both([*compared.views, *compared.local])  # [n]
    else:
        of_images = jnp.sum(jnp.stack(compared.views), axis=0)
    total = batch.mean(of_images, weights, axis_name=axis_name)
    mean = total / len(compared.views)
    told = metrics(mean, compared.told, axis_name=axis_name)
    return total if scale == "sum" else mean, told


def metrics(
    loss_mean: jax.Array, told: dict[str, jax.Array], *, axis_name: str | None
) -> dict[str, jax.Array]:
    """Return shares of `loss_mean` and of the means of what was told of each image."""
    means = {name: batch.mean(value, axis_name=axis_name) for name, value in told.items()}
    return lax.stop_gradient({"loss_mean": loss_mean} | means)


def over_negatives(
    of: Callable[[jax.Array, jax.Array], jax.Array],
    anchors: Anchors,
    which: str,
    margin: float | jax.Array,
) -> jax.Array:
    """Return a term `of(negative, positive)` over the negatives of each anchor, `[r]`.

    "semi_hard" is the term of one negative: the most similar one that is less similar than the
    positive, and by less than the margin; 0 if there is none. No gradient runs through the choice;
    of equal ones the first is taken.

    Args:
      of: from similarities that broadcast to the term.
      anchors: of r rows.
      which: one of `NEGATIVES`: the sum or the mean over all negatives, or the term of one.
      margin: in units of similarity, for "semi_hard" alone.
    """
    positive, everyone = anchors.positive[:, None], anchors.everyone
    if which != "semi_hard":
        total = jnp.sum(jnp.where(anchors.own, 0, of(everyone, positive)), axis=1)
        return total if which == "sum" else total / (everyone.shape[1] - 2)
    semi_hard = ~anchors.own & (everyone < positive) & (everyone > positive - margin)
    hardest = jnp.argmax(jnp.where(semi_hard, everyone, -jnp.inf), axis=1, keepdims=True)
    chosen = jnp.take_along_axis(everyone, hardest, axis=1)
    return jnp.where(jnp.any(semi_hard, axis=1), of(chosen, positive)[:, 0], 0)


def counted(images: int, which: str) -> int:
    """Return how many terms `over_negatives` amounts to in a global batch of so many images."""
    count = negatives(images)
    return count if which == "sum" else 1
