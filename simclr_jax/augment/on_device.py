"""Augmentation in JAX: draws and an image in, a view out, all on the accelerator.

Nothing here is random: `draws.sample` decides, this applies. Everything takes one image and is
meant for `jax.vmap`. Compiled for a whole batch it is matrix products (crop, blur) and
element-wise work (colour), with no gather and no branch. An image may also be part of a canvas that
is larger than it (placement `canvas`): its boxes are then cut out of that.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from simclr_jax.augment.color import color_jitter, grayscale, recolor, solarize
from simclr_jax.augment.draws import Draws
from simclr_jax.augment.policy import Policy
from simclr_jax.augment.products import product, rounded
from simclr_jax.augment.resize import center_crop, crop_resize, to_float

__all__ = [
    "augment",
    "augment_from_canvas",
    "center_crop",
    "color_jitter",
    "crop_resize",
    "cut_from_canvas",
    "flip",
    "gaussian_blur",
    "grayscale",
    "solarize",
    "to_float",
]


def augment(image: jax.Array, draws: Draws, policy: Policy) -> jax.Array:
    """Make one view [size, size, C] in [0, 1] of one image [H, W, C].

    `image` is uint8, or float in [0, 1]; the view is float32 (float64 for a float64 image), or
    bfloat16 if the policy keeps images so. What `policy` switches off leaves no trace in the
    program. Images that do not have three channels get no saturation, hue and grayscale.
    Source: official `data_util.py: preprocess_for_train`, then `batch_random_blur`; solarize comes
    last in deepmind-research `byol/utils/augmentations.py: postprocess`.
    """
    image = to_float(image)
    height, width, _ = image.shape
    whole = np.array([0, 0, height, width])
    if policy.crop or (height, width) != (policy.size, policy.size):
        box, flipped = draws.box if policy.crop else whole, _flipped(draws, policy)
        image = crop_resize(image, box, policy.size, policy.grid, policy.precision, flipped=flipped)
    elif policy.flip > 0:
        image = jnp.where(draws.flip, flip(image), image)
    return finish(image, draws, policy)


def augment_from_canvas(
    canvas: jax.Array, draws: Sequence[Draws], policies: Sequence[Policy]
) -> list[jax.Array]:
    """Make views of one image that lies on a canvas, uint8 [H, W, C], from its upper left corner.

    The draws of each view are those of an image of the true size, so that its box ends with the
    image; nothing beyond is looked at. All policies have one size, grid and precision: the boxes of
    all views are cut by one product. A canvas of float64 with whole numbers from 0 to 255 is one
    too, of views of float64.

    Returns:
      For each policy its view, as `augment` would make it of the image alone.
    """
    first = policies[0]
    for policy in policies:
        assert all(getattr(policy, n) == getattr(first, n) for n in ("size", "grid", "precision"))
    boxes = jnp.stack([jnp.asarray(drawn.box) for drawn in draws])
    flipped = jnp.stack(
        [jnp.asarray(_flipped(*view)) for view in zip(draws, policies, strict=True)]
    )

    def cut(box: jax.Array, flipped: jax.Array) -> jax.Array:
        return cut_from_canvas(
            canvas, box, first.size, first.grid, first.precision, flipped=flipped
        )

    crops = jax.vmap(cut)(boxes, flipped)  # [v, size, size, C]
    return [finish(*view) for view in zip(crops, draws, policies, strict=True)]


def cut_from_canvas(
    canvas: jax.Array,
    box: ArrayLike,
    size: int | tuple[int, int],
    grid: str,
    precision: str = "float32",
    *,
    flipped: bool | jax.Array = False,
) -> jax.Array:
    """Cut `box` out of a canvas of bytes and resize it, as `crop_resize` does of a float image.

    Bytes are whole numbers that bfloat16 holds, so they become fractions only after the products.
    """
    return crop_resize(canvas, box, size, grid, precision, flipped=flipped) * (1 / 255)


def _flipped(draws: Draws, policy: Policy) -> bool | jax.Array:
    return draws.flip if policy.flip > 0 else False


def finish(image: jax.Array, draws: Draws, policy: Policy) -> jax.Array:
    """Do what follows crop and flip: colours, blur, solarize; `image` is float [size, size, C]."""
    if policy.clip_resized:
        image = jnp.clip(image, 0, 1)
    image = jnp.clip(recolor(rounded(image, policy.dtype), draws, policy), 0, 1)
    kernel_size = policy.size // 10
    if policy.blur > 0 and kernel_size > 1:
        blurred = gaussian_blur(image, draws.sigma, kernel_size, policy.precision)
        blurred = rounded(blurred, policy.dtype)
        image = jnp.clip(jnp.where(draws.blur, blurred, image), 0, 1)
    if policy.solarize > 0:
        image = jnp.where(draws.solarize, solarize(image, policy.solarize_threshold), image)
    return image


def flip(image: jax.Array) -> jax.Array:
    """Mirror left and right."""
    return image[:, ::-1]


def gaussian_blur(
    image: jax.Array, sigma: jax.Array, kernel_size: int, precision: str = "float32"
) -> jax.Array:
    """Blur along both axes with a Gaussian of `sigma` pixels, cut off at `kernel_size // 2`.

    `image` is float [H, W, C]. What lies beyond the border counts as zero, so edges darken, as
    in the official code. A kernel size below 2 changes nothing. `precision` is that of the
    products, see `products.py`.
    Source: official `data_util.py: gaussian_blur`.
    """
    radius = kernel_size // 2
    if radius == 0:
        return image
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    rows, columns = (_band(length, sigma, radius, dtype) for length in image.shape[:2])
    image = product("xw,hwc->hxc", columns, image, precision)
    return product("yh,hxc->yxc", rows, image, precision)


def _band(length, sigma, radius, dtype):
    """Return the blur along one axis as a banded matrix [length, length]."""
    exponent = -1 / (2 * jnp.asarray(sigma, dtype) ** 2)
    taps = jnp.exp(exponent * jnp.arange(-radius, radius + 1, dtype=dtype) ** 2)
    distance = np.arange(length)[:, None] - np.arange(length)
    weights = jnp.exp(exponent * jnp.asarray(distance, dtype) ** 2) / taps.sum()
    return jnp.where(np.abs(distance) <= radius, weights, 0)
