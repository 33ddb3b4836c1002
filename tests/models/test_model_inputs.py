"""What an encoder is shown of an image, against closed forms in NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.fields import CHOICES
from simclr_jax.models.inputs import COLOURED, INPUTS
from simclr_jax.models.normalization import BatchNorm
from simclr_jax.models.resnet import ResNet

IMAGES = np.random.default_rng(0).uniform(size=(2, 3, 5, 4, 3))  # [b, v, h, w, c]
IMAGES[0, 0] *= 0.03  # so dark that sRGB and Lab are linear there
IMAGES[0, 1] = 0.5  # an image without contrast
IMAGES[0, 2] = 0.5 + 0.01 * (IMAGES[0, 2] - 0.5)  # and one with little


def standardised(images):
    out = np.empty_like(images)
    for place in np.ndindex(*images.shape[:-3]):
        image = images[place]
        deviation = np.sqrt(np.mean((image - image.mean()) ** 2))
        out[place] = (image - image.mean()) / max(deviation, image.size**-0.5)
    return out


def normalised(images):
    red, green, blue = np.moveaxis(images, -1, 0)
    parts = (red - 0.485) / 0.229, (green - 0.456) / 0.224, (blue - 0.406) / 0.225
    return np.stack(parts, -1)


def lightness(images):
    """IEC 61966-2-1 and CIE 1976 with the published breaks, for a white of luminance 1."""
    linear = np.piecewise(
        images,
        [images <= 0.04045],
        [lambda v: v / 12.92, lambda v: np.exp(2.4 * np.log((v + 0.055) / 1.055))],
    )
    y = 0.212671 * linear[..., 0] + 0.715160 * linear[..., 1] + 0.072169 * linear[..., 2]
    f = np.piecewise(y, [y <= 0.008856], [lambda v: 7.787 * v + 16 / 116, lambda v: v ** (1 / 3)])
    return ((116 * f - 16) / 100)[..., None]


CLOSED = {
    "rgb": lambda images: images,
    "standardised": standardised,
    "normalised": normalised,
    "lightness": lightness,
}


def test_choices_are_those_of_a_recipe():
    assert tuple(INPUTS) == CHOICES["model.input"] == tuple(CLOSED)


@pytest.mark.x64
@pytest.mark.parametrize("name", INPUTS)
def test_inputs_are_their_closed_forms(name):
    found = jax.jit(INPUTS[name])(IMAGES)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, CLOSED[name](IMAGES), rtol=1e-12, atol=1e-13)


@pytest.mark.x64
def test_a_gray_image_can_be_standardised():
    gray = IMAGES[..., :1]
    np.testing.assert_allclose(INPUTS["standardised"](gray), standardised(gray), rtol=1e-12)


@pytest.mark.parametrize("name", INPUTS)
def test_bfloat16_is_computed_in_float32(name):
    images = jnp.asarray(IMAGES, jnp.bfloat16)
    found = INPUTS[name](images)
    assert found.dtype == jnp.bfloat16
    want = CLOSED[name](np.asarray(images, np.float64))
    np.testing.assert_allclose(np.asarray(found, float), want, rtol=2**-8, atol=1e-6)


def test_black_and_white_have_lightness_0_and_1():
    ends = jnp.stack([jnp.zeros((1, 1, 3)), jnp.ones((1, 1, 3))])
    np.testing.assert_allclose(INPUTS["lightness"](ends).ravel(), [0, 1], atol=1e-6)


@pytest.mark.parametrize("name", INPUTS)
def test_which_are_of_coloured_images_alone(name):
    gray = jnp.zeros((2, 4, 4, 1))
    if name not in COLOURED:
        assert INPUTS[name](gray).shape == gray.shape
        return
    with pytest.raises(ValueError, match=f"input {name} is made of images of 3 channels, not of 1"):
        INPUTS[name](gray)


@pytest.mark.x64
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", INPUTS)
def test_an_encoder_is_shown_its_input(name, train):
    """The images themselves, made into it beforehand, give the same in an encoder of `rgb`."""
    images = IMAGES.reshape(6, 5, 4, 3)
    norm = functools.partial(BatchNorm, param_dtype=jnp.float64)
    make = functools.partial(ResNet, 10, 1 / 16, "cifar", norm=norm, param_dtype=jnp.float64)
    init = functools.partial(make(inputs=name).init, train=True)
    variables = jax.jit(init)(jax.random.key(0), images)
    shown = CLOSED[name](images)
    kernel = variables["params"]["stem_conv"]["conv"]["kernel"]
    assert kernel.shape == (3, 3, 1 if name == "lightness" else 3, 4)

    @functools.partial(jax.jit, static_argnames="inputs")
    def ends(images, inputs):
        return make(inputs=inputs).apply(variables, images, train, mutable=["batch_stats"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
        ends(images, name),
        ends(shown, "rgb"),
    )
