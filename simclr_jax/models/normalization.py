"""Batch normalisation over the global batch or groups of it, whose backward pass saves little.

Differs from `flax.linen.BatchNorm` in three ways that matter at batch 4096:

* the moments are taken in one pass whose difference of two sums loses no more than rounding has
  (`moments`); across devices it is the mean of local variances plus the variance of local means
  (TensorFlow 1's form: official `resnet.py:BatchNormalization._moments`);
* the backward pass keeps only the input in its own dtype and two vectors per layer, where automatic
  differentiation keeps float32 copies: half the activation memory of a bfloat16 ResNet-50;
* across devices there is one exchange of two vectors forward, one backward, and nothing else.

With G normalisation groups each group of images has statistics of its own: image i of the global
batch belongs to group i mod G, on any number of devices. What G devices do that each normalise by
their own rows, one device or any other number does as well. The vectors `[c]` are then arrays
`[G, c]`.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def moments(x: jax.Array, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Return mean and biased variance per channel over all other axes, and over devices.

    One pass over `x`: sums of distances d from a value amid each channel, and of their squares. The
    difference E[d²] - E[d]² then loses nothing to a large mean, as E[x²] - E[x]² would. Of numbers
    of 16 bits x itself is summed, in float32: rounding to bfloat16 has added about 2^-18 E[x]² to
    their variance, the difference loses a few 2^-24 E[x]²; and only sums that need not look at x
    first can be taken where a convolution makes it (docs/performance.md).

    Args:
      x: `[..., c]`, the same shape on every device.
      axis_name: mesh axis to reduce over as well, or None for this device's rows alone.

    Returns:
      mean `[c]` and variance `[c]` in float32, or float64 if `x` is.
    """
    mean, variance = _one_pass(x)
    if axis_name is not None:
        means, variances = _from_devices((mean, variance), axis_name)  # [D, c] each
        mean = jnp.mean(means, 0)
        variance = jnp.mean(variances, 0) + jnp.mean(jnp.square(means - mean), 0)
    return mean, variance


