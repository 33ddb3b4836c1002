from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from simclr_jax.augment import resize
from simclr_jax.augment.policy import GRIDS

crop_resize = jax.jit(resize.crop_resize, static_argnums=(2, 3))
IMAGE = np.random.default_rng(0).random((37, 53, 3), np.float32)
WHOLE = np.array([0, 0, 37, 53])


@pytest.mark.parametrize(
    "box, size",
    [((0, 0, 37, 53), 16), ((3, 5, 20, 40), 9), ((10, 20, 9, 11), 32), ((1, 2, 30, 12), 24)],
)
def test_antialias_is_pillow(box, size):
    y, x, height, width = box
    ours = crop_resize(IMAGE, np.array(box), size, "antialias")
    for channel in range(3):
        crop = Image.fromarray(IMAGE[y : y + height, x : x + width, channel], mode="F")
        pillow = np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(ours[..., channel], pillow, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_pixels_outside_the_crop_are_not_read(grid):
    box, inside = np.array([7, 11, 12, 20]), (slice(7, 19), slice(11, 31))
    spoiled = np.full_like(IMAGE, 1e6)
    spoiled[inside] = IMAGE[inside]
    np.testing.assert_array_equal(
        crop_resize(spoiled, box, 16, grid), crop_resize(IMAGE, box, 16, grid)
    )
    ours = crop_resize(IMAGE[inside], np.array([0, 0, 12, 20]), 16, grid)
    np.testing.assert_allclose(crop_resize(IMAGE, box, 16, grid), ours, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_equal_sizes_copy_the_crop(grid):
    ours = crop_resize(IMAGE, np.array([4, 6, 24, 24]), 24, grid)
    np.testing.assert_array_equal(ours, IMAGE[4:28, 6:30])


def test_center_crop_is_the_clipped_resize_of_the_central_box():
    assert resize.center_box(37, 53, 32) == (3, 11, 32, 32)
    black_and_white = np.where(IMAGE > 0.5, np.uint8(255), np.uint8(0))  # overshoots
    ours = jax.jit(resize.center_crop, static_argnums=(1, 2))(black_and_white, 48, "corner")
    assert ours.min() == 0
    assert ours.max() == 1
    box = np.array(resize.center_box(37, 53, 48))
    exact = crop_resize(black_and_white / np.float32(255), box, 48, "corner")
    assert exact.max() > 1.01
    np.testing.assert_allclose(ours, np.clip(exact, 0, 1), atol=1e-6)


def test_uint8_and_small_floats_become_float32():
    np.testing.assert_allclose(resize.to_float(np.arange(256, dtype=np.uint8)) * 255, range(256))
    assert resize.to_float(np.uint8(7)).dtype == np.float32
    assert resize.to_float(jax.numpy.ones(3, jax.numpy.bfloat16)).dtype == np.float32


@pytest.mark.x64
@pytest.mark.parametrize("grid", ["corner", "half_pixel"])
@pytest.mark.parametrize("size", [16, 37, 80])
def test_tensorflow_grids_in_float64(grid, size):
    """The law pixel by pixel, in NumPy."""
    ours = crop_resize(IMAGE.astype(np.float64), WHOLE, size, grid)
    assert ours.dtype == np.float64
    rows = resize_axis(IMAGE.astype(np.float64), size, grid)
    expected = resize_axis(rows.swapaxes(0, 1), size, grid).swapaxes(0, 1)
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def resize_axis(image, out, grid):
    a, length = (-0.75 if grid == "corner" else -0.5), len(image)
    result = []
    for i in range(out):
        at = i * length / out if grid == "corner" else (i + 0.5) * length / out - 0.5
        left = int(np.floor(at))
        fraction = np.rint((at - left) * 1024) / 1024
        total, weights = 0, 0
        for tap in range(left - 1, left + 3):
            t = abs(left + fraction - tap)
            if t <= 1:
                weight = (a + 2) * t**3 - (a + 3) * t**2 + 1
            else:
                weight = a * (t**3 - 5 * t**2 + 8 * t - 4)
            if grid == "half_pixel" and not 0 <= tap < length:
                continue
            total = total + weight * image[min(max(tap, 0), length - 1)]
            weights += weight
        result.append(total / weights)
    return np.array(result)
