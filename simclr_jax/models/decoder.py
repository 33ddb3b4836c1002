"""From the encoder's map before pooling back to pixels.

Each doubling of the side is nearest-neighbour upsampling and a 3x3 convolution, which leaves no
checkerboard as transposed convolutions do (Odena et al. 2016).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.resnet import Conv, Norm

NARROWEST = 16  # channels, or those of the first layer if they are fewer


def doublings(start: int, side: int) -> int | None:
    """Return how many doublings lead from a side of `start` pixels to `side`; None: none do."""
    count = max(0, (side // max(start, 1)).bit_length() - 1)
    return count if start * 2**count == side else None


def twice(x: jax.Array) -> jax.Array:
    """Return maps `[n, 2h, 2w, c]` in which each pixel of `[n, h, w, c]` stands four times."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class Decoder(nn.Module):
    """Decode maps `[n, s, s, d]` to pictures or other numbers for each pixel, `[n, side, side, c]`.

    Attributes:
      side: of what is returned, pixels: s times a power of two.
      channels: of what is returned, c.
      width: channels of the first layer; each doubling halves them, down to 16.
      norm: makes a normalisation layer, as in `ResNet`.
      code: channels that a 1x1 convolution first makes of the map, so that less than the whole of
        it is passed on; 0: the map as it is.
      dtype: what all layers but the last compute in; None computes in the dtype of the input.
      param_dtype: dtype of the parameters.
    """

    side: int
    channels: int
    width: int
    norm: Norm
    code: int = 0
    dtype: jnp.dtype | None = None
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, group: jax.Array | None = None) -> jax.Array:
        """Decode `x`; `group` is of the normalisation, as in `ResNet`.

        Returns:
          Numbers of any size, in float32, or float64 if computed in it.

        Raises:
          ValueError: if no number of doublings leads from the side of `x` to `side`.
        """
        times = doublings(x.shape[1], self.side)
        if times is None or x.shape[1] != x.shape[2]:
            raise ValueError(
                f"no doublings lead from a map {x.shape[1:3]} to a side of {self.side}"
            )
        if self.code:
            x = self._conv(self.code, 1, "code")(x)
        for i in range(times + 1):
            features = max(self.width >> i, min(self.width, NARROWEST))
            x = self._conv(features, 3, f"conv{i}")(x if i == 0 else twice(x))
            x = nn.relu(self.norm(name=f"bn{i}")(x, train, group))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        last = Conv(self.channels, 3, 1, True, wide, self.param_dtype, name="last")
        return last(x.astype(wide))

    def _conv(self, features: int, size: int, name: str) -> Conv:
        return Conv(features, size, 1, False, self.dtype, self.param_dtype, name=name)
