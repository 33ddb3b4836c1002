"""Augmentation in JAX: draws and an image in, a view out, all on the accelerator.

Nothing here is random: `draws.sample` decides, this applies. Everything takes one image and is
meant for `jax.vmap`. Compiled for a whole batch it is matrix products (crop, blur) and
element-wise work (colour), with no gather and no branch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.augment.color import color_jitter, grayscale, solarize
from simclr_jax.augment.draws import Draws
from simclr_jax.augment.policy import Policy
from simclr_jax.augment.resize import center_crop, crop_resize, to_float

__all__ = [
    "augment",
    "center_crop",
    "color_jitter",
    "crop_resize",
    "flip",
    "gaussian_blur",
    "grayscale",
    "solarize",
    "to_float",
]


def augment(image: jax.Array, draws: Draws, policy: Policy) -> jax.Array:
    """Make one view [size, size, C] in [0, 1] of one image [H, W, C].

    `image` is uint8, or float in [0, 1]; the view is float32 (float64 for a float64 image). What
    `policy` switches off leaves no trace in the program. Images that do not have three channels
    get no saturation, hue and grayscale.
    Source: official `data_util.py: preprocess_for_train`, then `batch_random_blur`; solarize comes
    last in deepmind-research `byol/utils/augmentations.py: postprocess`.
    """
    image = to_float(image)
    height, width, channels = image.shape
    if policy.crop:
        image = crop_resize(image, draws.box, policy.size, policy.grid)
    elif (height, width) != (policy.size, policy.size):
        image = crop_resize(image, np.array([0, 0, height, width]), policy.size, policy.grid)
    if policy.clip_resized:
        image = jnp.clip(image, 0, 1)
    if policy.flip > 0:
        image = jnp.where(draws.flip, flip(image), image)
    turns_gray = policy.grayscale > 0 and channels == 3
    if turns_gray and policy.grayscale_first:
        image = jnp.where(draws.grayscale, grayscale(image), image)
    if policy.jitter > 0 and _has_jitter(policy, channels):
        image = jnp.where(draws.jitter, color_jitter(image, draws, policy), image)
    if turns_gray and not policy.grayscale_first:
        image = jnp.where(draws.grayscale, grayscale(image), image)
    image = jnp.clip(image, 0, 1)
    kernel_size = policy.size // 10
    if policy.blur > 0 and kernel_size > 1:
        blurred = gaussian_blur(image, draws.sigma, kernel_size)
        image = jnp.clip(jnp.where(draws.blur, blurred, image), 0, 1)
    if policy.solarize > 0:
        image = jnp.where(draws.solarize, solarize(image, policy.solarize_threshold), image)
    return image


def flip(image: jax.Array) -> jax.Array:
    """Mirror left and right."""
    return image[:, ::-1]


def gaussian_blur(image: jax.Array, sigma: jax.Array, kernel_size: int) -> jax.Array:
    """Blur along both axes with a Gaussian of `sigma` pixels, cut off at `kernel_size // 2`.

    `image` is float [H, W, C]. What lies beyond the border counts as zero, so edges darken, as
    in the official code. A kernel size below 2 changes nothing.
    Source: official `data_util.py: gaussian_blur`.
    """
    radius = kernel_size // 2
    if radius == 0:
        return image
    rows, columns = (_band(length, sigma, radius, image.dtype) for length in image.shape[:2])
    exact = jax.lax.Precision.HIGHEST
    image = jnp.einsum("xw,hwc->hxc", columns, image, precision=exact)
    return jnp.einsum("yh,hxc->yxc", rows, image, precision=exact)


def _band(length, sigma, radius, dtype):
    """Return the blur along one axis as a banded matrix [length, length]."""
    exponent = -1 / (2 * jnp.asarray(sigma, dtype) ** 2)
    taps = jnp.exp(exponent * jnp.arange(-radius, radius + 1, dtype=dtype) ** 2)
    distance = np.arange(length)[:, None] - np.arange(length)
    weights = jnp.exp(exponent * jnp.asarray(distance, dtype) ** 2) / taps.sum()
    return jnp.where(np.abs(distance) <= radius, weights, 0)


def _has_jitter(policy, channels):
    strengths = [policy.brightness, policy.contrast]
    if channels == 3:
        strengths += [policy.saturation, policy.hue]
    return max(strengths) > 0
