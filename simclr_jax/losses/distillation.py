"""Distillation: a student matches the class probabilities of a teacher (SimCLRv2, section 3)."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax import lax


def distillation(
    student: jax.Array,
    teacher: jax.Array,
    *,
    temperature: float = 1.0,
    times_squared_temperature: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return this device's share of the mean cross entropy with a teacher (SimCLRv2, eq. 2).

    Args:
      student: logits `[n, classes]`; computed in float32, or float64 if they are.
      teacher: logits `[n, classes]`, which carry no gradient.
      temperature: divides the logits of both before the softmax.
      times_squared_temperature: multiply by its square, which keeps the size of gradients, as the
        official notebook does (`distillation_self_training.ipynb:add_kd_loss`) and the paper not.
      axis_name: mesh axis over which the batch is spread; None if this is all of it.

    Returns:
      loss in nats, and the share of rows on which both choose the same class: scalars whose sums
      over the devices are those of the batch.
    """
    chex.assert_equal_shape((student, teacher))
    wide = jnp.promote_types(student.dtype, jnp.float32)
    student, teacher = student.astype(wide), lax.stop_gradient(teacher).astype(wide)
    rows = len(student) * (1 if axis_name is None else lax.axis_size(axis_name))
    probabilities = jax.nn.softmax(teacher / temperature)
    losses = -jnp.sum(probabilities * jax.nn.log_softmax(student / temperature), axis=-1)
    agree = jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)
    scale = temperature**2 if times_squared_temperature else 1.0
    return scale * jnp.sum(losses) / rows, jnp.sum(agree, dtype=wide) / rows
