"""What an encoder is shown of an image: the first thing it does, before its first convolution.

Images are floats `[..., h, w, c]` in [0, 1], as augmentation and preprocessing leave them; what a
function returns has their dtype, and is computed in float32, or float64 if they are.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from simclr_jax.augment import lab

# Of the channels red, green and blue over ImageNet, as most programs in PyTorch, and BYOL, have it.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


def rgb(images: jax.Array) -> jax.Array:
    """Return the images as they are."""
    return images


def standardised(images: jax.Array) -> jax.Array:
    """Return each image with mean 0 and deviation 1 over all its values.

    The deviation of one that is nearly constant counts as 1/sqrt(values), as in
    `tf.image.per_image_standardization`.
    """
    x, axes = _wide(images), (-3, -2, -1)
    values = x.shape[-3] * x.shape[-2] * x.shape[-1]
    variance = jnp.var(x, axes, keepdims=True)
    x = (x - jnp.mean(x, axes, keepdims=True)) / jnp.sqrt(jnp.maximum(variance, 1 / values))
    return x.astype(images.dtype)


def normalised(images: jax.Array) -> jax.Array:
    """Return images of 3 channels minus ImageNet's mean, divided by its deviation."""
    x = _wide(_coloured(images, "normalised"))
    x = (x - jnp.asarray(MEAN, x.dtype)) / jnp.asarray(DEVIATION, x.dtype)
    return x.astype(images.dtype)


def lightness(images: jax.Array) -> jax.Array:
    """Return the lightness `[..., h, w, 1]` of images of 3 channels, 0 for black and 1 for white.

    It is the channel L of CIE Lab under D65, divided by 100 (`skimage.color.rgb2lab`).
    """
    x = _wide(_coloured(images, "lightness"))
    y = jnp.sum(lab.linear(x) * jnp.asarray(lab.XYZ[1], x.dtype), -1, keepdims=True)
    return (1.16 * lab.root(y) - 0.16).astype(images.dtype)


INPUTS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "rgb": rgb,
    "standardised": standardised,
    "normalised": normalised,
    "lightness": lightness,
}

# Those that are made of images of 3 channels alone, however many the first convolution has.
COLOURED = ("normalised", "lightness")


def _wide(images: jax.Array) -> jax.Array:
    return images.astype(jnp.promote_types(images.dtype, jnp.float32))


def _coloured(images: jax.Array, name: str) -> jax.Array:
    if images.shape[-1] != 3:
        raise ValueError(f"input {name} is made of images of 3 channels, not of {images.shape[-1]}")
    return images
