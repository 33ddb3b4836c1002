"""ResNet encoders as the official SimCLR code builds them (`resnet.py`, `tf2/resnet.py`).

Details that differ from most libraries, each of which changes results:

* the first block of *every* group has a projection shortcut, also where shapes already agree;
* strided convolutions pad symmetrically, (k-1)//2 before and the rest after, not "SAME";
* kernels start as truncated normals of variance 1/fan_in (not He's 2/fan_in), and the last
  normalisation of each residual branch starts at scale 0;
* selective kernels bring the stem and the shortcuts of ResNet-D with them (He et al. 2019), in
  encoders without bottlenecks these alone;
* the max-pool pads by TensorFlow's "SAME": of an even side the end alone.

The variant "torchvision" has torchvision's max-pool, padded on both sides, and a projection only
where shapes differ (torchvision `models/resnet.py`). In the rest the two agree: symmetric padding
of strided convolutions, the stride of a bottleneck in its 3x3 convolution.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.channel_attention import SelectiveKernel, SqueezeExcitation
from simclr_jax.models.inputs import INPUTS

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

VARIANTS = ("official", "torchvision")

# What a block that is computed again in the backward pass keeps: what is dear to compute, and what
# other devices would have to be asked for again.
KEPT = (
    "conv_general_dilated",
    "dot_general",
    "psum",
    "psum_invariant",
    "all_gather",
    "all_gather_invariant",
)


def projects(depth: int, variant: str, group: int, block: int) -> bool:
    """Tell whether the shortcut of a block, both counted from 1, is a convolution."""
    bottleneck, _ = ARCHITECTURES[depth]
    return block == 1 and (variant == "official" or bottleneck or group > 1)


def keep(primitive, *_, **__) -> bool:
    """Tell `jax.checkpoint` whether to keep what a primitive returns."""
    return primitive.name in KEPT


class Conv(nn.Module):
    """Convolve with the official padding and initial values."""

    features: int
    size: int
    stride: int = 1
    use_bias: bool = False
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
            use_bias=self.use_bias,
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
      sk_ratio: above 0 the shortcut is pooled before a convolution of stride 1 (ResNet-D), and the
        3x3 convolution of a bottleneck is a `SelectiveKernel` of this ratio.
      se_ratio: above 0 the branch ends in a `SqueezeExcitation` to this share of `features`.
      conv: makes a convolution from `(features, size, stride)`.
      norm: makes a normalisation layer, which is given the normalisation groups of the rows.
    """

    features: int
    stride: int
    bottleneck: bool
    project: bool
    sk_ratio: float
    se_ratio: float
    conv: Callable[..., nn.Module]
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, group: jax.Array | None = None) -> jax.Array:
        outputs = 4 * self.features if self.bottleneck else self.features
        shortcut = self._shortcut(x, outputs, train, group) if self.project else x

        if self.bottleneck:
            branch = [(self.features, 1, 1), (self.features, 3, self.stride), (outputs, 1, 1)]
        else:
            branch = [(self.features, 3, self.stride), (outputs, 3, 1)]
        for i, (features, size, stride) in enumerate(branch, start=1):
            if self.sk_ratio > 0 and self.bottleneck and size == 3:
                x = SelectiveKernel(
                    features, stride, self.sk_ratio, self.conv, self.norm, name=f"sk{i}"
                )(x, train, group)
                continue
            last = i == len(branch)
            x = self.conv(features, size, stride, name=f"conv{i}")(x)
            init = nn.initializers.zeros if last else nn.initializers.ones
            x = self.norm(scale_init=init, name=f"bn{i}")(x, train, group)
            x = x if last else nn.relu(x)
        if self.se_ratio > 0:
            squeezed = max(1, int(self.features * self.se_ratio))
            x = SqueezeExcitation(squeezed, self.conv, name="se")(x)
        return nn.relu(x + shortcut)

    def _shortcut(
        self, x: jax.Array, outputs: int, train: bool, group: jax.Array | None
    ) -> jax.Array:
        stride = self.stride
        if self.sk_ratio > 0:
            if stride == 1:
                x = nn.avg_pool(x, (2, 2), (1, 1), padding="SAME", count_include_pad=False)
            else:  # an odd side ends in a window half of zeros, which count
                x = nn.avg_pool(x, (2, 2), (2, 2), padding=((0, 1), (0, 1)))
            stride = 1
        x = self.conv(outputs, 1, stride, name="shortcut_conv")(x)
        return self.norm(name="shortcut_bn")(x, train, group)


