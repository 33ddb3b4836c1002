"""Batch normalisation against a plain one, and over eight devices against one."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from simclr_jax import parallel
from simclr_jax.models.normalization import BatchNorm, batch_normalize, moments

EPSILON = 1e-3
DEVICES = 8


def plain(x, scale, bias):
    """Normalise as the definition says, to be differentiated automatically."""
    axes = tuple(range(x.ndim - 1))
    mean, variance = jnp.mean(x, axes), jnp.var(x, axes)
    y = (x - mean) / jnp.sqrt(variance + EPSILON)
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


def draw(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    c = shape[-1]
    x, dy = rng.normal(2, 3, shape), rng.normal(size=shape)
    return [jnp.asarray(a, dtype) for a in (x, rng.normal(size=c), rng.normal(size=c), dy)]


def sorted_by_shard(dtype):
    """Draw rows whose mean and spread differ from shard to shard, as in a class-sorted batch."""
    x, *rest = draw((4 * DEVICES, 3, 3, 5), dtype)
    shard = jnp.arange(4 * DEVICES)[:, None, None, None] // 4
    return [x * (1 + shard) + 10 * shard, *rest]


@pytest.mark.x64
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2, 5)])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_own_backward_is_the_derivative_of_the_definition(shape, center, scaled):
    x, scale, bias, dy = draw(shape, jnp.float64)
    scale, bias = scale if scaled else None, bias if center else None

    def own(x, scale, bias):
        return batch_normalize(x, scale, bias, EPSILON)[0]

    both_ways(own, plain, x, scale, bias, dy)


def both_ways(found, want, *arguments):
    """Check that two functions of all arguments but the last, its cotangent, are the same."""

    @functools.partial(jax.jit, static_argnums=0)
    def passed(function, *arguments):
        y, pull = jax.vjp(function, *arguments[:-1])
        return y, pull(arguments[-1])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13),
        passed(found, *arguments),
        passed(want, *arguments),
    )


@pytest.mark.x64
@pytest.mark.parametrize("plain", [False, True])
def test_eight_devices_normalise_and_differentiate_as_one(plain):
    x, scale, bias, dy = sorted_by_shard(jnp.float64)
    if plain:
        scale = bias = None

    def forward_backward(axis_name, x, scale, bias, dy):
        def loss(x, scale, bias):
            y, mean, variance = batch_normalize(x, scale, bias, EPSILON, axis_name)
            return jnp.sum(y * dy), (y, mean, variance)

        if axis_name:  # as the training step does, so that parameter gradients stay local
            scale, bias = lax.pcast((scale, bias), axis_name, to="varying")
        (d_x, *d_params), (y, *stats) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
        if axis_name:
            d_params = lax.psum(d_params, axis_name)
        return (y, d_x), (stats, d_params)

    P = jax.P
    sharded = jax.shard_map(
        functools.partial(forward_backward, parallel.AXIS),
        mesh=parallel.make_mesh(DEVICES),
        in_specs=(P(parallel.AXIS), P(), P(), P(parallel.AXIS)),
        out_specs=(P(parallel.AXIS), P()),
    )
    one = jax.jit(functools.partial(forward_backward, None))(x, scale, bias, dy)
    many = jax.jit(sharded)(x, scale, bias, dy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), one, many)


def apply_sharded(module, x):
    """Return output and new statistics of a training pass with the batch spread over devices."""
    P = jax.P
    variables = module.init(jax.random.key(0), x, True)

    def local(variables, x):
        params = lax.pcast(variables["params"], parallel.AXIS, to="varying")
        stats = variables["batch_stats"]
        y, moved = module.apply(
            {"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"]
        )
        return y, moved["batch_stats"]

    return jax.jit(
        jax.shard_map(
            local,
            mesh=parallel.make_mesh(DEVICES),
            in_specs=(P(), P(parallel.AXIS)),
            out_specs=(P(parallel.AXIS), P()),
        )
    )(variables, x)


@pytest.mark.x64
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("groups", [0, 1])
def test_moving_averages_over_eight_devices(groups, unbiased):
    x = np.asarray(sorted_by_shard(jnp.float64)[0])
    parts = x.reshape(groups or DEVICES, -1, x.shape[-1])  # [part, rows, c]
    module = BatchNorm(
        momentum=0.7,
        epsilon=EPSILON,
        axis_name=parallel.AXIS,
        groups=groups,
        unbiased_moving=unbiased,
        param_dtype=jnp.float64,
    )
    y, moved = apply_sharded(module, jnp.asarray(x))
    mean, variance = parts.mean(1, keepdims=True), parts.var(1, keepdims=True)
    want = (parts - mean) / np.sqrt(variance + EPSILON)
    np.testing.assert_allclose(y, want.reshape(x.shape), rtol=1e-11, atol=1e-11)
    # The rows that the variance was taken over: TensorFlow's fused kernel never synchronises.
    rows = parts.shape[1]
    correction = rows / (rows - 1) if unbiased else 1.0
    np.testing.assert_allclose(moved["mean"], 0.3 * mean.mean((0, 1)), rtol=1e-12)
    expected = 0.7 + 0.3 * correction * variance.mean((0, 1))
    np.testing.assert_allclose(moved["var"], expected, rtol=1e-12)


def distant(kind):
    """Return float32 images `[64, 5, 5, 6]`, far from zero, from device to device, or a few."""
    x = np.random.default_rng(0).normal(size=(64, 5, 5, 6)).astype(np.float32)
    row = np.arange(64, dtype=np.float32)[:, None, None, None]
    if kind == "devices":
        return x + 1000 * (row // (64 // DEVICES))
    if kind == "outliers":  # just where one would look for what is usual
        x[8::16, 0::1, 0::1] += 1000
        return x
    return x + np.float32({"thousand": 1000, "negative": -3000, "none": 0}[kind])


@pytest.mark.parametrize("devices", [1, DEVICES])
@pytest.mark.parametrize("kind", ["thousand", "negative", "none", "devices", "outliers"])
def test_moments_of_a_large_mean_do_not_cancel(kind, devices):
    x = distant(kind)
    P = jax.P
    over_devices = jax.shard_map(
        functools.partial(moments, axis_name=parallel.AXIS),
        mesh=parallel.make_mesh(devices),
        in_specs=P(parallel.AXIS),
        out_specs=P(),
    )
    mean, variance = jax.jit(over_devices)(x)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(variance, wide.var((0, 1, 2)), rtol=2e-5)
    unit = np.spacing(np.abs(np.asarray(mean)))  # of a float32 of that size
    allowed = 2 * unit + 1e-6 * wide.std((0, 1, 2))
    assert np.all(np.abs(mean - wide.mean((0, 1, 2))) <= allowed)


@pytest.mark.parametrize("devices", [1, DEVICES])
@pytest.mark.parametrize("mean", [0.0, 1.0, 30.0, -1000.0])
def test_moments_of_bfloat16_lose_less_than_its_rounding_adds(mean, devices):
    exact = np.random.default_rng(0).normal(mean, 1, size=(64, 5, 5, 6))
    x = jnp.asarray(exact, jnp.bfloat16)
    P = jax.P
    over_devices = jax.shard_map(
        functools.partial(moments, axis_name=parallel.AXIS),
        mesh=parallel.make_mesh(devices),
        in_specs=P(parallel.AXIS),
        out_specs=P(),
    )
    found = jax.jit(over_devices)(x)
    assert {leaf.dtype for leaf in found} == {jnp.dtype("float32")}
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(found[0], wide.mean((0, 1, 2)), rtol=1e-6, atol=1e-7)
    allowed = 2**-18 * mean**2 + 2e-6 * wide.var((0, 1, 2))
    assert np.all(np.abs(found[1] - wide.var((0, 1, 2))) <= allowed)


def test_a_channel_that_is_constant_has_no_variance():
    """In the first step a channel may be, and its variance must not be rounding of either sign."""
    mean, variance = moments(jnp.full((64, 5, 5, 2), 0.1))
    np.testing.assert_array_equal(variance, 0)
    np.testing.assert_allclose(mean, 0.1, rtol=1e-6)


def test_one_exchange_a_layer_and_direction():
    x, scale, bias, dy = draw((2 * DEVICES, 3, 3, 4), jnp.float32)
    P = jax.P

    def local(x, dy):
        own = lax.pcast((scale, bias), parallel.AXIS, to="varying")
        y, pull = jax.vjp(lambda x: batch_normalize(x, *own, EPSILON, parallel.AXIS)[0], x)
        return y, pull(dy)[0]

    sharded = jax.shard_map(
        local,
        mesh=parallel.make_mesh(DEVICES),
        in_specs=P(parallel.AXIS),
        out_specs=P(parallel.AXIS),
    )
    text = jax.jit(sharded).lower(x, dy).compile().as_text()
    exchanges = re.findall(r" (all-reduce|all-gather|reduce-scatter|all-to-all)(?:-start)?\(", text)
    assert len(exchanges) == 2, exchanges


def test_bfloat16_keeps_only_the_input_and_vectors_for_the_backward_pass():
    x, scale, bias, _ = draw((16, 4, 4, 8), jnp.float32)
    x = x.astype(jnp.bfloat16)

    def residuals(x, scale, bias):
        return jax.vjp(lambda *a: batch_normalize(*a, EPSILON)[0], x, scale, bias)[1]

    kept = jax.tree.leaves(jax.eval_shape(residuals, x, scale, bias))
    large = [leaf for leaf in kept if leaf.size >= x.size]
    assert [leaf.dtype for leaf in large] == [jnp.bfloat16]
    assert all(leaf.shape == (8,) for leaf in kept if leaf.size < x.size)


def test_bfloat16_reduces_in_float32():
    x, scale, bias, _ = draw((4096, 2), jnp.float32)
    x = x.astype(jnp.bfloat16)
    y, mean, variance = batch_normalize(x, scale, bias, EPSILON)
    assert (y.dtype, mean.dtype, variance.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(variance, np.asarray(x, np.float64).var(0), rtol=1e-5)


def test_evaluation_uses_the_moving_averages_and_leaves_them():
    x, *_ = draw((6, 5), jnp.float32)
    module = BatchNorm(epsilon=EPSILON)
    variables = module.init(jax.random.key(0), x, True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(5))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(5))
    stats = {"mean": jnp.arange(5.0), "var": jnp.arange(1.0, 6.0)}
    variables = {"params": variables["params"], "batch_stats": stats}
    y, after = module.apply(variables, x, False, mutable=["batch_stats"])
    np.testing.assert_allclose(
        y, (x - stats["mean"]) / np.sqrt(stats["var"] + EPSILON), rtol=1e-5, atol=1e-6
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, after["batch_stats"], stats))
