"""What sits on the encoder: the projection head and the linear classifier."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.resnet import Norm


def _dense(features: int, use_bias: bool, dtype, param_dtype, name: str) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=nn.initializers.normal(0.01),
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )


class ProjectionHead(nn.Module):
    """Map representations `h` to the space in which views are contrasted.

    Every layer is dense without bias, then batch normalisation; all but the last have the width of
    `h` and end in a ReLU; the last has `dim` outputs and a normalisation without bias (official
    `model_util.py:projection_head`).

    Attributes:
      kind: "nonlinear" (`layers` of them), "linear" (the last layer alone) or "none" (identity).
      layers: number of layers of a nonlinear head: 2 in SimCLR, 3 in SimCLRv2.
      dim: outputs of the last layer.
      norm: makes a normalisation layer from keyword arguments `center` and `name`.
      dtype: what all but the last layer compute in; None computes in the dtype of the input.
      param_dtype: dtype of the parameters.

    Returns:
      `[h, after layer 1, ..., z]`: element 0 is the input, the last one the projection
      `[b, dim]`, element k what SimCLRv2 fine-tunes from at tap k.
    """

    kind: str
    layers: int
    dim: int
    norm: Norm
    dtype: jnp.dtype | None = None
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, train: bool) -> list[jax.Array]:
        count = {"none": 0, "linear": 1, "nonlinear": self.layers}[self.kind]
        hiddens = [h]
        for i in range(1, count + 1):
            last = i == count
            features = self.dim if last else h.shape[-1]
            # What is contrasted is never rounded to bfloat16: the last layer computes in float32.
            dtype = None if last else self.dtype
            x = _dense(features, False, dtype, self.param_dtype, f"dense{i}")(hiddens[-1])
            x = self.norm(center=not last, name=f"bn{i}")(x, train)
            hiddens.append(x if last else nn.relu(x))
        return hiddens


class Classifier(nn.Module):
    """Map representations `[b, d]` linearly to logits `[b, classes]`, in float32 or float64."""

    classes: int
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        wide = jnp.promote_types(h.dtype, jnp.float32)
        return _dense(self.classes, True, wide, self.param_dtype, "dense")(h)
