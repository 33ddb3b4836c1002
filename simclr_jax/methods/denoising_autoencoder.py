"""Denoising autoencoder: give back the clean image of a noisy one (Vincent et al. 2008).

Noise is Gaussian, of each value, and then masking: some pixels become black, all channels of a
pixel together. Both are drawn by the image's position, so that a resumed run has the same.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from simclr_jax.augment.corruption import masked, noisy
from simclr_jax.declaration import Declaration, Field
from simclr_jax.errors import UserError
from simclr_jax.frame import decoding
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting


def check(config: ConfigDict) -> None:
    """Raise `UserError` if there is no noise, or the decoder does not reach the image."""
    c = config.denoising_autoencoder
    if not (c.mask or c.sigma):
        raise UserError(
            "denoising_autoencoder.mask and denoising_autoencoder.sigma are 0, so there is no "
            "noise: set --config.denoising_autoencoder.mask=0.25, or take method autoencoder"
        )
    decoding.check(config)


DECLARATION = Declaration(
    title="Denoising autoencoder",
    views={"views": (1, 1)},
    recipe=decoding.recipe,
    fields={
        "width": decoding.WIDTH,
        "code": decoding.CODE,
        "mask": Field(0.25, "share of pixels made black", "in [0, 1)", lambda x: 0 <= x < 1),
        "sigma": Field(
            0.1, "deviation of the noise, white being 1", "0 to 10", lambda x: 0 <= x <= 10
        ),
    },
    check=check,
    parts=(decoding.PART,),
    charts=(decoding.CHART,),
)


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build the denoising autoencoder."""
    c = config.denoising_autoencoder

    def shown(images: jax.Array, keys: Keys) -> jax.Array:
        wide = jnp.promote_types(images.dtype, jnp.float32)
        if c.sigma:
            noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], wide))
            images = noisy(images, noise(keys.of_rows("noise")), c.sigma)
        if c.mask:
            draw = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:3], jnp.float32))
            images = masked(images, draw(keys.of_rows("mask")), c.mask)
        return images

    return decoding.reconstruction(config, setting, shown)
