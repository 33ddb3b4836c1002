"""Crops uniform in area, as torchvision and BYOL draw them, against loops; what is clipped when."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from simclr_jax import recipes, validation
from simclr_jax.augment import draws, on_device, on_host
from simclr_jax.augment.policy import Policy
from simclr_jax.errors import UserError

COUNT = 4000
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


def by_loop(law, height, width, seed=0, area=AREA, aspect=ASPECT):
    """Draw crops one by one, as the two programs do, from the laws in words."""
    random = np.random.default_rng(seed)
    for _ in range(10 if law == "area" else 1):
        target = random.uniform(*area) * height * width
        ratio = math.exp(random.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if law == "area_cut":
            w, h = min(w, width), min(h, height)
        if 0 < w <= width and 0 < h <= height:
            return random.integers(height - h + 1), random.integers(width - w + 1), h, w
    w, h = width, height
    if width / height < aspect[0]:
        h = round(width / aspect[0])
    elif width / height > aspect[1]:
        w = round(height * aspect[1])
    return (height - h) // 2, (width - w) // 2, h, w


def ours(law, height, width, count=COUNT, **fields):
    policy = Policy(8, crop_law=law, **{"area": AREA, "aspect": ASPECT, **fields})
    keys = jax.random.split(jax.random.key(3), count)
    draw = jax.jit(jax.vmap(lambda key, h, w: draws.crop_box(key, policy, h, w), (0, None, None)))
    boxes = np.asarray(draw(keys, height, width))
    assert boxes.dtype == np.int32
    return boxes


@pytest.mark.parametrize("law", ["area", "area_cut"])
@pytest.mark.parametrize("height, width, aspect", [(40, 60, (1 / 4, 4)), (91, 20, ASPECT)])
def test_the_law_of_crops_is_that_of_a_loop(law, height, width, aspect):
    found = ours(law, height, width, aspect=aspect)
    want = np.array([by_loop(law, height, width, seed, aspect=aspect) for seed in range(COUNT)])
    for name, a, b in zip("yxhw", found.T, want.T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-4, name
    for a, b in (
        (found[:, 2] * found[:, 3], want[:, 2] * want[:, 3]),
        (found[:, 1] + found[:, 3], want[:, 1] + want[:, 3]),
    ):
        assert stats.ks_2samp(a, b).pvalue > 1e-4
    assert (found[:, :2] >= 0).all() and (found[:, 2:] >= 1).all()
    ends = found[:, :2] + found[:, 2:]
    # Unlike TensorFlow's, crops smaller than the image touch its last row and column.
    assert (ends <= [height, width]).all() and (ends.max(0) == [height, width]).all()


@pytest.mark.parametrize("height, width", [(10, 300), (300, 10), (8, 8)])
def test_where_no_crop_fits_it_is_the_largest_about_the_centre(height, width):
    """Or, for BYOL, one whose sides are cut to the image's."""
    area = {"area": (1.0, 1.0)} if height != width else {"area": (1.0, 1.0), "aspect": (1.3, 1.4)}
    found = ours("area", height, width, 16, **area)
    want = by_loop("area", height, width, **area)
    np.testing.assert_array_equal(found, [want] * 16)
    cut = ours("area_cut", height, width, 16, **area)
    assert (cut[:, 2:].min(1) == min(height, width)).all() or height == width


def test_what_another_law_does_not_read_is_refused():
    c = recipes.base()
    c.augment.crop_law = "area"
    validation.validate(c, 1)
    c.augment.views.second.min_object_covered = 0.3
    with pytest.raises(UserError, match=r"second.min_object_covered is 0.3, .*=area does not read"):
        validation.validate(c, 1)


@pytest.mark.parametrize("placement", ["device", "host"])
def test_what_the_resize_overshot_is_clipped_if_asked(placement):
    """Before the first colour operation, here brightness; else only after it."""
    if placement == "host":
        pytest.importorskip("tensorflow")
    crop_resize, augment = on_host.crop_resize, on_host.augment
    if placement == "device":
        crop_resize = jax.jit(on_device.crop_resize, static_argnums=(2, 3))
        augment = jax.jit(on_device.augment, static_argnums=2)
    image = (255 * (np.random.default_rng(0).random((8, 8, 3)) > 0.5)).astype(np.uint8)
    box, amount = np.array([0, 0, 8, 8], np.int32), np.float32(-0.3)
    resized = np.asarray(crop_resize(image / np.float32(255), box, 20, "half_pixel"))
    assert resized.max() > 1.05
    done, order = np.True_, np.arange(4, dtype=np.int32)
    drawn = draws.Draws(box, done, done, order, amount, *[amount] * 3, done, done, amount, done)
    for clipped in (False, True):
        policy = Policy(
            *(20, True),
            grid="half_pixel",
            clip_resized=clipped,
            flip=0.0,
            grayscale=0.0,
            blur=0.0,
            brightness_mode="add",
            **dict.fromkeys(("contrast", "saturation", "hue"), 0.0),
        )
        want = np.clip((np.clip(resized, 0, 1) if clipped else resized) + amount, 0, 1)
        found = np.asarray(augment(image, drawn, policy))
        np.testing.assert_allclose(found, want, atol=2e-6)


@pytest.mark.x64
@pytest.mark.parametrize("law", ["area", "area_cut"])
def test_boxes_are_integers_of_32_bits_under_x64(law):
    policy = Policy(8, crop_law=law)
    box = jax.eval_shape(lambda key: draws.crop_box(key, policy, 8, 9), jax.random.key(0))
    assert box.dtype == jnp.int32
