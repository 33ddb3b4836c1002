"""NT-Xent, the normalised temperature-scaled cross entropy loss (SimCLR, section 2.1, eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from simclr_jax.errors import choose
from simclr_jax.losses import batch, multi_crop, tiles, two_views

NO_IMAGE = -1  # in place of the number of an image


def nt_xent(
    z1: jax.Array,
    z2: jax.Array,
    *,
    temperature: float,
    scale: str = "sum",
    normalize: bool = True,
    weights: jax.Array | None = None,
    example: jax.Array | None = None,
    memory: tuple[jax.Array, jax.Array] | None = None,
    local: Sequence[jax.Array] = (),
    axis_name: str | None = None,
    at_once: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return this device's share of NT-Xent: each view must find its partner among 2N - 1 others.

    Row i of `z1` and row i of `z2` are two views of one image. The rows of this device are compared
    with the rows of all devices, so the batch that supplies negatives is the global one.

    Args:
      z1: `[n, d]` projections of first views; computed in float32, or float64 if they are.
      z2: `[n, d]` projections of second views of the same images.
      temperature: divides the similarities.
      scale: "sum" adds the mean loss of first views to that of second views, as the official code
        does (`objective.py:add_contrastive_loss`); "mean" is the paper's mean over 2N views, half
        of it.
      normalize: compare by cosine rather than by inner product.
      weights: `[n]` weight of each image's loss; the mean is over images of nonzero weight. None
        weighs all equally.
      example: int `[n]`, the number of each image; needed with a memory.
      memory: more negatives, the same on every device: embeddings `[K, d]`, of length 1 if
        `normalize`, and the number of the image that each is of, int `[K]`, `NO_IMAGE` for none.
        An image is no negative of itself. They carry no gradient.
      local: `[n, d]` each, local crops of the same images. Each must find either view of its image
        among that one and the views of all other images. The loss is then the mean over all pairs
        of a crop and the view it is to find (`multi_crop.py`), or by the scale "sum" twice that.
      axis_name: mesh axis over which the global batch is spread; None if this is all of it.
      at_once: images whose views are compared with all others at a time; n or more holds matrices
        `[n, 2N + K]`, fewer hold tiles of them. None decides by their size (`tiles.rows_at_once`).

    Returns:
      loss: scalar; the sum over devices is the loss of the global batch.
      metrics: shares in the same sense: `loss_mean` (the paper's mean over 2N views),
        `contrast_accuracy` (how often a first view's partner is the nearest of all second views)
        and `contrast_entropy` (nats, of a first view's softmax over all second views).
    """
    choose("loss scale", scale, two_views.SCALES)
    z = batch.gather((z1, z2), normalize=normalize, axis_name=axis_name, local=local)
    rows, kept, fixed = {"partner": z.row}, [], {}
    if memory is not None:
        if example is None:
            raise ValueError("a memory needs the number of each image: give `example`")
        kept, rows["example"] = [memory[0].astype(z.own[0].dtype)], example
        fixed["kept"] = memory[1]
    losses, told = tiles.by_rows(
        _contrast, [*z.own, *z.local], z.everyone, kept, rows, fixed, temperature, at_once
    )
    total = batch.mean(losses, weights, axis_name=axis_name)
    metrics = two_views.metrics(total / 2, told, axis_name=axis_name)
    return (total if scale == "sum" else total / 2), metrics


def _contrast(
    similarities: tiles.Similarities,
    rows: dict[str, jax.Array],
    fixed: dict[str, jax.Array],
    temperature: float | jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compare the two views of some images, and their local crops, with all views.

    Args:
      similarities: of first and second views and of local crops, each with all first views, all
        second ones `[r, N]`, and with a memory those kept `[r, K]`.
      rows: of the images: `partner` `[r]`, with a memory `example` `[r]`.
      fixed: with a memory `kept` `[K]`, the number of each kept image.
      temperature: divides the similarities.

    Returns:
      For each image, `[r]`: the losses of both views, added (with local crops twice the mean over
      all pairs), and what `two_views.found` tells of
      the first view among all second ones.
    """
    partner = rows["partner"]
    logits = [[some / temperature for some in of_view] for of_view in similarities]
    itself = partner[:, None] == jnp.arange(logits[0][0].shape[1])  # [r, N]

    def cross_entropy(crop: int, target: int) -> jax.Array:
        to_each, to_kept = logits[crop][:2], logits[crop][2:]
        to_target, to_rest = to_each[target], to_each[1 - target]
        among = [to_target, jnp.where(itself, -jnp.inf, to_rest)]  # [r, N] each
        if to_kept:
            number = fixed["kept"]
            negative = (number != NO_IMAGE) & (number != rows["example"][:, None])  # [r, K]
            among.append(jnp.where(negative, to_kept[0], -jnp.inf))
        return optax.softmax_cross_entropy_with_integer_labels(
            jnp.concatenate(among, axis=1), partner
        )

    losses = multi_crop.both([cross_entropy(*pair) for pair in multi_crop.pairs(len(logits))])
    return losses, two_views.found(similarities[0][1], partner, temperature)
