"""The colour operations, on float images [H, W, C]; none but the jitter clips its output.

Saturation, hue and grayscale mean something for three channels only. The operations here expect
them; `color_jitter` leaves them out for any other number, so that grayscale and multispectral
images get brightness and contrast.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.augment.draws import Draws
from simclr_jax.augment.policy import Policy

LUMA = (0.2989, 0.5870, 0.1140)  # as TensorFlow rounds them; they do not sum to 1


def color_jitter(image: jax.Array, draws: Draws, policy: Policy) -> jax.Array:
    """Run the four operations in `draws.order`, clipping to [0, 1] after each.

    `draws.jitter` is not consulted. Operations of strength 0 are left out.
    Source: official `data_util.py: color_jitter_rand`.
    """
    color = image.shape[-1] == 3
    neutral = 1 if policy.brightness_mode == "multiply" else 0

    # The order differs between the images of a batch, so each turn holds all four operations.
    # Brightness and contrast take their neutral value when it is not theirs; the other two are
    # not neutral on values outside [0, 1], which the resize may have left, and are selected.
    # A scan costs nothing at run time (each turn waits for its mean anyway) and halves the
    # compile time.
    def turn(image, operation):
        if policy.brightness > 0:
            amount = jnp.where(operation == 0, draws.brightness, neutral)
            image = adjust_brightness(image, amount, policy.brightness_mode)
        if policy.contrast > 0:
            image = adjust_contrast(image, jnp.where(operation == 1, draws.contrast, 1))
        if policy.saturation > 0 and color:
            adjusted = adjust_saturation(image, draws.saturation)
            image = jnp.where(operation == 2, adjusted, image)
        if policy.hue > 0 and color:
            image = jnp.where(operation == 3, adjust_hue(image, draws.hue), image)
        return jnp.clip(image, 0, 1), None

    return jax.lax.scan(turn, image, draws.order)[0]


def adjust_brightness(image: jax.Array, amount: jax.Array, mode: str = "multiply") -> jax.Array:
    """Multiply by `amount`, or add it in mode "add".

    Source: official `data_util.py: random_brightness` (simclrv2 and simclrv1).
    """
    return image * amount if mode == "multiply" else image + amount


def adjust_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scale the distance to the mean, one mean per channel and image.

    Source: `tf.image.adjust_contrast`.
    """
    mean = image.mean((0, 1), keepdims=True)
    return factor * image + (1 - factor) * mean  # exactly the image when factor is 1


def adjust_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply the saturation of HSV, max - min over max, by `factor` and clip it to [0, 1].

    Source: `tf.image.adjust_saturation`, without going through HSV: hue and maximum stay, so
    each channel only moves towards or away from the pixel's maximum.
    """
    top = image.max(-1, keepdims=True)
    spread = top - image.min(-1, keepdims=True)
    # The clip at saturation 1 limits the factor to top / spread; a black pixel becomes gray.
    ratio = jnp.minimum(factor, top / jnp.where(spread > 0, spread, 1))
    ratio = jnp.where((top > 0) & (spread > 0), ratio, 0)
    return ratio * image + (1 - ratio) * top


def adjust_hue(image: jax.Array, turns: jax.Array) -> jax.Array:
    """Turn the hue by `turns` of the colour circle, keeping each pixel's maximum and minimum.

    Source: `tf.image.adjust_hue`, in closed form: with hue h in sixths of a turn, channel value
    = max - spread * clip(min(k, 4 - k), 0, 1), k = (n + h) mod 6, n = 5, 3, 1 for R, G, B.
    """
    red, green, blue = image[..., 0:1], image[..., 1:2], image[..., 2:3]
    top = image.max(-1, keepdims=True)
    spread = top - image.min(-1, keepdims=True)
    safe = jnp.where(spread > 0, spread, 1)
    hue = jnp.where(
        top == red,
        (green - blue) / safe,
        jnp.where(top == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixths = hue + 6 * turns + np.array([5, 3, 1], image.dtype)  # [H, W, 3]
    sixths -= 6 * jnp.floor(sixths / 6)
    return top - spread * jnp.clip(jnp.minimum(sixths, 4 - sixths), 0, 1)


def grayscale(image: jax.Array) -> jax.Array:
    """Replace the three channels by their luma, three times.

    Source: official `data_util.py: to_grayscale`.
    """
    luma = sum(weight * image[..., i : i + 1] for i, weight in enumerate(LUMA))
    return jnp.broadcast_to(luma, image.shape)


def solarize(image: jax.Array, threshold: float = 0.5) -> jax.Array:
    """Invert the values from `threshold` on: x becomes 1 - x.

    Source: deepmind-research `byol/utils/augmentations.py: solarize`.
    """
    return jnp.where(image < threshold, image, 1 - image)
