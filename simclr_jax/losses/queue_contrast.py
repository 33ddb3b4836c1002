"""InfoNCE with a queue: a query must find its key among the keys of earlier batches (MoCo, eq. 1).

Source: facebookresearch/moco `moco/builder.py: MoCo.forward` (arXiv 1911.05722); CMC's
`NCE/NCEAverage.py: MemoryMoCo` with softmax has the same loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.losses import batch, multi_crop, tiles
from simclr_jax.losses.unit import l2_normalize


def queue_contrast(
    query: jax.Array,
    key: jax.Array,
    queue: jax.Array,
    *,
    temperature: float,
    normalize: bool = True,
    local: Sequence[jax.Array] = (),
    axis_name: str | None = None,
    at_once: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return this device's share of the mean cross entropy of each query's own key.

    The candidates of row i are row i of `key` and all rows of `queue`; other rows of the batch are
    none. An older key of the same image, if there is one, is a negative like any other, as in the
    official code.

    Args:
      query: `[n, d]`; computed in float32, or float64 if they are.
      key: `[n, d]`, of other views of the same images; they carry no gradient.
      queue: `[K, d]`, the same on every device, compared as they are; they carry no gradient.
      temperature: divides the similarities.
      normalize: scale queries and keys to length 1 first.
      local: `[n, d]` each, local crops of the same images: more queries of the same keys. The loss
        is the mean over all queries.
      axis_name: mesh axis over which the batch is spread; None if this is all of it.
      at_once: queries compared with the queue at a time; n or more holds the matrix `[n, K]`, fewer
        hold tiles of it. None decides by its size (`tiles.rows_at_once`).

    Returns:
      loss: scalar in nats; the sum over devices is the mean over all queries.
      metrics: a share in the same sense: `contrast_accuracy`, how often its own key is nearer to a
        row of `query` than all the queue.
    """
    chex.assert_equal_shape((query, key, *local))
    wide = jnp.promote_types(query.dtype, jnp.float32)
    key, queue = key.astype(wide), queue.astype(wide)
    queries = [x.astype(wide) for x in (query, *local)]
    if normalize:
        queries, key = [l2_normalize(x) for x in queries], l2_normalize(key)
    compared = tiles.by_rows(_among, queries, [], [queue], {}, {}, temperature, at_once)
    own = [jnp.sum(x * lax.stop_gradient(key), axis=-1) / temperature for x in queries]  # [n] each
    losses = [
        jnp.logaddexp(mine, others) - mine for mine, (others, _) in zip(own, compared, strict=True)
    ]
    accuracy = batch.mean(own[0] > compared[0][1], axis_name=axis_name)
    return batch.mean(multi_crop.mean(losses), axis_name=axis_name), {
        "contrast_accuracy": lax.stop_gradient(accuracy)
    }


def _among(
    similarities: tiles.Similarities, rows: dict, fixed: dict, temperature: float | jax.Array
) -> list[tuple[jax.Array, jax.Array]]:
    """Return of some queries, `[r]` each, what all negatives weigh, and the largest logit.

    Args:
      similarities: of each crop that asks, with the queue, `[r, K]`.
      rows, fixed: nothing.
      temperature: divides the similarities.
    """
    logits = [of_crop / temperature for (of_crop,) in similarities]
    return [
        (jax.nn.logsumexp(of_crop, axis=1), jnp.max(lax.stop_gradient(of_crop), axis=1))
        for of_crop in logits
    ]
