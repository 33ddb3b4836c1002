"""What sits on the encoder: the projection head and the linear classifier."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.resnet import Norm

OFFICIAL_KERNEL = nn.initializers.normal(0.01)

# Of a head of kind "mlp": whether the hidden layers and the last one have a bias.
BIASED: dict[str, tuple[bool, bool]] = {
    "hidden": (True, False),
    "last": (False, True),
    "all": (True, True),
    "none": (False, False),
}

# Likewise the normalisation after the hidden layers and after the last one, if there is one.
WITH_BOTH, WITH_NONE = {"center": True}, {"center": False, "scaled": False}
NORMALISED: dict[str, tuple[dict[str, bool] | None, dict[str, bool] | None]] = {
    "hidden": (WITH_BOTH, None),
    "all": (WITH_BOTH, WITH_BOTH),
    "all_plain": (WITH_BOTH, WITH_NONE),
    "none": (None, None),
}


def haiku_kernel(inputs: int) -> nn.initializers.Initializer:
    """Return how Haiku starts the kernel of a linear layer with so many inputs.

    A normal of variance 1/inputs, cut at two deviations and not widened again: its deviation is
    0.88 / sqrt(inputs).
    """
    return nn.initializers.truncated_normal(inputs**-0.5)


def _dense(
    features: int, use_bias: bool, dtype, param_dtype, name: str, kernel_init=OFFICIAL_KERNEL
) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )


class ProjectionHead(nn.Module):
    """Map representations `h` to the space in which views are contrasted.

    Of kind "nonlinear" every layer is dense without bias, then batch normalisation; all but the
    last end in a ReLU; the last has `dim` outputs and a normalisation without bias (official
    `model_util.py:projection_head`). "linear" is that last layer alone, "none" the identity.

    Of kind "mlp" every layer is dense, then perhaps batch normalisation, then, but for the last, a
    ReLU. `biased` says which dense layers have a bias, `normalised` after which there is a
    normalisation. By default both are the hidden layers, all but the last: BYOL's projector and
    predictor (deepmind-research `byol/utils/networks.py:MLP`). Others are, as (biased, normalised):

    * ("all", "none") in MoCo v1 (one layer), MoCo v2 and SupCon (two);
    * ("last", "all_plain") in SimSiam's projector, ("last", "hidden") in its predictor.

    Attributes:
      kind: "nonlinear", "linear", "mlp" or "none".
      layers: how many: 2 in SimCLR and BYOL, 3 in SimCLRv2; 1 of kind "linear", 0 of "none".
      dim: outputs of the last layer.
      norm: makes a normalisation layer from keyword arguments `center`, `scaled` and `name`.
      dtype: what all but the last layer compute in; None computes in the dtype of the input.
      param_dtype: dtype of the parameters.
      hidden: outputs of every other layer; 0 is the width of `h`.
      biased: of kind "mlp", a key of `BIASED`.
      normalised: of kind "mlp", a key of `NORMALISED`; in "all_plain" the last normalisation has
        neither scale nor bias.

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
    hidden: int = 0
    biased: str = "hidden"
    normalised: str = "hidden"

    @nn.compact
    def __call__(
        self, h: jax.Array, train: bool, group: jax.Array | None = None
    ) -> list[jax.Array]:
        """Project `h` `[b, d]`; `group` is of the normalisation, as in `ResNet`."""
        mlp = self.kind == "mlp"
        fixed = {"none": 0, "linear": 1}.get(self.kind, self.layers)
        if self.layers != fixed:
            raise ValueError(f"a head of kind {self.kind} has {fixed} layers, not {self.layers}")
        hiddens = [h]
        for i in range(1, self.layers + 1):
            x, last = hiddens[-1], i == self.layers
            features = self.dim if last else self.hidden or h.shape[-1]
            # What is contrasted is never rounded to bfloat16: the last layer computes in float32.
            dtype = None if last else self.dtype
            kernel_init = haiku_kernel(x.shape[-1]) if mlp else OFFICIAL_KERNEL
            bias, norm = self._layer(last)
            x = _dense(features, bias, dtype, self.param_dtype, f"dense{i}", kernel_init)(x)
            if norm is not None:
                x = self.norm(**norm, name=f"bn{i}")(x, train, group)
            hiddens.append(x if last else nn.relu(x))
        return hiddens

    def _layer(self, last: bool) -> tuple[bool, dict[str, bool] | None]:
        """Return whether a layer has a bias, and the fields of its normalisation, if it has one."""
        if self.kind != "mlp":
            return False, {"center": not last}
        return BIASED[self.biased][last], NORMALISED[self.normalised][last]


class Classifier(nn.Module):
    """Map representations `[b, d]` linearly to logits `[b, classes]`, in float32 or float64."""

    classes: int
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        wide = jnp.promote_types(h.dtype, jnp.float32)
        return _dense(self.classes, True, wide, self.param_dtype, "dense")(h)
