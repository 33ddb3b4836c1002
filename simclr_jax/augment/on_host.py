"""Augmentation in TensorFlow: the draws, policy and views of `on_device.py`, for tf.data.

Each step is the TensorFlow operation that the official code calls there, so these are its pixels;
only the random choices come from outside. Everything takes one image [H, W, C] whose height and
width may be unknown when a tf.data map is traced (rank and channels must be known), and tensors
or, called eagerly, NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simclr_jax.augment.draws import Draws
from simclr_jax.augment.policy import GRIDS, Policy

Tensor = Any  # tf.Tensor: TensorFlow is imported when a function is called, not before


def augment(image: Tensor, draws: Draws, policy: Policy) -> Tensor:
    """Make one view, float32 [size, size, C] in [0, 1], of one image [H, W, C].

    `image` is uint8, or float in [0, 1]. What `policy` switches off leaves no trace in the graph.
    Images that do not have three channels get no saturation, hue and grayscale.
    Source: official `data_util.py: preprocess_for_train`, then `batch_random_blur`; solarize comes
    last in deepmind-research `byol/utils/augmentations.py: postprocess`.
    """
    import tensorflow as tf

    channels = image.shape[-1]
    if policy.crop:
        image = crop_resize(image, draws.box, policy.size, policy.grid)
    else:
        image = _resize(to_float(image), policy.size, policy.grid)
    if policy.clip_resized:
        image = tf.clip_by_value(image, 0.0, 1.0)
    if policy.flip > 0:
        image = _apply_if(draws.flip, flip, image)
    turns_gray = policy.grayscale > 0 and channels == 3
    if turns_gray and policy.grayscale_first:
        image = _apply_if(draws.grayscale, grayscale, image)
    if policy.jitter > 0 and any(_strengths(policy, channels)):
        image = _apply_if(draws.jitter, color_jitter, image, draws, policy)
    if turns_gray and not policy.grayscale_first:
        image = _apply_if(draws.grayscale, grayscale, image)
    image = tf.clip_by_value(image, 0.0, 1.0)
    kernel_size = policy.size // 10
    if policy.blur > 0 and kernel_size > 1:
        image = _apply_if(draws.blur, gaussian_blur, image, draws.sigma, kernel_size)
        image = tf.clip_by_value(image, 0.0, 1.0)
    if policy.solarize > 0:
        image = _apply_if(draws.solarize, solarize, image, policy.solarize_threshold)
    return image


def to_float(image: Tensor) -> Tensor:
    """Return the image as float32: uint8 times float32(1/255), floats unchanged in value.

    Source: `tf.image.convert_image_dtype` of TF2; TF1 divides by 255.
    """
    import tensorflow as tf

    return tf.image.convert_image_dtype(image, tf.float32)


def crop_resize(image: Tensor, box: Tensor, size: int | tuple[int, int], grid: str) -> Tensor:
    """Cut `box` (y, x, height, width) out and resize it to `size`: a side, or (height, width).

    `image` is uint8 or float, the result float32 [height, width, C]. The bicubic kernel
    overshoots, so values may leave [0, 1]: the caller clips. `grid` is explained in `resize.py`.
    Source: official `data_util.py: crop_and_resize`.
    """
    import tensorflow as tf

    y, x, height, width = tf.unstack(tf.cast(box, tf.int32), num=4)
    # Converted after the crop, which changes no value, for the pixels that are left.
    return _resize(to_float(tf.image.crop_to_bounding_box(image, y, x, height, width)), size, grid)


def center_crop(
    image: Tensor, size: int | tuple[int, int], grid: str, proportion: float = 0.875
) -> Tensor:
    """Make the evaluation view: the central `proportion`, resized to `size`, in [0, 1].

    `image` is uint8 or float [H, W, C], the view float32. At 32 pixels and below the official
    code evaluates the whole image instead: that choice is the caller's.
    Source: official `data_util.py: preprocess_for_eval, center_crop`.
    """
    import tensorflow as tf

    height, width, _ = tf.unstack(tf.shape(image), num=3)
    box = center_box(height, width, size, proportion)
    return tf.clip_by_value(crop_resize(image, box, size, grid), 0.0, 1.0)


def center_box(
    height: Tensor, width: Tensor, size: int | tuple[int, int], proportion: float = 0.875
) -> Tensor:
    """Return the evaluation crop of an image of `height` x `width`, int32 (y, x, height, width).

    Source: official `data_util.py: _compute_crop_shape, center_crop`.
    """
    import tensorflow as tf

    out_height, out_width = _sides(size)
    aspect = out_width / out_height
    rows, columns = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    wide = tf.stack([proportion / aspect * columns, proportion * columns])
    tall = tf.stack([proportion * rows, proportion * aspect * rows])
    crop = tf.cast(tf.math.rint(tf.where(aspect > columns / rows, wide, tall)), tf.int32)
    return tf.concat([(tf.stack([height, width]) - crop + 1) // 2, crop], 0)


def flip(image: Tensor) -> Tensor:
    """Mirror left and right."""
    import tensorflow as tf

    return tf.image.flip_left_right(image)


def color_jitter(image: Tensor, draws: Draws, policy: Policy) -> Tensor:
    """Run the four operations in `draws.order`, clipping to [0, 1] after each.

    `image` is float32; `draws.jitter` is not consulted. Operations of strength 0 are left out.
    Source: official `data_util.py: color_jitter_rand`.
    """
    import tensorflow as tf

    for operation in tf.unstack(draws.order, num=4):
        image = tf.clip_by_value(adjust_color(image, operation, draws, policy), 0.0, 1.0)
    return image


def adjust_color(image: Tensor, operation: Tensor, draws: Draws, policy: Policy) -> Tensor:
    """Run one operation, numbered as in `draws.order`, without clipping what it leaves.

    Source: official `data_util.py: color_jitter_rand, random_brightness` (simclrv2, simclrv1).
    """
    import tensorflow as tf

    def brightness() -> Tensor:
        if policy.brightness_mode == "multiply":
            return image * draws.brightness
        return tf.image.adjust_brightness(image, draws.brightness)

    operations = (
        brightness,
        lambda: tf.image.adjust_contrast(image, draws.contrast),
        lambda: tf.image.adjust_saturation(image, draws.saturation),
        lambda: tf.image.adjust_hue(image, draws.hue),
    )
    strengths = _strengths(policy, image.shape[-1])
    branches = [
        run if strength > 0 else lambda: image
        for run, strength in zip(operations, strengths, strict=True)
    ]
    return tf.switch_case(tf.cast(operation, tf.int32), branches)


def grayscale(image: Tensor) -> Tensor:
    """Replace the three channels by their luma, three times.

    Source: official `data_util.py: to_grayscale`.
    """
    import tensorflow as tf

    return tf.tile(tf.image.rgb_to_grayscale(image), [1, 1, 3])


def solarize(image: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert the values from `threshold` on: x becomes 1 - x.

    Source: deepmind-research `byol/utils/augmentations.py: solarize`.
    """
    import tensorflow as tf

    return tf.where(image < threshold, image, 1.0 - image)


