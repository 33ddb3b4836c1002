"""ResNet encoders as the official SimCLR code builds them (`resnet.py`, `tf2/resnet.py`).

Three details differ from most libraries, and each of them changes results:

* the first block of *every* group has a projection shortcut, also where shapes already agree;
* strided convolutions pad symmetrically, (k-1)//2 before and the rest after, not "SAME";
* kernels start as truncated normals of variance 1/fan_in (not He's 2/fan_in), and the last
  normalisation of each residual branch starts at scale 0.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

# depth: (is it built of bottlenecks, blocks per group)
ARCHITECTURES: dict[int, tuple[bool, tuple[int, int, int, int]]] = {
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
    200: (True, (3, 24, 36, 3)),
}

Norm = Callable[..., nn.Module]


class Conv(nn.Module):
    """Convolve without bias, with the official padding and initial values."""

    features: int
    size: int
    stride: int = 1
    dtype: jnp.dtype | None = None
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        before = (self.size - 1) // 2
        padding = (before, self.size - 1 - before)
        return nn.Conv(
            self.features,
            (self.size, self.size),
            self.stride,
            padding=(padding, padding),
            use_bias=False,
            kernel_init=nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(x)


class ResidualBlock(nn.Module):
    """Add a residual branch of two 3x3, or of 1x1, 3x3 and 1x1 convolutions, to a shortcut.

    Attributes:
      features: channels of the 3x3 convolutions; a bottleneck ends with 4 times as many.
      stride: of the (first) 3x3 convolution and of the shortcut.
      bottleneck: which of the two branches.
      project: whether the shortcut is a convolution rather than the identity.
      conv: makes a convolution from `(features, size, stride)`.
      norm: makes a normalisation layer.
    """

    features: int
    stride: int
    bottleneck: bool
    project: bool
    conv: Callable[..., nn.Module]
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        outputs = 4 * self.features if self.bottleneck else self.features
        shortcut = x
        if self.project:
            shortcut = self.conv(outputs, 1, self.stride, name="shortcut_conv")(x)
            shortcut = self.norm(name="shortcut_bn")(shortcut, train)

        if self.bottleneck:
            branch = [(self.features, 1, 1), (self.features, 3, self.stride), (outputs, 1, 1)]
        else:
            branch = [(self.features, 3, self.stride), (outputs, 3, 1)]
        for i, (features, size, stride) in enumerate(branch, start=1):
            last = i == len(branch)
            x = self.conv(features, size, stride, name=f"conv{i}")(x)
            init = nn.initializers.zeros if last else nn.initializers.ones
            x = self.norm(scale_init=init, name=f"bn{i}")(x, train)
            x = x if last else nn.relu(x)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """Encode images `[b, h, w, c]` in [0, 1] as vectors.

    Attributes:
      depth: a key of `ARCHITECTURES`.
      width: multiplies the channels 64, 128, 256, 512; may be a fraction.
      stem: "cifar" (3x3, stride 1, no pooling: for images of 32 pixels) or "imagenet" (7x7, stride
        2, max-pool).
      norm: makes a normalisation layer from keyword arguments `scale_init` and `name`.
      dtype: what convolutions compute in; None computes in the dtype of image and parameters.
      param_dtype: dtype of the parameters.

    Returns:
      The official end points by name: `initial_conv`, `initial_max_pool`, `block_group1` to
      `block_group4` `[b, h', w', c']`, and `h` `[b, d]`, their spatial mean: d = 8 * int(64w),
      or 32 * int(64w) from depth 50 on. `h` is float32, or float64 if computed in it.
    """

    depth: int
    width: float
    stem: str
    norm: Norm
    dtype: jnp.dtype | None = None
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        bottleneck, blocks = ARCHITECTURES[self.depth]
        ends = {}

        def conv(features, size, stride, name):
            return Conv(features, size, stride, self.dtype, self.param_dtype, name=name)

        stem_features = int(64 * self.width)
        kernel, stride = (3, 1) if self.stem == "cifar" else (7, 2)
        x = ends["initial_conv"] = conv(stem_features, kernel, stride, name="stem_conv")(images)
        x = nn.relu(self.norm(name="stem_bn")(x, train))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        ends["initial_max_pool"] = x

        for group, count in enumerate(blocks, start=1):
            for block in range(1, count + 1):
                x = ResidualBlock(
                    features=int(64 * self.width) * 2 ** (group - 1),
                    stride=2 if group > 1 and block == 1 else 1,
                    bottleneck=bottleneck,
                    project=block == 1,
                    conv=conv,
                    norm=self.norm,
                    name=f"group{group}_block{block}",
                )(x, train)
            ends[f"block_group{group}"] = x

        wide = jnp.promote_types(x.dtype, jnp.float32)
        ends["h"] = jnp.mean(x, (1, 2), dtype=wide)
        return ends
