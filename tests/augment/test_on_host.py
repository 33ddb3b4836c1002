"""The TensorFlow implementation against the one in JAX, which has independent tests of its own."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simclr_jax.augment import on_device, on_host, resize
from simclr_jax.augment.draws import Draws, sample
from simclr_jax.augment.policy import Policy

tf = pytest.importorskip("tensorflow")

# Both are single precision. The grids of TensorFlow take equal taps, and each of four colour
# operations multiplies the rounding of the resize by up to 1.8 (measured: 1e-6 here, 2e-6 at 224
# pixels). With antialias the kernel takes positions that both round, which grows with the image
# (measured: 2e-6 to 8e-6 here, 6e-5 at 500 pixels, where each is 2e-5 from float64).
EPSILON = float(np.finfo(np.float32).eps)
TOLERANCE = {"corner": 32 * EPSILON, "half_pixel": 32 * EPSILON, "antialias": 256 * EPSILON}

device_augment = jax.jit(on_device.augment, static_argnums=2)
device_center_crop = jax.jit(on_device.center_crop, static_argnums=(1, 2))
draw = jax.jit(sample, static_argnums=1)


def photograph(height, width, channels=3):
    """Noise with enough black and white that the resize overshoots."""
    noise = np.random.default_rng(0).normal(128, 120, (height, width, channels))
    return np.clip(noise, 0, 255).astype(np.uint8)


def draws(image, count=8):
    """Draws of the full policy: a policy that switches something off does not look at its own."""
    keys = jax.random.split(jax.random.key(44), count)
    drawn = [draw(key, Policy(32, solarize=0.5), *image.shape[:2]) for key in keys]
    return [Draws(*map(np.asarray, fields)) for fields in drawn]


def test_the_draws_of_these_tests_do_and_do_not_do_everything():
    drawn = draws(photograph(24, 24))
    for choice in ("flip", "jitter", "grayscale", "blur", "solarize"):
        assert {bool(getattr(d, choice)) for d in drawn} == {True, False}
    assert {(bool(d.jitter), bool(d.grayscale)) for d in drawn} >= {(True, True), (True, False)}
    assert {int(d.order[0]) for d in drawn if d.jitter} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "shape, switches",
    [
        ((24, 24, 3), {}),
        ((24, 30, 1), {}),
        ((90, 120, 3), {"size": 64, "grid": "half_pixel"}),
        ((60, 47, 3), {"grid": "antialias"}),
        ((24, 24, 3), {"size": 24, "crop": False, "brightness_mode": "add"}),
        ((24, 30, 3), {"size": 20, "crop": False, "grid": "half_pixel"}),
        ((24, 24, 3), {"size": 16}),  # too small for the blur
        ((24, 24, 3), {"solarize": 0.5}),
        ((24, 30, 1), {"solarize": 0.5, "blur": 0}),
        ((24, 24, 3), {"grayscale_first": True}),
        ((24, 24, 3), {"flip": 0, "brightness": 0, "saturation": 0}),
        ((24, 24, 3), {"blur": 0, "contrast": 0, "hue": 0}),
        ((24, 24, 3), {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}),
        ((24, 24, 3), {"jitter": 0, "grayscale": 0}),
        ((24, 30, 1), {"brightness": 0, "contrast": 0}),
    ],
    ids=str,
)
def test_equal_draws_give_the_view_of_the_device(shape, switches):
    image, policy = photograph(*shape), Policy(**{"size": 32} | switches)
    for drawn in draws(image):
        view = on_host.augment(image, drawn, policy).numpy()
        assert view.dtype == np.float32
        expected = device_augment(image, drawn, policy)
        np.testing.assert_allclose(view, expected, rtol=0, atol=TOLERANCE[policy.grid])


def test_a_threshold_off_the_middle_inverts_the_same_pixels():
    """At 0.5 both sides meet; elsewhere rounding decides for pixels at the threshold."""
    image, policy = photograph(24, 24), Policy(32, solarize=0.5, solarize_threshold=0.3)
    before = Policy(32)
    for drawn in draws(image):
        view = on_host.augment(image, drawn, policy).numpy()
        expected = np.asarray(device_augment(image, drawn, policy))
        certain = np.abs(np.asarray(device_augment(image, drawn, before)) - 0.3) > 32 * EPSILON
        assert certain.mean() > 0.99
        np.testing.assert_allclose(view[certain], expected[certain], rtol=0, atol=32 * EPSILON)


@pytest.mark.parametrize("grid", TOLERANCE)
def test_what_is_off_leaves_the_pixels_alone(grid):
    off = {"crop": False, "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
    image, yes, factor = photograph(24, 24) / np.float32(255), np.array(True), np.float32(0.3)
    everything = Draws(
        np.array([0, 0, 5, 5]), yes, yes, np.arange(4), *[factor] * 4, yes, yes, factor, yes
    )
    view = on_host.augment(image, everything, Policy(24, grid=grid, **off))
    np.testing.assert_array_equal(view, image)


def stream(images, *more):
    """Images of unknown height and width, as a reader gives them, and what goes with each."""
    spec = [jax.tree.map(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), m[0]) for m in more]
    pixels = tf.TensorSpec([None, None, images[0].shape[-1]], images[0].dtype)
    return tf.data.Dataset.from_generator(
        lambda: zip(images, *more, strict=True), output_signature=(pixels, *spec)
    )


@pytest.mark.parametrize("grid, channels", [("corner", 3), ("half_pixel", 1), ("antialias", 3)])
def test_a_map_over_images_of_any_size_gives_the_same_views(grid, channels):
    images = [photograph(*size, channels) for size in ((24, 30), (60, 47), (33, 21))] * 2
    drawn = [draws(image)[i] for i, image in enumerate(images)]

    def augment(image, drawn):
        return on_host.augment(image, drawn, Policy(32, grid=grid))

    views = stream(images, drawn).map(augment, num_parallel_calls=2)
    assert views.element_spec == tf.TensorSpec([32, 32, channels], tf.float32)
    for view, image, d in zip(views.as_numpy_iterator(), images, drawn, strict=True):
        # Shown above to be those of the device. The graph may order multiplications otherwise.
        np.testing.assert_allclose(view, augment(image, d), rtol=0, atol=32 * EPSILON)


@pytest.mark.parametrize(
    "grid, size", [("corner", 32), ("half_pixel", (40, 56)), ("antialias", 20)]
)
def test_evaluation_view(grid, size):
    images = [photograph(37, 53), photograph(61, 40)]
    views = stream(images).map(functools.partial(on_host.center_crop, size=size, grid=grid))
    for view, image in zip(views.as_numpy_iterator(), images, strict=True):
        expected = device_center_crop(image, size, grid)
        np.testing.assert_allclose(view, expected, rtol=0, atol=TOLERANCE[grid])


sides = st.integers(1, 6000)


@given(sides, sides, st.tuples(st.integers(1, 400), st.integers(1, 400)), st.floats(0.5, 1.0))
@settings(max_examples=200, deadline=None)
def test_the_evaluation_box_is_the_same_to_the_pixel(height, width, size, proportion):
    box = on_host.center_box(height, width, size, proportion)
    np.testing.assert_array_equal(box, resize.center_box(height, width, size, proportion))


def test_double_precision_becomes_single():
    image = photograph(24, 24) / 255.0
    assert on_host.augment(image, draws(image)[0], Policy(24)).dtype == tf.float32
