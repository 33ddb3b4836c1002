"""What sits on the encoder where the patches of an image are seen together.

As in google/revisiting-self-supervised (`self_supervision/patch_utils.py: apply_model,
fully_connected`), after AlexNet's last layers: each patch has an embedding, those of some patches
stand beside one another (`joined`), and a layer sees them at once.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.resnet import Norm

# Cut at two deviations, as in TensorFlow.
KERNEL = nn.initializers.truncated_normal(0.005)


class PatchEmbedding(nn.Module):
    """Map representations `h` `[b, d]` of patches linearly to embeddings `[b, dim]`.

    Attributes:
      dim: of an embedding.
      dtype: what is computed in; None computes in the dtype of the input.
      param_dtype: dtype of the parameters.
    """

    dim: int
    dtype: jnp.dtype | None = None
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        return nn.Dense(
            self.dim,
            kernel_init=init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="dense",
        )(h)


class Together(nn.Module):
    """See joined embeddings `[b, k * dim]` at once: dense, batch normalisation, ReLU.

    The dense layer has no bias, which the normalisation would take out.

    Attributes:
      hidden: outputs.
      norm: makes a normalisation layer, as in `ResNet`.
      dtype: what is computed in; None computes in the dtype of the input.
      param_dtype: dtype of the parameters.
    """

    hidden: int
    norm: Norm
    dtype: jnp.dtype | None = None
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, group: jax.Array | None = None) -> jax.Array:
        """Return `[b, hidden]`; `group` is of the normalisation, as in `ResNet`."""
        x = nn.Dense(
            self.hidden,
            use_bias=False,
            kernel_init=KERNEL,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="dense",
        )(x)
        return nn.relu(self.norm(name="bn")(x, train, group))


def joined(embeddings: jax.Array, places: jax.Array) -> jax.Array:
    """Return the embeddings of some patches of each image in one row, `[n, m, d * k]`.

    Channel by channel, and in it place by place, as officially (`patch_utils.py:
    permutate_and_concat_image_patches`): number `channel * k + place` of a row.

    Args:
      embeddings: `[n, p, d]`, of all patches of an image.
      places: int `[m, k]`, which patch lies at which of k places, m times; or `[n, m, k]`, another
        choice for each image.
    """
    if places.ndim == 2:
        taken = embeddings[:, places]  # [n, m, k, d]
    else:
        taken = jax.vmap(lambda own, at: own[at])(embeddings, places)
    n, m, k, d = taken.shape
    return jnp.swapaxes(taken, 2, 3).reshape(n, m, d * k)
