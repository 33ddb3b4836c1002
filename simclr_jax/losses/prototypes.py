"""ProtoNCE: an image must find the prototype of its cluster (PCL, arXiv 2005.04966)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from simclr_jax.losses import batch, tiles
from simclr_jax.losses.unit import l2_normalize


class Clustering(NamedTuple):
    """How images are clustered, at one granularity.

    Attributes:
      prototypes: `[k, d]`, of length 1.
      concentration: `[k]`, phi, by which the similarities with each prototype are divided.
      assigned: int `[n]`, the cluster of each image of this device.
      negatives: int `[r]`, clusters sampled as negatives, the same on every device: officially
        without replacement, among those that are no image's of the batch.
    """

    prototypes: jax.Array
    concentration: jax.Array
    assigned: jax.Array
    negatives: jax.Array


def proto_nce(
    queries: jax.Array,
    clusterings: Sequence[Clustering],
    *,
    normalize: bool = True,
    axis_name: str | None = None,
    at_once: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return this device's share of the prototype term of PCL's loss (eq. 11).

    The candidates of an image are the prototypes of all N images of the batch, one for each image,
    and those sampled; the loss is the mean over granularities of cross entropy, where the logit of
    a prototype is its inner product with the query divided by its concentration.

    Source: PCL `pcl/builder.py: MoCo.forward`, `main_pcl.py: train`. As there, images of the batch
    that share a cluster are each other's negatives, by the very prototype that is the positive.
    There the batch is that of one GPU; here it is the global one, so that results do not depend on
    the number of devices. The whole loss of PCL adds MoCo's.

    There is no value of an encoder that has learned nothing: it depends on its clusters. Where
    prototypes and concentrations are all equal it is log(N + r).

    Args:
      queries: `[n, d]`; computed in float32, or float64 if they are.
      clusterings: one for each granularity. They carry no gradient.
      normalize: scale queries to length 1.
      axis_name: mesh axis over which the global batch is spread; None if this is all of it.
      at_once: images that are compared with all candidates at a time (`tiles.by_rows`).

    Returns:
      loss: scalar; the sum over devices is the mean over the global batch.
      metrics: shares in the same sense: `prototype_accuracy`, how often the likeliest of the
        candidates is the prototype of the image's cluster.

    Raises:
      ValueError: if there is no clustering.
    """
    if not clusterings:
        raise ValueError("ProtoNCE needs at least one clustering")
    queries = queries.astype(jnp.promote_types(queries.dtype, jnp.float32))
    if normalize:
        queries = l2_normalize(queries)
    row = jnp.arange(len(queries))
    if axis_name is not None:
        row += lax.axis_index(axis_name) * len(row)
    losses, found = [], []
    for prototypes, concentration, assigned, negatives in clusterings:
        chosen = jnp.concatenate([batch.of_everyone(assigned, axis_name), negatives])  # [N + r]
        kept = jnp.asarray(prototypes, queries.dtype)[chosen]
        fixed = {"concentration": jnp.asarray(concentration, queries.dtype)[chosen]}
        cost, nearest = tiles.by_rows(
            _entropy, [queries], [], [kept], {"row": row}, fixed, {}, at_once
        )
        losses.append(batch.mean(cost, axis_name=axis_name))
        found.append(batch.mean(chosen[nearest] == assigned, axis_name=axis_name))
    metrics = {"prototype_accuracy": sum(found) / len(found)}
    return sum(losses) / len(losses), lax.stop_gradient(metrics)


def _entropy(
    similarities: tiles.Similarities,
    rows: dict[str, jax.Array],
    fixed: dict[str, jax.Array],
    numbers: dict,
) -> tuple[jax.Array, jax.Array]:
    """Return, for some images `[r]`, the cross entropy, and the likeliest candidate."""
    del numbers
    logits = similarities[0][0] / lax.stop_gradient(fixed["concentration"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, rows["row"])
    return losses, jnp.argmax(logits, axis=1)