class ResNet(nn.Module):
    """Encode images `[b, h, w, c]` in [0, 1] as vectors.

    Attributes:
      depth: a key of `ARCHITECTURES`.
      width: multiplies the channels 64, 128, 256, 512; may be a fraction.
      stem: "cifar" (3x3, stride 1, no pooling: for images of 32 pixels) or "imagenet" (7x7, stride
        2, max-pool; with selective kernels three 3x3).
      norm: makes a normalisation layer from keyword arguments `scale_init` and `name`; what it
        makes is called with `(x, train, group)`, where `group` int32 `[b]` says which images are
        normalised together (`BatchNorm`), or is None.
      sk_ratio: of selective kernels; SimCLRv2 has 0.0625, 0 is without.
      se_ratio: of squeeze-excitation; 0 is without.
      dtype: what convolutions compute in; None computes in the dtype of image and parameters.
      param_dtype: dtype of the parameters.
      remat: compute what is elementwise in a block again in the backward pass rather than keep it
        (Chen et al. 2016, arXiv 1604.06174); results are the same, parameters have the same names.
      inputs: what the first convolution is given of the images, a key of `inputs.INPUTS`.
      variant: "official", or "torchvision": its max-pool, and no shortcut that shapes do not need.

    Returns:
      The official end points by name: `initial_conv`, `initial_max_pool`, `block_group1` to
      `block_group4` `[b, h', w', c']`, and `h` `[b, d]`, their spatial mean: d = 8 * int(64w),
      or 32 * int(64w) from depth 50 on. `h` is float32, or float64 if computed in it.
    """

    depth: int
    width: float
    stem: str
    norm: Norm
    sk_ratio: float = 0.0
    se_ratio: float = 0.0
    dtype: jnp.dtype | None = None
    param_dtype: jnp.dtype = jnp.float32
    remat: bool = False
    inputs: str = "rgb"
    variant: str = "official"

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool, group: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        bottleneck, blocks = ARCHITECTURES[self.depth]
        ends = {}

        def conv(features, size, stride, name, use_bias=False):
            return Conv(features, size, stride, use_bias, self.dtype, self.param_dtype, name=name)

        *before, (features, kernel, stride) = self._stem()
        x = INPUTS[self.inputs](images)
        for i, (features_i, kernel_i, stride_i) in enumerate(before, start=1):
            x = conv(features_i, kernel_i, stride_i, name=f"stem{i}_conv")(x)
            x = nn.relu(self.norm(name=f"stem{i}_bn")(x, train, group))
        x = ends["initial_conv"] = conv(features, kernel, stride, name="stem_conv")(x)
        x = nn.relu(self.norm(name="stem_bn")(x, train, group))
        if self.stem == "imagenet":
            both = ((1, 1), (1, 1))
            padding = both if self.variant == "torchvision" else "SAME"
            x = nn.max_pool(x, (3, 3), (2, 2), padding=padding)
        ends["initial_max_pool"] = x

        make_block = ResidualBlock
        if self.remat and train and not self.is_initializing():
            make_block = nn.remat(ResidualBlock, policy=keep, static_argnums=(2,))
        for stage, count in enumerate(blocks, start=1):
            for block in range(1, count + 1):
                x = make_block(
                    features=int(64 * self.width) * 2 ** (stage - 1),
                    stride=2 if stage > 1 and block == 1 else 1,
                    bottleneck=bottleneck,
                    project=projects(self.depth, self.variant, stage, block),
                    sk_ratio=self.sk_ratio,
                    se_ratio=self.se_ratio,
                    conv=conv,
                    norm=self.norm,
                    name=f"group{stage}_block{block}",
                )(x, train, group)
            ends[f"block_group{stage}"] = x

        wide = jnp.promote_types(x.dtype, jnp.float32)
        ends["h"] = jnp.mean(x, (1, 2), dtype=wide)
        return ends

    def _stem(self) -> list[tuple[int, int, int]]:
        """Return features, kernel size and stride of the first convolutions."""
        features = int(64 * self.width)
        if self.stem == "cifar":
            return [(features, 3, 1)]
        if self.sk_ratio > 0:
            return [(features // 2, 3, 2), (features // 2, 3, 1), (features, 3, 1)]
        return [(features, 7, 2)]
