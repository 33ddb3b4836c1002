"""The colour operations, on float images [H, W, C]; none but the jitter clips its output.

Saturation, hue and grayscale mean something for three channels only. The operations here expect
them; `color_jitter` leaves them out for any other number, so that grayscale and multispectral
images get brightness and contrast.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from simclr_jax.augment.draws import Draws
from simclr_jax.augment.policy import Policy
from simclr_jax.augment.products import rounded

LUMA = (0.2989, 0.5870, 0.1140)  # as TensorFlow rounds them; they do not sum to 1


Planes = tuple[jax.Array, ...]  # the channels of an image, [H, W] each


def recolor(image: jax.Array, draws: Draws, policy: Policy) -> jax.Array:
    """Turn an image gray and run the jitter, each if it is drawn, in the order of the policy.

    What the policy switches off leaves no trace in the program.
    Source: official `data_util.py: random_color_jitter`.
    """
    channels = image.shape[-1]
    turns_gray = policy.grayscale > 0 and channels == 3
    jitters = policy.jitter > 0 and _has_jitter(policy, channels)
    if not (turns_gray or jitters):
        return image
    planes = _planes(image)
    if turns_gray and policy.grayscale_first:
        planes = _gray_if(draws.grayscale, planes, policy)
    if jitters:
        planes = _jittered(planes, draws, policy, draws.jitter)
    if turns_gray and not policy.grayscale_first:
        planes = _gray_if(draws.grayscale, planes, policy)
    return _joined(planes)


def color_jitter(image: jax.Array, draws: Draws, policy: Policy) -> jax.Array:
    """Run the four operations in `draws.order`, clipping to [0, 1] after each.

    `draws.jitter` is not consulted. Operations of strength 0 are left out.
    Source: official `data_util.py: color_jitter_rand`.
    """
    return _joined(_jittered(_planes(image), draws, policy, jnp.bool_(True)))


def _jittered(planes: Planes, draws: Draws, policy: Policy, done: jax.Array) -> Planes:
    """Run the four operations on the channels of an image, or leave it if not `done`.

    Channels apart, all but the mean of each is elementwise: a turn reads an image and writes it.
    """
    color = len(planes) == 3
    neutral = 1 if policy.brightness_mode == "multiply" else 0
    planes = tuple(rounded(plane, policy.dtype) for plane in planes)
    wide = jnp.promote_types(planes[0].dtype, jnp.float32)

    # The order differs between the images of a batch, so each turn holds all four operations.
    # Brightness and contrast take their neutral value when it is not theirs; the other two are
    # not neutral on values outside [0, 1], which the resize may have left, and are selected.
    # A scan costs nothing at run time (each turn waits for its mean anyway) and halves the
    # compile time.
    def turn(planes: Planes, operation: jax.Array) -> tuple[Planes, None]:
        made = tuple(plane.astype(wide) for plane in planes)
        if policy.brightness > 0:
            amount = jnp.where(operation == 0, draws.brightness, neutral)
            made = tuple(adjust_brightness(x, amount, policy.brightness_mode) for x in made)
        if policy.contrast > 0:
            factor = jnp.where(operation == 1, draws.contrast, 1)
            made = tuple(adjust_contrast(x, factor) for x in made)
        if policy.saturation > 0 and color:
            made = _select(operation == 2, _saturated(made, draws.saturation), made)
        if policy.hue > 0 and color:
            made = _select(operation == 3, _turned(made, draws.hue), made)
        made = tuple(rounded(jnp.clip(x, 0, 1), policy.dtype) for x in made)
        return _select(done, made, planes), None

    return jax.lax.scan(turn, planes, draws.order)[0]


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
    return _joined(_saturated(_planes(image), factor))


def adjust_hue(image: jax.Array, turns: jax.Array) -> jax.Array:
    """Turn the hue by `turns` of the colour circle, keeping each pixel's maximum and minimum.

    Source: `tf.image.adjust_hue`, in closed form: with hue h in sixths of a turn, channel value
    = max - spread * clip(min(k, 4 - k), 0, 1), k = (n + h) mod 6, n = 5, 3, 1 for R, G, B.
    """
    return _joined(_turned(_planes(image), turns))


def grayscale(image: jax.Array) -> jax.Array:
    """Replace the three channels by their luma, three times.

    Source: official `data_util.py: to_grayscale`.
    """
    return jnp.broadcast_to(_luma(_planes(image))[..., None], image.shape)


def solarize(image: jax.Array, threshold: float = 0.5) -> jax.Array:
    """Invert the values from `threshold` on: x becomes 1 - x.

    Source: deepmind-research `byol/utils/augmentations.py: solarize`.
    """
    return jnp.where(image < threshold, image, 1 - image)


def _planes(image: jax.Array) -> Planes:
    return tuple(image[..., channel] for channel in range(image.shape[-1]))


def _joined(planes: Planes) -> jax.Array:
    return jnp.stack(planes, -1)


def _select(chosen: jax.Array, planes: Planes, others: Planes) -> Planes:
    return tuple(jnp.where(chosen, a, b) for a, b in zip(planes, others, strict=True))


def _gray_if(chosen: jax.Array, planes: Planes, policy: Policy) -> Planes:
    luma = rounded(_luma(planes), policy.dtype)
    planes = tuple(rounded(plane, policy.dtype) for plane in planes)
    return _select(chosen, (luma,) * len(planes), planes)


def _luma(planes: Planes) -> jax.Array:
    wide = jnp.promote_types(planes[0].dtype, jnp.float32)
    return sum((w * x.astype(wide) for w, x in zip(LUMA, planes, strict=True)), jnp.zeros((), wide))


def _extent(planes: Planes) -> tuple[jax.Array, jax.Array]:
    """Return the largest value of each pixel, and by how much it exceeds the smallest."""
    red, green, blue = planes
    top = jnp.maximum(jnp.maximum(red, green), blue)
    return top, top - jnp.minimum(jnp.minimum(red, green), blue)


def _saturated(planes: Planes, factor: jax.Array) -> Planes:
    top, spread = _extent(planes)
    # The clip at saturation 1 limits the factor to top / spread; a black pixel becomes gray.
    ratio = jnp.minimum(factor, top / jnp.where(spread > 0, spread, 1))
    ratio = jnp.where((top > 0) & (spread > 0), ratio, 0)
    return tuple(ratio * plane + (1 - ratio) * top for plane in planes)


def _turned(planes: Planes, turns: jax.Array) -> Planes:
    top, spread = _extent(planes)
    red, green, blue = planes
    safe = jnp.where(spread > 0, spread, 1)
    hue = jnp.where(
        top == red,
        (green - blue) / safe,
        jnp.where(top == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )

    def channel(n: int) -> jax.Array:
        sixths = hue + 6 * turns + n
        sixths -= 6 * jnp.floor(sixths / 6)
        return top - spread * jnp.clip(jnp.minimum(sixths, 4 - sixths), 0, 1)

    return tuple(channel(n) for n in (5, 3, 1))


def _has_jitter(policy: Policy, channels: int) -> bool:
    strengths = [policy.brightness, policy.contrast]
    if channels == 3:
        strengths += [policy.saturation, policy.hue]
    return max(strengths) > 0
