"""The encoder: sizes, shapes, dtypes, independence of rows, initial values."""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from simclr_jax.models import resnet
from simclr_jax.models.channel_attention import SelectiveKernel
from simclr_jax.models.normalization import BatchNorm
from simclr_jax.models.resnet import Conv, ResNet

# Trainable parameters, and with moving statistics, of the encoders built by the official code.
COUNTS = {
    (18, 1, "cifar"): (11_173_056, 11_182_784),
    (18, 1, "imagenet"): (11_180_736, 11_190_464),
    (34, 1, "cifar"): (21_281_216, 21_298_368),
    (50, 1, "cifar"): (23_500_352, 23_553_472),
    (50, 1, "imagenet"): (23_508_032, 23_561_152),
    (50, 2, "imagenet"): (93_907_072, 94_013_312),
    (101, 1, "imagenet"): (42_500_160, 42_605_504),
}


def shapes(model, size=32, batch=2):
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    init = functools.partial(model.init, train=True)
    return jax.eval_shape(init, jax.random.key(0), images)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("depth, width, stem", COUNTS)
def test_parameter_counts_are_the_official_ones(depth, width, stem):
    variables = shapes(ResNet(depth, width, stem, norm=BatchNorm))
    assert (count(variables["params"]), count(variables)) == COUNTS[depth, width, stem]


@pytest.mark.parametrize(
    "depth, width, stem, size, sides, dim",
    [
        (10, 1, "cifar", 32, (32, 32, 32, 16, 8, 4), 512),
        (18, 0.25, "imagenet", 224, (112, 56, 56, 28, 14, 7), 128),
        (50, 0.125, "imagenet", 47, (24, 12, 12, 6, 3, 2), 256),
        (50, 2, "cifar", 32, (32, 32, 32, 16, 8, 4), 4096),
    ],
)
def test_end_points(depth, width, stem, size, sides, dim):
    model = ResNet(depth, width, stem, norm=BatchNorm, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    init = functools.partial(model.init_with_output, train=True)
    ends, variables = jax.eval_shape(init, jax.random.key(0), images)
    h = ends.pop("h")
    assert (h.shape, h.dtype) == ((2, dim), jnp.float32)
    names = ["initial_conv", "initial_max_pool", *(f"block_group{g}" for g in range(1, 5))]
    assert set(ends) == set(names)
    assert tuple(ends[name].shape[1] for name in names) == sides
    assert {end.dtype for end in ends.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_selective_kernels_mix_two_streams_with_weights_that_sum_to_one():
    """Spelt out in NumPy for one pixel, where a 3x3 convolution is a matrix."""
    features, random = 2, np.random.default_rng(0)
    module = SelectiveKernel(features, 1, 0.0, Conv, BatchNorm)
    x = random.normal(size=(1, 1, 1, 3)).astype(np.float32)
    variables = module.init(jax.random.key(0), x, False)
    p = jax.tree.map(np.asarray, variables["params"])
    assert p["squeeze"]["conv"]["kernel"].shape == (1, 1, 2, 32)  # at least 32 channels

    def relu(v):
        return np.maximum(v, 0)

    norm = 1 / np.sqrt(1 + 1e-5)  # in inference mode, of mean 0 and variance 1
    streams = relu(norm * x[0, 0, 0] @ p["conv"]["conv"]["kernel"][1, 1]).reshape(2, features)
    squeezed = relu(norm * streams.sum(0) @ p["squeeze"]["conv"]["kernel"][0, 0])
    logits = (squeezed @ p["excite"]["conv"]["kernel"][0, 0]).reshape(2, features)
    weights = np.exp(logits) / np.exp(logits).sum(0)
    found = module.apply(variables, x, False)
    np.testing.assert_allclose(found[0, 0, 0], (weights * streams).sum(0), rtol=1e-5)


def test_weights_of_the_streams_sum_to_one_in_bfloat16_too():
    """Equal streams must come out as they are, however they are mixed."""
    conv = functools.partial(Conv, dtype=jnp.bfloat16)
    module = SelectiveKernel(8, 1, 0.0, conv, BatchNorm)
    x = jax.random.normal(jax.random.key(1), (4, 5, 5, 3), jnp.bfloat16)
    variables = module.init(jax.random.key(0), x, False)
    kernel = variables["params"]["conv"]["conv"]["kernel"]
    variables["params"]["conv"]["conv"]["kernel"] = kernel.at[..., 8:].set(kernel[..., :8])
    stream = nn.relu(conv(16, 3, 1).apply({"params": variables["params"]["conv"]}, x)[..., :8])
    found = module.apply(variables, x, False)
    assert found.dtype == jnp.bfloat16
    wanted = np.asarray(stream, np.float32) / np.sqrt(1 + 1e-5)
    # One rounding in the normalisation and one at the end.
    np.testing.assert_allclose(np.asarray(found, np.float32), wanted, rtol=2**-8)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_selective_kernels_start_with_statistics_of_each_device(stem):
    """Their squeezed vectors have one row for each image: n/(n-1) of one image is not a number."""
    norm = functools.partial(BatchNorm, groups=0, unbiased_moving=True)
    model = ResNet(50, 1 / 16, stem, norm=norm, sk_ratio=0.0625, se_ratio=0.25)
    assert shapes(model, batch=1)["batch_stats"]


@pytest.mark.x64
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("remat", [False, True])
def test_images_of_a_group_are_encoded_as_if_they_were_the_batch(monkeypatch, stem, remat):
    monkeypatch.setitem(resnet.ARCHITECTURES, 14, (True, (1, 1, 0, 0)))
    group = np.array([0, 2, 1, 1, 2, 0, 0, 2, 1])
    images = np.random.default_rng(0).uniform(size=(len(group), 16, 16, 3))

    def encode(images, groups, group=None):
        norm = functools.partial(BatchNorm, groups=groups, param_dtype=jnp.float64)
        model = ResNet(14, 1 / 16, stem, norm, 0.25, 0.25, param_dtype=jnp.float64, remat=remat)
        init = functools.partial(model.init, train=True)
        shapes, random = jax.eval_shape(init, jax.random.key(0), images), np.random.default_rng(1)
        # Initial values would hide residual branches, whose last scale starts at 0.
        variables = jax.tree.map(lambda leaf: 0.3 * random.normal(size=leaf.shape) + 0.3, shapes)
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        ends, moved = jax.jit(apply)(variables, images, group=group)
        return ends["h"], moved

    h, moved = encode(images, 3, group)
    alone = [encode(images[group == g], 1) for g in range(3)]
    for g, (want, _) in enumerate(alone):
        np.testing.assert_allclose(h[group == g], want, rtol=1e-10)
    averages = jax.tree.map(lambda *each: np.mean(each, 0), *(moved for _, moved in alone))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), moved, averages)


