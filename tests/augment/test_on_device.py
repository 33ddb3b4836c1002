from __future__ import annotations

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from simclr_jax.augment import color, on_device
from simclr_jax.augment.draws import Draws, sample
from simclr_jax.augment.policy import GRIDS, Policy

OFF = {"crop": False, "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
NOISE = np.random.default_rng(0).random((24, 24, 3), np.float32)
augment = jax.jit(on_device.augment, static_argnums=2)
adjust_hue, adjust_saturation = jax.jit(color.adjust_hue), jax.jit(color.adjust_saturation)


def draws(**fields):
    """Draws that do nothing, but for `fields`."""
    nothing = {"box": (0, 0, 24, 24), "order": (0, 1, 2, 3), "sigma": 1.0, "hue": 0.0}
    nothing |= dict.fromkeys(("brightness", "contrast", "saturation"), 1.0)
    nothing |= dict.fromkeys(("flip", "jitter", "grayscale", "blur", "solarize"), False)
    return Draws(**{name: np.asarray(value) for name, value in (nothing | fields).items()})


@given(
    order=st.permutations(range(4)),
    flags=st.tuples(*[st.booleans()] * 5),
    factors=st.tuples(*[st.floats(0.0, 2.0, width=32)] * 3),
    hue=st.floats(-0.5, 0.5, width=32),
    sigma=st.floats(0.125, 4.0, width=32),
    corner=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    grid=st.sampled_from(GRIDS),
    extreme=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_views_stay_in_the_unit_range(order, flags, factors, hue, sigma, corner, grid, extreme):
    image = (NOISE > 0.5).astype(np.float32) if extreme else NOISE  # extremes overshoot most
    drawn = Draws(
        np.array([*corner, 24 - corner[0], 24 - corner[1]]),
        *flags[:2],
        np.array(order),
        *np.float32(factors),
        np.float32(hue),
        *flags[2:4],
        np.float32(sigma),
        flags[4],
    )
    view = augment(image, drawn, Policy(40, grid=grid, solarize=0.2))
    assert view.shape == (40, 40, 3)
    assert 0 <= view.min() <= view.max() <= 1


def test_what_is_off_leaves_the_pixels_and_the_program_alone():
    policy = Policy(24, **OFF)
    done = dict.fromkeys(("flip", "jitter", "grayscale", "blur", "solarize"), True)
    everything = draws(box=(0, 0, 5, 5), brightness=0.3, **done)
    np.testing.assert_array_equal(augment(NOISE, everything, policy), NOISE)
    program = str(jax.make_jaxpr(on_device.augment, static_argnums=2)(NOISE, everything, policy))
    assert not any(word in program for word in ("dot_general", "scan", "select_n", "rev", "exp"))


@pytest.mark.parametrize("off", ["brightness", "contrast", "saturation", "hue"])
def test_a_strength_of_zero_leaves_out_one_colour_operation(off):
    drawn = draws(jitter=True, brightness=0.7, contrast=1.2, saturation=0.6, hue=0.1)
    neutral = drawn._replace(**{off: np.float32(0.0 if off == "hue" else 1.0)})
    ours = augment(NOISE, drawn, Policy(24, **{**OFF, "jitter": 0.8, off: 0.0}))
    expected = augment(NOISE, neutral, Policy(24, **{**OFF, "jitter": 0.8}))
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert np.abs(ours - NOISE).max() > 0.05


def test_a_probability_below_one_does_nothing_when_not_drawn():
    np.testing.assert_array_equal(augment(NOISE, draws(), Policy(24, crop=False)), NOISE)


def test_hue_and_saturation_are_those_of_hsv():
    hue, saturation = map(np.asarray, (adjust_hue(NOISE, 0.13), adjust_saturation(NOISE, 1.4)))
    for y, x in np.ndindex(6, 6):
        h, s, v = colorsys.rgb_to_hsv(*map(float, NOISE[y, x]))
        np.testing.assert_allclose(hue[y, x], colorsys.hsv_to_rgb(h + 0.13, s, v), atol=2e-6)
        expected = colorsys.hsv_to_rgb(h, min(1.4 * s, 1), v)
        np.testing.assert_allclose(saturation[y, x], expected, atol=2e-6)


def test_gray_and_black_pixels_have_no_hue():
    gray = np.repeat(np.array([[[0.0], [0.25], [1.0]]], np.float32), 3, -1)
    for view in (adjust_hue(gray, 0.3), adjust_saturation(gray, 1.7)):
        np.testing.assert_array_equal(view, gray)


def test_jitter_runs_in_the_drawn_order_and_clips_between():
    """Brightness 1.8 saturates; what contrast then does depends on having been clipped."""
    drawn = draws(jitter=True, brightness=1.8, contrast=0.5)
    policy = Policy(24, **{**OFF, "jitter": 1.0})
    bright = np.clip(NOISE * 1.8, 0, 1)
    mean = bright.mean((0, 1))
    ours = augment(NOISE, drawn._replace(order=np.array([3, 0, 2, 1])), policy)
    np.testing.assert_allclose(ours, mean + 0.5 * (bright - mean), atol=2e-6)
    mean = NOISE.mean((0, 1))
    ours = augment(NOISE, drawn._replace(order=np.array([1, 3, 0, 2])), policy)
    expected = np.clip(1.8 * (mean + 0.5 * (NOISE - mean)), 0, 1)
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_blur_is_a_truncated_gaussian_with_zeros_outside():
    ours = jax.jit(on_device.gaussian_blur, static_argnums=2)(NOISE, 1.3, 9)
    expected = ndimage.gaussian_filter(
        NOISE.astype(float), 1.3, mode="constant", radius=(4, 4, 0), axes=(0, 1, 2)
    )
    np.testing.assert_allclose(ours, expected, atol=1e-6)


LUMA = np.array([0.2989, 0.5870, 0.1140])


def test_solarize_inverts_from_its_threshold_on_and_comes_last():
    """The chain of BYOL in float64: flip, jitter, grayscale, blur, solarize."""
    done = dict.fromkeys(("flip", "jitter", "grayscale", "blur", "solarize"), True)
    drawn = draws(brightness=1.1, sigma=0.7, **done)
    policy = Policy(24, crop=False, solarize=0.2, solarize_threshold=0.45)
    gray = np.clip(1.1 * NOISE.astype(float)[:, ::-1], 0, 1) @ LUMA
    blurred = ndimage.gaussian_filter(gray, 0.7, mode="constant", radius=1)
    expected = np.where(blurred < 0.45, blurred, 1 - blurred)
    ours = np.asarray(augment(NOISE, drawn, policy))
    certain = np.abs(blurred - 0.45) > 1e-5  # elsewhere rounding decides
    assert certain.mean() > 0.99 and 0.02 < (blurred < 0.45).mean() < 0.98
    for channel in range(3):
        np.testing.assert_allclose(ours[certain, channel], expected[certain], atol=2e-6)


def test_a_value_at_the_threshold_is_inverted():
    image = np.float32([[[0.0, 0.25, 0.26], [0.24, 0.5, 1.0]]])
    expected = np.float32([[[0.0, 0.75, 0.74], [0.24, 0.5, 0.0]]])
    np.testing.assert_array_equal(color.solarize(image, 0.25), expected)


@pytest.mark.parametrize("first", [False, True])
def test_grayscale_comes_before_the_jitter_or_after_it(first):
    drawn = draws(jitter=True, grayscale=True, brightness=1.8)
    policy = Policy(24, **{**OFF, "jitter": 0.8, "grayscale": 0.2}, grayscale_first=first)
    image = NOISE.astype(float)
    expected = np.clip(1.8 * (image @ LUMA), 0, 1) if first else np.clip(1.8 * image, 0, 1) @ LUMA
    ours = np.asarray(augment(NOISE, drawn, policy))
    np.testing.assert_allclose(ours, np.repeat(expected[..., None], 3, -1), atol=2e-6)


def test_flip_mirrors_the_crop():
    policy = Policy(16, **{**OFF, "crop": True, "flip": 0.5})
    box = (2, 3, 20, 15)
    plain, mirrored = (augment(NOISE, draws(box=box, flip=f), policy) for f in (False, True))
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channel_counts_get_brightness_and_contrast_only(channels):
    image = NOISE[:, :, :1].repeat(channels, -1)
    drawn = draws(
        jitter=True, grayscale=True, brightness=0.5, contrast=0.7, saturation=0.1, hue=0.2
    )
    policy = Policy(24, **{**OFF, "jitter": 0.8, "grayscale": 0.2})
    mean = 0.5 * image.mean((0, 1))
    expected = mean + 0.7 * (0.5 * image - mean)
    np.testing.assert_allclose(augment(image, drawn, policy), expected, atol=1e-6)


def test_a_view_does_not_depend_on_its_batch():
    policy, images = Policy(20), np.stack([NOISE, NOISE[::-1], NOISE[:, ::-1]])
    images = np.round(255 * images).astype(np.uint8)

    @jax.jit
    @jax.vmap
    def views(key, image):
        return on_device.augment(image, sample(key, policy, 24, 24), policy)

    keys = jax.random.split(jax.random.key(3), 3)
    forward = views(keys, images)
    np.testing.assert_array_equal(views(keys[::-1], images[::-1]), forward[::-1])
    assert forward.dtype == jnp.float32
    assert np.abs(forward[0] - forward[1]).max() > 0.1


def test_without_crop_an_image_of_another_size_is_resized_whole():
    policy = Policy(12, **OFF)
    view = augment(NOISE, draws(box=(0, 0, 3, 3)), policy)
    whole = jax.jit(on_device.crop_resize, static_argnums=(2, 3))(
        NOISE, np.array([0, 0, 24, 24]), 12, policy.grid
    )
    np.testing.assert_array_equal(view, np.clip(whole, 0, 1))


@pytest.mark.x64
def test_float64_images_are_augmented_in_float64():
    policy = Policy(40)
    drawn = draws(box=(2, 1, 17, 20), jitter=True, blur=True, hue=0.1, contrast=1.4)
    double = augment(NOISE.astype(np.float64), drawn, policy)
    single = augment(NOISE, jax.tree.map(lambda a: a.astype(np.float32), drawn), policy)
    assert double.dtype == np.float64
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, atol=4e-6)
    assert np.abs(single - double).max() > 1e-9  # nothing in between was rounded to float32
