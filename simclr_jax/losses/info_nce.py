"""InfoNCE: a query must find its key among those of the batch (CPC, arXiv 1807.03748, section 2.3).

The authors published no code; the loss is that of the paper's equation 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from simclr_jax.errors import choose
from simclr_jax.losses import batch, multi_crop, tiles, two_views

OVER = ("candidates", "contexts")


def info_nce(
    q: jax.Array,
    k: jax.Array,
    *,
    temperature: float | jax.Array,
    normalize: bool = True,
    weights: jax.Array | None = None,
    local: Sequence[jax.Array] = (),
    axis_name: str | None = None,
    at_once: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return this device's share of InfoNCE, from queries to keys and not back.

    That is -log exp(q_i . k_i / t) / sum_j exp(q_i . k_j / t), the mean over images i. Both sides
    carry gradient. Unlike in NT-Xent, queries are no candidates of one another.

    Args:
      q: `[n, d]` such as projections of first views; computed in float32, or float64 if they are.
      k: `[n, d]` of the same images, such as projections of second views.
      temperature: divides the similarities.
      normalize: compare by cosine rather than by inner product.
      weights: `[n]` weight of each image's loss; the mean is over images of nonzero weight. None
        weighs all equally.
      local: `[n, d]` each, local crops of the same images: more queries of the same keys. The loss
        is the mean over all queries.
      axis_name: mesh axis over which the global batch is spread; None if this is all of it.
      at_once: queries that are compared with all keys at a time; None decides by their size.

    Returns:
      loss: scalar; the sum over devices is the loss of the global batch.
      metrics: shares in the same sense: `loss_mean` (the same number), and of `q` alone
        `contrast_accuracy` (how often a query's own key is the nearest) and `contrast_entropy`
        (nats, of the softmax).
    """
    chex.assert_equal_shape((q, k))
    queries = batch.gather((q, *local), normalize=normalize, axis_name=None).own
    keys = batch.gather((k,), normalize=normalize, axis_name=axis_name)

    def of_rows(similarities, rows, fixed, temperature):
        of_queries = [
            optax.softmax_cross_entropy_with_integer_labels(found / temperature, rows)
            for (found,) in similarities  # [r, N] each
        ]
        return multi_crop.mean(of_queries), two_views.found(similarities[0][0], rows, temperature)

    losses, told = tiles.by_rows(
        of_rows, queries, keys.everyone, [], keys.row, {}, temperature, at_once
    )
    loss = batch.mean(losses, weights, axis_name=axis_name)
    return loss, two_views.metrics(loss, told, axis_name=axis_name)


def cpc(
    context: jax.Array,
    z: jax.Array,
    predictors: jax.Array,
    *,
    over: str = "candidates",
    weights: jax.Array | None = None,
    axis_name: str | None = None,
    at_once: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return this device's share of contrastive predictive coding (eq. 3 and 4).

    The score of candidate z_j, k steps ahead, for context c_i is z_j . (W_k c_i), and has no
    temperature. The loss is the mean over steps and rows.

    Args:
      context: `[n, c]`; computed in float32, or float64 if they are.
      z: `[steps, n, d]`, what followed each context, that many steps ahead.
      predictors: `[steps, d, c]`, W of each step.
      over: what the softmax of a row runs over: "candidates", all z of the batch for a context, as
        in the paper; "contexts", all contexts for a z, as in jefflai108's
        Contrastive-Predictive-Coding-PyTorch (`src/model/model.py`), whose LogSoftmax over an
        implicit dimension has been copied since.
      weights, axis_name, at_once: as of `info_nce`.

    Returns:
      loss: scalar; the sum over devices is the loss of the global batch.
      metrics: as of `info_nce`, the means over steps.

    Raises:
      UserError: if `over` is neither.
    """
    choose("CPC softmax over", over, OVER)
    steps, n, d = z.shape
    chex.assert_shape([context, predictors], [(n, None), (steps, d, context.shape[1])])
    wide = jnp.promote_types(z.dtype, jnp.float32)
    predicted = jnp.einsum(
        "kdc,nc->knd",
        predictors.astype(wide),
        context.astype(wide),
        precision=lax.Precision.HIGHEST,
    )
    # Over candidates a prediction asks among all z, over contexts a z asks among all predictions.
    sides = (predicted, z) if over == "candidates" else (z, predicted)
    of_steps = [
        info_nce(
            *(side[step] for side in sides),
            temperature=1.0,
            normalize=False,
            weights=weights,
            axis_name=axis_name,
            at_once=at_once,
        )
        for step in range(steps)
    ]
    return jax.tree.map(lambda *values: sum(values) / steps, *of_steps)


def chance(images: int) -> float:
    """Return the loss of embeddings that are all equal, in a global batch of so many images.

    It is that of `info_nce` and `cpc` alike: the log of the number of candidates.
    """
    return math.log(images)


def floor(images: int, *, temperature: float) -> float:
    """Return `info_nce` of unit vectors: of keys that equal their queries, at right angles else."""
    return math.log1p((images - 1) * math.exp(-1 / temperature))