MODEL = ResNet(depth=10, width=0.25, stem="cifar", norm=BatchNorm)


@pytest.fixture(scope="module")
def initial():
    """Return initial variables of a small encoder."""
    return jax.jit(functools.partial(MODEL.init, train=True))(
        jax.random.key(0), jnp.zeros((2, 16, 16, 3))
    )


def test_a_row_ignores_the_others_in_evaluation_and_not_in_training(initial):
    images = jax.random.uniform(jax.random.key(1), (4, 16, 16, 3), jnp.float32)
    others = images.at[1:].set(jax.random.uniform(jax.random.key(2), (3, 16, 16, 3), jnp.float32))

    @jax.jit
    def first_rows(images):
        trained, _ = MODEL.apply(initial, images, True, mutable=["batch_stats"])
        return MODEL.apply(initial, images, False)["h"][0], trained["h"][0]

    (alone, together), (alone2, together2) = first_rows(images), first_rows(others)
    np.testing.assert_allclose(alone, alone2, rtol=1e-6)
    assert np.max(np.abs(together - together2)) > 1e-3 * np.max(np.abs(together))


def test_initial_kernels_have_unit_gain_and_end_at_two_deviations(initial):
    kernels = {p: x for p, x in flatten_dict(initial["params"]).items() if p[-1] == "kernel"}
    assert len(kernels) == 1 + 4 * 3
    for path, kernel in kernels.items():
        deviation = math.prod(kernel.shape[:-1]) ** -0.5
        error = abs(float(np.std(kernel)) / deviation - 1)
        assert error < 5 / math.sqrt(2 * kernel.size), path
        # 0.8796 is the deviation of a standard normal cut at 2.
        assert np.max(np.abs(kernel)) <= 2 * deviation / 0.8796 * (1 + 1e-5), path


def test_residual_branches_start_at_zero(initial):
    scales = {p: x for p, x in flatten_dict(initial["params"]).items() if p[-1] == "scale"}
    for path, scale in scales.items():
        last = path[-2] == "bn2"
        np.testing.assert_array_equal(scale, np.zeros_like(scale) if last else np.ones_like(scale))
    biases = [x for p, x in flatten_dict(initial["params"]).items() if p[-1] == "bias"]
    assert len(biases) == len(scales) and not any(np.any(bias) for bias in biases)
