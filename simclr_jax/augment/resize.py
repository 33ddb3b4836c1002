"""Crop and bicubic resize as two matrix products, one weight matrix per axis.

A gather of four neighbours per pixel is ten times slower than the products, and a library resize
that takes a translation reads pixels outside the crop. Here the weights are zero outside it. They
are made of the box where the products are computed, so boxes may be drawn there.

Three grids, since the three codes people compare with do not produce the same pixels. With
`scale = size / out` (pixels of the crop per pixel of the view):

- `corner`: position `i * scale`, Keys' kernel a = -0.75, taps beyond the crop's edge fall on the
  edge pixel (TF1 `resize_bicubic`). The official numbers came from this one.
- `half_pixel`: position `(i + 1/2) * scale - 1/2`, a = -0.5, taps beyond the edge dropped and the
  rest renormalised (TF2 `tf.image.resize`).
- `antialias`: the same positions, the kernel widened by `scale` when shrinking (torchvision, PIL).

The first two do not antialias, and both round the position to 1/1024 of a pixel, because
TensorFlow looks the kernel up in a table: without the rounding errors reach 6e-4.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from simclr_jax.augment.policy import GRIDS
from simclr_jax.augment.products import product

TABLE_SIZE = 1024


def to_float(image: jax.Array) -> jax.Array:
    """Return the image as floats: uint8 times 1/255, floats unchanged but at least float32.

    TF2 multiplies by float32(1/255), TF1 divides by 255; we multiply, which costs less, and the
    two differ by one unit in the last place for half of the 256 values.
    Source: `tf.image.convert_image_dtype`.
    """
    image = jnp.asarray(image)
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    if image.dtype == jnp.uint8:
        return image.astype(dtype) * (1 / 255)
    return image.astype(dtype)


def crop_resize(
    image: jax.Array,
    box: ArrayLike,
    size: int | tuple[int, int],
    grid: str,
    precision: str = "float32",
    *,
    flipped: bool | jax.Array = False,
) -> jax.Array:
    """Cut `box` (y, x, height, width; may be traced) out and resize it to `size`.

    `image` [H, W, C] is float, or uint8, whose values stay between 0 and 255: bytes are multiplied
    as the whole numbers that they are. `size` is a side or (height, width), `precision` that of the
    products (see `products.py`), `flipped` (may be traced) mirrors the result left and right, which
    is another order of its columns' weights. The bicubic kernel overshoots, so values may leave
    their range: the caller clips. Equal sizes give the crop unchanged.
    Source: official `data_util.py: crop_and_resize`.
    """
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    rows, columns = matrices(image.shape[:2], box, size, grid, dtype, flipped)
    image = product("oh,hwc->owc", rows, image, precision)
    return product("pw,owc->opc", columns, image, precision)


def matrices(
    sides: tuple[int, ...],
    box: ArrayLike,
    size: int | tuple[int, int],
    grid: str,
    dtype: jnp.dtype,
    flipped: bool | jax.Array = False,
) -> tuple[jax.Array, jax.Array]:
    """Return what `crop_resize` multiplies the rows and the columns of an image of `sides` by."""
    out_height, out_width = (size, size) if isinstance(size, int) else size
    y, x, crop_height, crop_width = jnp.asarray(box)
    rows = _weights(out_height, sides[0], y, crop_height, grid, dtype)
    columns = _weights(out_width, sides[1], x, crop_width, grid, dtype, flipped)
    return rows, columns  # [out_height, height], [out_width, width]


def center_crop(
    image: jax.Array, size: int | tuple[int, int], grid: str, proportion: float = 0.875
) -> jax.Array:
    """Make the evaluation view: the central `proportion`, resized to `size`, in [0, 1].

    `image` is uint8 or float [H, W, C]. The crop is taken at the image's own resolution, with the
    aspect of the view. At 32 pixels and below the official code evaluates the whole image
    instead: that choice is the caller's.
    Source: official `data_util.py: preprocess_for_eval, center_crop`.
    """
    box = center_box(image.shape[0], image.shape[1], size, proportion)
    return jnp.clip(crop_resize(to_float(image), np.array(box), size, grid), 0, 1)


def center_box(
    height: int, width: int, size: int | tuple[int, int], proportion: float = 0.875
) -> tuple[int, int, int, int]:
    """Return y, x, height, width of the evaluation crop of an image of `height` x `width`.

    Single precision and rounding to even, as in the official `data_util.py:
    _compute_crop_shape, center_crop`; in any other arithmetic some crops are a pixel off.
    """
    out_height, out_width = (size, size) if isinstance(size, int) else size
    aspect = out_width / out_height
    if np.float32(aspect) > np.float32(width) / np.float32(height):
        exact = np.float32(proportion / aspect) * width, np.float32(proportion) * width
    else:
        exact = np.float32(proportion) * height, np.float32(proportion * aspect) * height
    crop_height, crop_width = (int(np.rint(side)) for side in exact)
    return (height - crop_height + 1) // 2, (width - crop_width + 1) // 2, crop_height, crop_width


def _weights(out, length, start, size, grid, dtype, backwards=False):
    """Return the matrix [out, length] that resizes `size` pixels from `start` to `out` pixels.

    The last of these is the first one if `backwards`.
    """
    assert grid in GRIDS, f"the device has no grid {grid}"
    scale = jnp.asarray(size, dtype) / out
    index = jnp.arange(out, dtype=dtype)
    if backwards is not False:  # known when this is compiled
        index = jnp.where(backwards, out - 1 - index, index)
    if grid == "antialias":
        centre = (index + 0.5) * scale - 0.5
        pixel = jnp.arange(length) - start
        distance = jnp.abs(pixel - centre[:, None]) / jnp.maximum(scale, 1)
        weights = jnp.where((pixel >= 0) & (pixel < size), _keys(distance, -0.5), 0)
        return weights / weights.sum(1, keepdims=True)

    corner = grid == "corner"
    position = index * scale if corner else (index + 0.5) * scale - 0.5
    left = jnp.floor(position)
    fraction = jnp.rint((position - left) * TABLE_SIZE) / TABLE_SIZE
    offsets = jnp.arange(-1, 3)
    tap_weights = _keys(jnp.abs(fraction[:, None] - offsets), -0.75 if corner else -0.5)  # [out, 4]
    taps = left.astype(jnp.int32)[:, None] + offsets
    inside = jnp.clip(taps, 0, size - 1)
    if not corner:
        tap_weights = jnp.where(taps == inside, tap_weights, 0)
        tap_weights /= tap_weights.sum(1, keepdims=True)
    hits = (start + inside)[:, :, None] == jnp.arange(length)  # [out, 4, length]
    return jnp.where(hits, tap_weights[:, :, None], 0).sum(1)


def _keys(distance, a):
    """Evaluate Keys' cubic kernel (1981) at non-negative distances."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (distance - 1) * (distance - 2) ** 2
    return jnp.where(distance <= 1, near, jnp.where(distance < 2, far, 0))
