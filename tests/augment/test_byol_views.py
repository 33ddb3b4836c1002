"""BYOL's views of ImageNet, operation by operation, against its chain written in NumPy.

From deepmind-research `byol/utils/augmentations.py`, in words: flip; with the jitter's probability
brightness added, contrast about each channel's mean, saturation and hue in HSV, in the order drawn,
clipped after each; gray; clipped; blur by a kernel of a tenth of the side, zeros beyond the border;
inverted from one half on. What the resize overshot was clipped before.
"""

from __future__ import annotations

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes.freeze import resolved
from scipy import ndimage

from simclr_jax.augment import draws, on_device
from simclr_jax.stages import build

SIDE, COUNT = 40, 6


def policies():
    c = resolved("byol", "imagenet")
    c.data.image_size = SIDE
    for view in c.augment.views.values():
        view.crop = False  # the images have the size of a view
    return build.policies(c)["views"]


def in_hsv(image, change):
    pixels = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p))) for p in image.reshape(-1, 3)]
    return np.array(pixels).reshape(image.shape)


def jitter(image, d):
    mean = lambda x: x.mean((0, 1))  # noqa: E731
    operations = (
        lambda x: x + d.brightness,
        lambda x: d.contrast * (x - mean(x)) + mean(x),
        lambda x: in_hsv(x, lambda h, s, v: (h, min(s * d.saturation, 1.0), v)),
        lambda x: in_hsv(x, lambda h, s, v: ((h + d.hue) % 1.0, s, v)),
    )
    for k in d.order:
        image = np.clip(operations[k](image), 0, 1)
    return image


def blur(image, sigma):
    radius = int(SIDE / 10 / 2)
    taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    for axis in (0, 1):
        image = ndimage.convolve1d(image, taps / taps.sum(), axis, mode="constant")
    return image


def by_numpy(image, d):
    image = np.clip(np.float64(image), 0, 1)
    image = image[:, ::-1] if d.flip else image
    image = jitter(image, d) if d.jitter else image
    if d.grayscale:
        image = np.repeat((image @ [0.2989, 0.5870, 0.1140])[..., None], 3, -1)
    image = np.clip(image, 0, 1)
    image = blur(image, d.sigma) if d.blur else image
    image = np.where(image < 0.5, image, 1 - image) if d.solarize else image
    return np.clip(image, 0, 1)


@pytest.mark.parametrize("view", [0, 1])
def test_a_view_is_that_of_the_official_chain(view):
    policy = policies()[view]
    random = np.random.default_rng(view)
    images = jnp.float32(random.uniform(-0.1, 1.1, (COUNT, SIDE, SIDE, 3)))  # as resized
    keys = jax.random.split(jax.random.key(7 + view), COUNT)

    @jax.jit
    def ours(images, keys):
        drawn = jax.vmap(lambda key: draws.sample(key, policy, SIDE, SIDE))(keys)
        # Whatever the probabilities, each of the two is seen done and left.
        done = jnp.arange(COUNT)
        drawn = drawn._replace(jitter=done != 5, grayscale=done == 4, solarize=done % 2 == 1)
        return jax.vmap(lambda image, d: on_device.augment(image, d, policy))(images, drawn), drawn

    found, drawn = jax.tree.map(np.asarray, ours(images, keys))
    assert {tuple(order) for order in drawn.order} != {(0, 1, 2, 3)}
    for i in range(COUNT):
        d = jax.tree.map(lambda x, i=i: x[i], drawn)
        if view == 0:
            assert d.blur
            d = d._replace(solarize=False)  # of first views there is none, whatever is drawn
        np.testing.assert_allclose(found[i], by_numpy(images[i], d), atol=3e-6)


def test_the_two_policies_differ_in_blur_and_solarize_alone():
    first, second = policies()
    assert (first.blur, first.solarize) == (1.0, 0.0)
    assert (second.blur, second.solarize, second.solarize_threshold) == (0.1, 0.2, 0.5)
    for policy in (first, second):
        strengths = (policy.brightness, policy.contrast, policy.saturation, policy.hue)
        assert strengths == (0.4, 0.4, 0.2, 0.1)
        assert (policy.jitter, policy.grayscale, policy.flip) == (0.8, 0.2, 0.5)
        assert (policy.blur_sigma, policy.area, policy.aspect) == (
            (0.1, 2),
            (0.08, 1),
            (3 / 4, 4 / 3),
        )
        assert (policy.crop_law, policy.grid, policy.brightness_mode, policy.clip_resized) == (
            *("area_cut", "half_pixel", "add"),
            True,
        )
