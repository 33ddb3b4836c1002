"""What losses over a batch share: the embeddings of all devices, and means over all images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.losses.unit import l2_normalize


class Views(NamedTuple):
    """Embeddings of v views of a batch of images, in float32, or float64 if they came so.

    Attributes:
      own: v arrays `[n, d]`: of the images of this device.
      everyone: v arrays `[N, d]`: of the images of all devices. They carry gradient: an embedding
        is moved as an anchor *and* as everybody else's positive or negative. Without that the
        gradient is wrong by half.
      row: int32 `[n]`, the place of this device's images among those of all.
      local: arrays `[n, d]`: local crops of the images of this device, which ask and are no
        candidates.
    """

    own: list[jax.Array]
    everyone: list[jax.Array]
    row: jax.Array
    local: Sequence[jax.Array] = ()


def gather(
    views: Sequence[jax.Array],
    *,
    normalize: bool,
    axis_name: str | None,
    local: Sequence[jax.Array] = (),
) -> Views:
    """Return the embeddings of all devices beside those of this one.

    Args:
      views: `[n, d]` each, of the same images.
      normalize: scale them to length 1 first.
      axis_name: mesh axis over which the global batch is spread; None if this is all of it.
      local: `[n, d]` each, likewise, which stay on this device.
    """
    chex.assert_equal_shape([*views, *local])
    wide = jnp.promote_types(views[0].dtype, jnp.float32)
    own, asking = ([view.astype(wide) for view in some] for some in (views, local))
    if normalize:
        own, asking = ([l2_normalize(view) for view in some] for some in (own, asking))
    row = jnp.arange(len(own[0]))
    if axis_name is None:
        return Views(own, own, row, asking)
    first = lax.axis_index(axis_name) * len(row)
    return Views(own, lax.all_gather(own, axis_name, tiled=True), first + row, asking)


def of_everyone(rows: jax.Array, axis_name: str | None) -> jax.Array:
    """Return `[N, ...]`, of all images in the order of `gather`, such as labels, of `[n, ...]`."""
    return rows if axis_name is None else lax.all_gather(rows, axis_name, tiled=True)


def total(value: jax.Array, axis_name: str | None) -> jax.Array:
    """Return the sum over all devices of a number that carries no gradient, such as a count."""
    value = lax.stop_gradient(value)
    return value if axis_name is None else lax.psum(value, axis_name)


def mean(values: jax.Array, weights: jax.Array | None = None, *, axis_name: str | None = None):
    """Return this device's share of a mean over the images of all devices.

    Args:
      values: `[n]`, of this device's images.
      weights: `[n]`, by which they are multiplied; the mean is over images of nonzero weight. None
        weighs all equally.
      axis_name: mesh axis over which the global batch is spread; None if this is all of it.

    Returns:
      A scalar, whose sum over the devices is the mean.
    """
    if weights is None:
        return jnp.sum(values) / (len(values) * (lax.axis_size(axis_name) if axis_name else 1))
    count = jnp.sum(weights != 0).astype(values.dtype)
    if axis_name is not None:
        count = lax.psum(count, axis_name)
    return jnp.sum(values * weights) / count