def _one_pass(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean and biased variance `[c]` of `x` `[..., c]`, see `moments`."""
    axes, narrow = tuple(range(x.ndim - 1)), jnp.finfo(x.dtype).bits < 32
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if narrow:
        mean = jnp.mean(x, axes)
        return mean, jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0)
    amid = _amid(x)
    distance = x - amid
    first, second = jnp.mean(distance, axes), jnp.mean(jnp.square(distance), axes)
    return amid + first, jnp.maximum(second - jnp.square(first), 0)


SAMPLES = 4  # along each axis but the last


def _amid(x: jax.Array) -> jax.Array:
    """Return the mean `[c]` of k scattered elements of each channel of `x` `[..., c]`.

    With m elements in all, it is no farther from their mean than `sqrt(m / k)` deviations, and as a
    rule than one: that bounds what the difference of two sums can lose.
    """
    steps = (max(1, size // SAMPLES) for size in x.shape[:-1])
    some = x[tuple(slice(step // 2, None, step) for step in steps)]
    return jnp.mean(some, tuple(range(x.ndim - 1)))


def _from_devices(values: tuple[jax.Array, ...], axis_name: str) -> jax.Array:
    """Return arrays of all devices, `[len(values), D, ...]`, in one exchange."""
    stacked = jnp.stack(values)
    # All devices get the same, which `shard_map` is told where it keeps account of that.
    to = "invarying" if axis_name in jax.typeof(stacked).manual_axis_type.varying else "varying"
    return lax.all_gather(stacked, axis_name, axis=1, to=to)


def _affine(x, mean, rstd, scale, bias):
    y = (x.astype(mean.dtype) - mean) * _scaled(rstd, scale)
    return (y if bias is None else y + bias).astype(x.dtype)


def _scaled(rstd, scale):
    return rstd if scale is None else rstd * scale


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_normalize(x, scale, bias, epsilon: float, axis_name: str | None = None):
    """Normalise `x` by the statistics of the batch, then scale and shift.

    Args:
      x: `[..., c]`.
      scale: `[c]`, or None for 1.
      bias: `[c]`, or None for no shift.
      epsilon: added to the variance.
      axis_name: mesh axis over which the batch is spread, or None.

    Returns:
      y like `x`, and the batch's mean `[c]` and biased variance `[c]`, which carry no gradient.
    """
    mean, variance = moments(x, axis_name)
    return _affine(x, mean, lax.rsqrt(variance + epsilon), scale, bias), mean, variance


def _forward(x, scale, bias, epsilon, axis_name):
    mean, variance = moments(x, axis_name)
    rstd = lax.rsqrt(variance + epsilon)
    outputs = (_affine(x, mean, rstd, scale, bias), mean, variance)
    return outputs, (x, mean, rstd, scale, bias)


def _backward(epsilon, axis_name, residuals, cotangents):
    x, mean, rstd, scale, bias = residuals
    dy = cotangents[0].astype(mean.dtype)
    normalized = (x.astype(mean.dtype) - mean) * rstd
    axes = tuple(range(x.ndim - 1))
    # These two sums are the whole gradient of scale and bias on this device; the step adds up
    # parameter gradients over devices once, so they stay local here.
    d_scale, d_bias = jnp.sum(dy * normalized, axes), jnp.sum(dy, axes)
    mean_dy_normalized, mean_dy = d_scale * (mean.size / x.size), d_bias * (mean.size / x.size)
    if axis_name is not None:
        mean_dy_normalized, mean_dy = lax.pmean((mean_dy_normalized, mean_dy), axis_name)
    dx = (dy - mean_dy - normalized * mean_dy_normalized) * _scaled(rstd, scale)
    return (
        dx.astype(x.dtype),
        None if scale is None else d_scale.astype(scale.dtype),
        None if bias is None else d_bias.astype(bias.dtype),
    )


batch_normalize.defvjp(_forward, _backward)


def group_sums(x: jax.Array, member: jax.Array) -> jax.Array:
    """Return the sum over the rows and pixels of each group, `[G, c]`.

    Args:
      x: `[rows, ..., c]`.
      member: `[rows, G]`, 1 where a row belongs to a group and 0 elsewhere.
    """
    by_row = jnp.sum(x, tuple(range(1, x.ndim - 1)))
    return jnp.einsum("rg,rc->gc", member, by_row, precision=lax.Precision.HIGHEST)


def group_moments(
    x: jax.Array, group: jax.Array, groups: int, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return mean and biased variance per group and channel, over pixels and devices.

    Args:
      x: `[rows, ..., c]`, the same shape on every device.
      group: int32 `[rows]` from 0 to `groups` - 1: where each row of this device belongs.
      groups: how many there are.
      axis_name: mesh axis to reduce over as well, or None for this device's rows alone.

    Returns:
      mean `[G, c]`, variance `[G, c]` and how many numbers each is taken over `[G]`, in float32, or
      float64 if `x` is. A group without rows has mean and variance 0.
    """
    row_mean, row_variance = _row_moments(x)
    member = jax.nn.one_hot(group, groups, dtype=row_mean.dtype)
    pixels = x.size // row_mean.size
    count = pixels * jnp.sum(member, 0)  # [G]
    divisor = jnp.maximum(count, 1)[:, None]

    def average(of_rows):
        return group_sums(of_rows, member) * pixels / divisor

    mean = average(row_mean)
    variance = average(row_variance + jnp.square(row_mean - mean[group]))
    if axis_name is None:
        return mean, variance, count
    counts = jnp.broadcast_to(count[:, None], mean.shape)
    means, variances, counts = _from_devices((mean, variance, counts), axis_name)  # [D, G, c] each
    count = jnp.sum(counts, 0)
    share = counts / jnp.maximum(count, 1)
    mean = jnp.sum(share * means, 0)
    variance = jnp.sum(share * (variances + jnp.square(means - mean)), 0)
    return mean, variance, count[:, 0]


def _row_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean and biased variance of each row of `x` `[rows, ..., c]` over its pixels."""
    if x.ndim == 2:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return wide, jnp.zeros_like(wide)
    return jax.vmap(_one_pass)(x)


def _of_rows(values: jax.Array, group: jax.Array, x: jax.Array) -> jax.Array:
    """Return for each row of `x` the values `[G, c]` of its group, to be broadcast over pixels."""
    return values[group].reshape(x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def group_normalize(
    x, group, scale, bias, groups: int, epsilon: float, axis_name: str | None = None
):
    """Normalise each row of `x` by the statistics of its group, then scale and shift.

    Args:
      x: `[rows, ..., c]`.
      group: int32 `[rows]`, see `group_moments`.
      scale: `[c]`, or None for 1.
      bias: `[c]`, or None for no shift.
      groups: how many there are.
      epsilon: added to the variance.
      axis_name: mesh axis over which the batch is spread, or None.

    Returns:
      y like `x`, and what `group_moments` returns, which carries no gradient.
    """
    return _group_forward(x, group, scale, bias, groups, epsilon, axis_name)[0]


def _group_forward(x, group, scale, bias, groups, epsilon, axis_name):
    mean, variance, count = group_moments(x, group, groups, axis_name)
    rstd = lax.rsqrt(variance + epsilon)
    y = _affine(x, _of_rows(mean, group, x), _of_rows(rstd, group, x), scale, bias)
    return (y, mean, variance, count), (x, group, mean, rstd, count, scale, bias)


def _group_backward(groups, epsilon, axis_name, residuals, cotangents):
    x, group, mean, rstd, count, scale, bias = residuals
    dy = cotangents[0].astype(mean.dtype)
    rstd_rows = _of_rows(rstd, group, x)
    normalized = (x.astype(mean.dtype) - _of_rows(mean, group, x)) * rstd_rows
    member = jax.nn.one_hot(group, groups, dtype=mean.dtype)
    sums = group_sums(dy * normalized, member), group_sums(dy, member)
    # As without groups, gradients of scale and bias stay this device's own.
    d_scale, d_bias = (jnp.sum(of_groups, 0) for of_groups in sums)
    if axis_name is not None:
        sums = lax.psum(sums, axis_name)
    divisor = jnp.maximum(count, 1)[:, None]
    mean_dy_normalized, mean_dy = (_of_rows(total / divisor, group, x) for total in sums)
    dx = (dy - mean_dy - normalized * mean_dy_normalized) * _scaled(rstd_rows, scale)
    return (
        dx.astype(x.dtype),
        None,
        None if scale is None else d_scale.astype(scale.dtype),
        None if bias is None else d_bias.astype(bias.dtype),
    )


group_normalize.defvjp(_group_forward, _group_backward)


class BatchNorm(nn.Module):
    """Normalise channels by batch statistics (`train=True`) or by their moving averages.

    Parameters `scale` and `bias` `[c]`, if it has them, statistics `mean` and `var` `[c]` in the
    collection `batch_stats`. The output has the dtype of the input.

    Attributes:
      momentum: share of the old moving average that an update keeps.
      epsilon: added to the variance.
      axis_name: mesh axis over which the batch is spread; None outside `shard_map`.
      groups: 1 normalises by the statistics of the whole batch, over all devices. G > 1 normalises
        by those of G groups, wherever their rows lie: image i of the global batch belongs to group
        i mod G, which whoever calls says of each row. 0 normalises on each device by its own rows,
        which needs no exchange; the result then depends on the number of devices. The moving
        averages are the mean over groups, or with 0 over devices.
      unbiased_moving: put n/(n-1) times the variance of n numbers into the moving average, as the
        fused kernel did with which TensorFlow 1 computed unsynchronised 4-D batch normalisation.
      center: whether there is a bias.
      scaled: whether there is a scale; without, it is 1.
      scale_init: initial value of the scale.
      param_dtype: dtype of parameters and statistics.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    groups: int = 1
    unbiased_moving: bool = False
    center: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    param_dtype: jnp.dtype = jnp.float32
    scaled: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, group: jax.Array | None = None) -> jax.Array:
        """Normalise `x` `[rows, ..., c]`.

        Args:
          x: the rows of this device; all pixels of a row belong to its group.
          train: normalise by the batch, and move the averages.
          group: int32 `[rows]`, the group of each row: needed in train mode if there are several
            groups, else ignored.

        Raises:
          ValueError: if it is needed and missing, or not one number for each row.
        """
        shape = (x.shape[-1],)
        scale = bias = None
        if self.scaled:
            scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        if self.center:
            bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)

        if not train:
            return _affine(x, mean.value, lax.rsqrt(var.value + self.epsilon), scale, bias)
        if self.is_initializing():
            # The shapes are all that initialisation is for, and it runs outside any mesh.
            return batch_normalize(x, scale, bias, self.epsilon)[0]

        if self.groups > 1:
            y, batch_mean, batch_var = self._by_groups(x, group, scale, bias)
        else:
            y, batch_mean, batch_var = self._by_batch(x, scale, bias)
        mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
        var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        return y

    def _by_batch(self, x, scale, bias):
        """Return y and what the averages move to, by the rows of all devices or of each."""
        axis_name = self.axis_name if self.groups == 1 else None
        y, mean, var = batch_normalize(x, scale, bias, self.epsilon, axis_name)
        if self.unbiased_moving:
            rows = x.size // x.shape[-1]
            if axis_name is not None:
                rows *= lax.axis_size(axis_name)
            var = var * (rows / max(rows - 1, 1))
        if self.axis_name is not None and self.groups == 0:
            mean, var = lax.pmean((mean, var), self.axis_name)
        return y, mean, var

    def _by_groups(self, x, group, scale, bias):
        """Return y and what the averages move to, by groups of rows."""
        if group is None:
            raise ValueError(
                f"BatchNorm(groups={self.groups}) in train mode lacks `group`: pass the "
                f"normalisation group of each of the {x.shape[0]} rows"
            )
        if group.shape != x.shape[:1]:
            raise ValueError(
                f"BatchNorm(groups={self.groups}): `group` has shape {group.shape}, but x "
                f"{x.shape[0]} rows: pass the normalisation group of each"
            )
        y, mean, var, count = group_normalize(
            x, group, scale, bias, self.groups, self.epsilon, self.axis_name
        )
        if self.unbiased_moving:
            var = var * (count / jnp.maximum(count - 1, 1))[:, None]
        # A part of a batch may have no row of some group.
        present = count[:, None] > 0
        return y, jnp.mean(mean, 0, where=present), jnp.mean(var, 0, where=present)