def gaussian_blur(image: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blur along both axes with a Gaussian of `sigma` pixels, cut off at `kernel_size // 2`.

    `image` is float32. What lies beyond the border counts as zero, so edges darken, as in the
    official code. A kernel size below 2 changes nothing.
    Source: official `data_util.py: gaussian_blur`.
    """
    import tensorflow as tf

    radius = kernel_size // 2
    distance = tf.range(-radius, radius + 1, dtype=tf.float32)
    taps = tf.exp(-(distance**2) / (2.0 * tf.cast(sigma, tf.float32) ** 2))
    taps = tf.tile((taps / tf.reduce_sum(taps))[:, None], [1, image.shape[-1]])  # [taps, C]
    batch = tf.nn.depthwise_conv2d(image[None], taps[None, :, :, None], [1, 1, 1, 1], "SAME")
    return tf.nn.depthwise_conv2d(batch, taps[:, None, :, None], [1, 1, 1, 1], "SAME")[0]


def _resize(image, size, grid):
    import tensorflow as tf

    assert grid in GRIDS, f"TensorFlow has no grid {grid}"
    size = _sides(size)
    if grid == "corner":
        # The operation behind TF1's `tf.image.resize_bicubic`, which now warns when it is called.
        return tf.raw_ops.ResizeBicubic(images=image[None], size=size)[0]
    return tf.image.resize(image[None], size, "bicubic", antialias=grid == "antialias")[0]


def _sides(size):
    return (size, size) if isinstance(size, int) else size


def _apply_if(chosen: Tensor, operation: Callable, image: Tensor, *arguments: Any) -> Tensor:
    """Apply the operation if `chosen`; otherwise it costs nothing."""
    import tensorflow as tf

    return tf.cond(chosen, lambda: operation(image, *arguments), lambda: image)


def _strengths(policy, channels):
    """Return the four strengths in the numbering of `Draws.order`; two need three channels."""
    color = channels == 3
    return policy.brightness, policy.contrast, policy.saturation * color, policy.hue * color
