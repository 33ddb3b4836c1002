"""Contrast that looks for false negatives, and cancels them (FNC, arXiv 2011.11765)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.errors import choose
from simclr_jax.losses import batch, candidates, tiles
from simclr_jax.losses.nt_xent import NO_IMAGE

CANCEL = ("attraction", "elimination")


def false_negative_cancellation(
    views: Sequence[jax.Array],
    *,
    temperature: float | jax.Array,
    top_k: int,
    threshold: float,
    cancel: str = "attraction",
    normalize: bool = True,
    keys: Sequence[jax.Array] | None = None,
    memory: jax.Array | None = None,
    example: jax.Array | None = None,
    kept: jax.Array | None = None,
    axis_name: str | None = None,
    at_once: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return this device's share of NT-Xent over several views, without its false negatives.

    A candidate's score for an image is the largest of its similarities with any view of the image,
    not divided by the temperature: more (support) views make it surer. Candidates of other images
    that are among the `top_k` scores *and* above the threshold are the false negatives F of the
    image, of all its V views alike. By "attraction" they become positives: a view's loss is the
    mean of -log p over its V - 1 positives and F, and the denominator is that of NT-Xent. By
    "elimination" they leave the denominator, and the positives are V - 1. The loss is 2/V times the
    sum over views of the mean over images: NT-Xent's for two views when F is empty.

    Source: google-research/fnc `objective.py`, `add_contrastive_loss` and
    `add_contrastive_loss_with_memory`, for attraction; elimination is in the paper's section 3.2
    alone. No gradient flows through the choice of F.

    Embeddings that are all equal cost 2 log(M - 1) by attraction, where M is the number of
    candidates; by elimination 2 log(M - 1 - top_k) at a threshold below 1.

    Args:
      views: V of `[n, d]`, at least two, the support views among them; computed in float32, or
        float64 if they are.
      temperature: divides the similarities.
      top_k: most false negatives of an image; more than there are candidates is all of them.
      threshold: of scores.
      cancel: "attraction" or "elimination".
      normalize: compare by cosine rather than by inner product; the keys too.
      keys: V of `[n, d]`, of a moving average of the network, of the same views. With them they and
        the memory are the candidates, the keys' scores choose F, and the views are anchors alone:
        an anchor's positives are the keys of the other views, and the key of its own view is none
        of its candidates. They carry no gradient.
      memory: `[K, d]`, keys of earlier batches, the same on every device; needs keys. It is taken
        as it is, as in the official code: rows of zeros of a memory that is not full yet are
        negatives of similarity 0, and so are old keys of the anchor's own image, unless they are
        found to be false ones.
      example: int `[n]`, the number of each image; needed with `kept`.
      kept: int `[K]`, the number of the image of which each row of the memory is, `NO_IMAGE` for
        none: with it rows of no image, and those of the anchor's own, are no candidates.
      axis_name: mesh axis over which the global batch is spread; None if this is all of it.
      at_once: images whose views are compared with all at a time (`tiles.by_rows`).

    Returns:
      loss: scalar; the sum over devices is the loss of the global batch.
      metrics: shares in the same sense: `loss_mean` (half of it, the mean over all views) and
        `false_negatives`, how many an image has.

    Raises:
      UserError: if `cancel` is not known.
      ValueError: if there are fewer than two views, not as many keys, a memory without keys, or
        `kept` without memory and example.
    """
    choose("what becomes of false negatives", cancel, CANCEL)
    if len(views) < 2 or (keys is not None and len(keys) != len(views)):
        raise ValueError("views are compared with other views: give at least two, and a key each")
    if (memory is not None and keys is None) or (
        kept is not None and (memory is None or example is None)
    ):
        raise ValueError("a memory needs `keys`, and `kept` a memory and `example`")
    z = batch.gather(views, normalize=normalize, axis_name=axis_name)
    rows, fixed, old = {"row": z.row}, {}, []
    anchors, others = z.own, z.everyone
    if keys is not None:
        k = batch.gather(
            [lax.stop_gradient(key) for key in keys], normalize=normalize, axis_name=axis_name
        )
        anchors, others, old = [*z.own, *k.own], [], list(k.everyone)
        if memory is not None:
            old.append(memory.astype(z.own[0].dtype))
        if kept is not None and example is not None:
            rows["example"], fixed["kept"] = example, kept
    function = functools.partial(
        _contrast, len(views), len(z.everyone[0]), top_k, threshold, cancel
    )
    losses, found = tiles.by_rows(function, anchors, others, old, rows, fixed, temperature, at_once)
    loss = batch.mean(losses, axis_name=axis_name)
    count = batch.mean(found.astype(losses.dtype), axis_name=axis_name)
    return 2 * loss, lax.stop_gradient({"loss_mean": loss, "false_negatives": count})


def _contrast(
    views: int,
    images: int,
    top_k: int,
    threshold: float,
    cancel: str,
    similarities: tiles.Similarities,
    rows: dict[str, jax.Array],
    fixed: dict[str, jax.Array],
    temperature: float | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return, for some images `[r]`, the mean loss of their views, and how many are in F.

    Args:
      views: V.
      images: N, of which each view is a candidate, or its key.
      top_k, threshold, cancel: see above.
      similarities: of each view, then, if there are keys, of each view's key; with all views or
        keys `[r, N]`, and with the memory `[r, K]`.
      rows: of the images: `row` `[r]`, and with `kept` `example` `[r]`.
      fixed: `kept` `[K]`, if it is given.
      temperature: divides the similarities.
    """
    products = [candidates.side_by_side(some) for some in similarities]  # [r, M]
    size, old = products[0].shape[1], products[0].shape[1] - views * images
    row = rows["row"]

    def with_memory(mask: jax.Array) -> jax.Array:
        return jnp.pad(mask, ((0, 0), (0, old)))

    own = with_memory(candidates.of_image(row, images, views))
    outside = jnp.zeros_like(own)
    if "kept" in fixed:
        number = fixed["kept"]
        outside = (number == NO_IMAGE) | (number == rows["example"][:, None])
        outside = jnp.pad(outside, ((0, 0), (views * images, 0)))

    scores = lax.stop_gradient(functools.reduce(jnp.maximum, products[-views:]))
    scores = jnp.where(own | outside, -jnp.inf, scores)
    best, place = lax.top_k(scores, min(top_k, size))
    false = jnp.zeros_like(own).at[jnp.arange(len(row))[:, None], place].set(best > threshold)
    positives = views - 1 + (jnp.sum(false, axis=1) if cancel == "attraction" else 0)

    losses = []
    for view in range(views):
        logits = products[view] / temperature
        itself = with_memory(candidates.itself(row, view, images, views))
        positive = own & ~itself
        out = itself | outside
        if cancel == "attraction":
            positive |= false
        else:
            out |= false
        among = jnp.where(out, -jnp.inf, logits)
        mean = jnp.sum(jnp.where(positive, logits, 0), axis=1) / positives
        losses.append(jax.nn.logsumexp(among, axis=1) - mean)
    return jnp.mean(jnp.stack(losses), axis=0), jnp.sum(false, axis=1)
