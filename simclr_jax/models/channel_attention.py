"""Weights of channels that depend on the whole image: selective kernels, squeeze-excitation.

Both are options of the official encoders (`resnet.py`, `tf2/resnet.py`: `sk_conv2d`, `SK_Conv2D`,
`se_layer`, `SE_Layer`); SimCLRv2's best models have selective kernels with ratio 1/16.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

Factory = Callable[..., nn.Module]


class SelectiveKernel(nn.Module):
    """Mix two 3x3 convolutions of `x` by weights that sum to 1 (Li et al. 2019).

    Both have the same 3x3 kernel size; what differs are their weights. In train mode the squeezed
    vector is normalised over the images of the batch alone: it has no pixels.

    Attributes:
      features: channels of each of the two, and of the output.
      stride: of both convolutions.
      ratio: the squeezed vector has max(int(features * ratio), 32) channels.
      conv: makes a convolution from `(features, size, stride)`.
      norm: makes a normalisation layer, which is given the normalisation groups of the rows.
    """

    features: int
    stride: int
    ratio: float
    conv: Factory
    norm: Factory

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, group: jax.Array | None = None) -> jax.Array:
        x = self.conv(2 * self.features, 3, self.stride, name="conv")(x)
        x = nn.relu(self.norm(name="bn")(x, train, group))
        streams = jnp.stack(jnp.split(x, 2, axis=-1))  # [2, b, h, w, f]

        wide = jnp.promote_types(x.dtype, jnp.float32)
        pooled = jnp.mean(streams, (2, 3), keepdims=True, dtype=wide).sum(0)  # [b, 1, 1, f]
        squeezed = self.conv(max(int(self.features * self.ratio), 32), 1, 1, name="squeeze")(pooled)
        squeezed = nn.relu(self.norm(name="squeeze_bn")(squeezed, train, group))
        logits = self.conv(2 * self.features, 1, 1, name="excite")(squeezed)  # [b, 1, 1, 2f]
        # In float32: rounded to bfloat16, weights would miss their sum of 1 by half a percent.
        logits = jnp.stack(jnp.split(logits.astype(wide), 2, axis=-1))
        return jnp.sum(streams * jax.nn.softmax(logits, axis=0), 0).astype(x.dtype)


class SqueezeExcitation(nn.Module):
    """Scale each channel of `x` by a number in (0, 1) (Hu et al. 2018).

    Attributes:
      squeezed: channels of the hidden vector.
      conv: makes a convolution from `(features, size, stride)` and `use_bias`.
    """

    squeezed: int
    conv: Factory

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        pooled = jnp.mean(x, (1, 2), keepdims=True, dtype=wide)  # [b, 1, 1, c]
        hidden = nn.relu(self.conv(self.squeezed, 1, 1, use_bias=True, name="squeeze")(pooled))
        scale = self.conv(x.shape[-1], 1, 1, use_bias=True, name="excite")(hidden)
        return (x * nn.sigmoid(scale.astype(wide))).astype(x.dtype)
