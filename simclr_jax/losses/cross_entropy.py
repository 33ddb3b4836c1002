"""Cross entropy with labels, one or several an image; some rows of a batch may have none."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from simclr_jax.unlabelled import NO_LABEL


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    over_all_rows: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return this device's share of mean cross entropy and of accuracy over labelled rows.

    The mean is over the rows of all devices that have a label, as in the official
    `objective.py:add_supervised_loss` over rows of nonzero weight.

    Args:
      logits: `[n, classes]`; computed in float32, or float64 if they are.
      labels: int32 `[n]`, `NO_LABEL` (-1) for none.
      over_all_rows: divide the sum of the losses by the number of all rows: a row weighs the same
        whatever share of the batch has a label.
      axis_name: mesh axis over which the batch is spread; None if this is all of it.

    Returns:
      loss in nats and share of rows whose largest logit is the label's: scalars whose sums over
      the devices are those of the batch; 0 where no row has a label.
    """
    chex.assert_equal_shape_prefix((logits, labels), 1)
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    logits, known = logits.astype(wide), labels != NO_LABEL
    rows = jnp.sum(known, dtype=wide)
    if axis_name is not None:
        rows = lax.psum(rows, axis_name)
    rows = jnp.maximum(rows, 1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, labels, 0))
    right = known & (jnp.argmax(logits, axis=-1) == labels)
    divisor = len(labels) * _devices(axis_name) if over_all_rows else rows
    return jnp.sum(jnp.where(known, losses, 0)) / divisor, jnp.sum(right, dtype=wide) / rows


def binary_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return this device's share of the loss of a classifier that asks of each class by itself.

    The cross entropies of an image's classes are summed, as in `evaluate.logistic`, and the mean is
    over the images of all devices that have a label.

    Args:
      logits: `[n, classes]`; computed in float32, or float64 if they are.
      labels: `[n, classes]`: 1 for a class that the image has, 0 for one that it has not, and
        `NO_LABEL` (-1) for one that does not count.
      axis_name: mesh axis over which the batch is spread; None if this is all of it.

    Returns:
      loss in nats and share of right answers among those that count: scalars whose sums over the
      devices are those of the batch; 0 where there is no label.
    """
    chex.assert_equal_shape((logits, labels))
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    logits, known = logits.astype(wide), labels != NO_LABEL
    rows, answers = jnp.sum(known.any(axis=1), dtype=wide), jnp.sum(known, dtype=wide)
    if axis_name is not None:
        rows, answers = lax.psum((rows, answers), axis_name)
    losses = optax.sigmoid_binary_cross_entropy(logits, jnp.where(known, labels, 0).astype(wide))
    right = known & ((logits > 0) == (labels == 1))
    loss = jnp.sum(jnp.where(known, losses, 0)) / jnp.maximum(rows, 1)
    return loss, jnp.sum(right, dtype=wide) / jnp.maximum(answers, 1)


def _devices(axis_name: str | None) -> int:
    return 1 if axis_name is None else lax.axis_size(axis_name)
