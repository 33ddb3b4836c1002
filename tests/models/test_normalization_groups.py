"""Batch normalisation by groups against NumPy, and on any number of devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from models.test_normalization import DEVICES, EPSILON, both_ways, draw, plain

from simclr_jax import parallel
from simclr_jax.models.normalization import BatchNorm, group_moments, group_normalize

SCALE, BIAS = np.array([0.5, -2.0, 3.0]), np.array([1.0, 0.0, -4.0])
MOVING = {"mean": np.array([1.0, 2.0, 3.0]), "var": np.array([3.0, 2.0, 1.0])}
KEEP = 0.7  # share of the moving averages


def trained(devices, groups, x, dy, group, unbiased=False):
    """Return everything that a training pass over `x` `[views, N, ..., c]` gives.

    On each device its images' first views lie before the second ones, as in a training step.
    """
    P, dtype = jax.P, x.dtype
    module = BatchNorm(KEEP, EPSILON, parallel.AXIS, groups, unbiased, param_dtype=dtype)
    params = {"scale": jnp.asarray(SCALE, dtype), "bias": jnp.asarray(BIAS, dtype)}
    stats = jax.tree.map(lambda a: jnp.asarray(a, dtype), MOVING)

    def local(params, stats, x, dy, group):
        def loss(params, x):
            rows = x.reshape(-1, *x.shape[2:])
            variables = {"params": params, "batch_stats": stats}
            y, moved = module.apply(
                variables, rows, True, jnp.tile(group, len(x)), mutable=["batch_stats"]
            )
            y = y.reshape(x.shape)
            return jnp.sum(y * dy), (y, moved["batch_stats"])

        params = lax.pcast(params, parallel.AXIS, to="varying")
        (d_params, d_x), (y, moved) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        return {"y": y, "d_x": d_x}, moved | lax.psum(d_params, parallel.AXIS)

    by_image = P(None, parallel.AXIS)
    sharded = jax.shard_map(
        local,
        mesh=parallel.make_mesh(devices),
        in_specs=(P(), P(), by_image, by_image, P(parallel.AXIS)),
        out_specs=(by_image, P()),
    )
    of_rows, of_channels = jax.jit(sharded)(params, stats, x, dy, jnp.asarray(group, jnp.int32))
    return jax.tree.map(np.asarray, of_rows | of_channels)


def closed_form(x, dy, group, unbiased=False):
    """Return what `trained` should, written out in NumPy for each group."""
    y, d_x = np.empty_like(x), np.empty_like(x)
    d_scale, d_bias, means, variances = np.zeros(3), np.zeros(3), [], []
    for g in np.unique(group):
        part, d_part = x[:, group == g], dy[:, group == g]
        axes = tuple(range(part.ndim - 1))
        n = part.size // part.shape[-1]
        mean, variance = part.mean(axes), part.var(axes)
        deviation = np.sqrt(variance + EPSILON)
        normalized = (part - mean) / deviation
        y[:, group == g] = normalized * SCALE + BIAS
        along = (d_part * normalized).mean(axes)
        d_x[:, group == g] = (d_part - d_part.mean(axes) - normalized * along) * SCALE / deviation
        d_scale, d_bias = d_scale + n * along, d_bias + d_part.sum(axes)
        means.append(mean)
        variances.append(variance * n / (n - 1) if unbiased else variance)
    mean = KEEP * MOVING["mean"] + (1 - KEEP) * np.mean(means, 0)
    var = KEEP * MOVING["var"] + (1 - KEEP) * np.mean(variances, 0)
    return {"y": y, "d_x": d_x, "mean": mean, "var": var, "scale": d_scale, "bias": d_bias}


def images(n, groups, views=1, dtype=np.float64, permuted=False):
    """Draw `x`, `dy` `[views, n, 2, 2, 3]` and the group of each image; groups differ widely."""
    random = np.random.default_rng(0)
    group = np.arange(n) % groups
    group = random.permutation(group) if permuted else group
    spread = (1 + group)[:, None, None, None]
    x = spread * random.normal(3, 1, (views, n, 2, 2, 3)) + 10 * spread
    return x.astype(dtype), random.normal(size=x.shape).astype(dtype), group


def assert_same(found, want, error):
    """Compare, relative to the largest number of each array."""
    assert found.keys() == want.keys()
    for name, wanted in want.items():
        limit = error * np.max(np.abs(wanted))
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=limit, err_msg=name)


@pytest.mark.x64
@pytest.mark.parametrize(
    "n, groups, views, permuted, unbiased",
    [
        (16, 8, 1, False, False),
        (24, 8, 2, False, True),  # 3 images a device, of 3 of the groups
        (24, 6, 1, False, False),  # and groups that are no multiple of the devices
        (24, 6, 2, True, False),
        (24, 4, 2, True, True),
        (24, 12, 1, True, True),  # more groups than devices, of 2 images
    ],
)
def test_groups_are_normalised_alike_on_any_number_of_devices(n, groups, views, permuted, unbiased):
    x, dy, group = images(n, groups, views, permuted=permuted)
    want = closed_form(x, dy, group, unbiased)
    one, many = (trained(devices, groups, x, dy, group, unbiased) for devices in (1, DEVICES))
    assert_same(one, want, 1e-12)
    assert_same(many, want, 1e-12)
    assert_same(many, one, 1e-12)


@pytest.mark.x64
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("views", [1, 2])
def test_groups_on_one_device_are_devices_that_normalise_alone(views, unbiased):
    x, dy, group = images(24, DEVICES, views)
    order = np.argsort(group, kind="stable")  # images of group d are those of device d
    alone = trained(DEVICES, 0, x[:, order], dy[:, order], group, unbiased)
    for name in ("y", "d_x"):
        alone[name] = alone[name][:, np.argsort(order)]
    assert_same(trained(1, DEVICES, x, dy, group, unbiased), alone, 1e-12)


@pytest.mark.x64
def test_groups_of_different_sizes_weigh_the_same_in_the_moving_averages():
    x, dy, group = images(16, 2)
    group[:6] = 0
    want = closed_form(x, dy, group, unbiased=True)
    assert_same(trained(DEVICES, 2, x, dy, group, unbiased=True), want, 1e-12)


@pytest.mark.x64
def test_a_group_without_rows_moves_no_average():
    x, dy, group = images(16, 3)
    group[group == 1] = 2
    assert_same(trained(DEVICES, 3, x, dy, group), closed_form(x, dy, group), 1e-12)


@pytest.mark.x64
@pytest.mark.parametrize("shape", [(12, 5), (12, 3, 2, 5)])
@pytest.mark.parametrize("center", [True, False])
def test_backward_of_groups_is_the_derivative_of_the_definition(shape, center):
    x, scale, bias, dy = draw(shape, jnp.float64)
    bias = bias if center else None
    group = np.array([0, 2, 1, 1, 2, 0, 0, 0, 2, 1, 0, 2])

    def own(x, scale, bias):
        return group_normalize(x, jnp.asarray(group), scale, bias, 3, EPSILON)[0]

    def definition(x, scale, bias):
        parts = jnp.concatenate([plain(x[group == g], scale, bias) for g in range(3)])
        return parts[np.argsort(np.argsort(group, kind="stable"))]

    both_ways(own, definition, x, scale, bias, dy)


@pytest.mark.x64
def test_no_row_is_seen_by_another_group():
    x, dy, group = images(24, 3, views=2)
    other = x.copy()
    other[0, 4] += 7.0
    found, changed = (trained(DEVICES, 3, a, dy, group) for a in (x, other))
    alike = group != group[4]
    for name in ("y", "d_x"):
        np.testing.assert_array_equal(found[name][:, alike], changed[name][:, alike])
        assert np.all(found[name][:, ~alike] != changed[name][:, ~alike])


@pytest.mark.parametrize("devices", [1, DEVICES])
def test_groups_with_large_and_distant_means_do_not_cancel(devices):
    x, dy, group = images(512, 8, dtype=np.float32)
    x += 1000 * np.float32(1 + group)[:, None, None, None]  # a thousand deviations
    want = closed_form(*(a.astype(np.float64) for a in (x, dy)), group)
    found = trained(devices, 8, x, dy, group)
    # A number near 1000 deviations is known to 3e-5 of one, a mean to some times that.
    np.testing.assert_allclose(found["y"], want["y"], atol=2e-4 * np.max(np.abs(SCALE)))
    np.testing.assert_allclose(found["var"], want["var"], rtol=1e-5)
    np.testing.assert_allclose(found["mean"], want["mean"], rtol=1e-6)


def test_groups_keep_only_the_input_and_vectors_for_the_backward_pass():
    x, scale, bias, _ = draw((16, 4, 4, 8), jnp.float32)
    x, group = x.astype(jnp.bfloat16), jnp.arange(16) % 2

    def residuals(x, scale, bias):
        return jax.vjp(
            lambda *a: group_normalize(a[0], group, *a[1:], 2, EPSILON)[0], x, scale, bias
        )

    y, vjp = residuals(x, scale, bias)
    assert y.dtype == jnp.bfloat16
    kept = jax.tree.leaves(vjp)
    assert [leaf.dtype for leaf in kept if leaf.size >= x.size] == [jnp.bfloat16]
    small = {(leaf.shape, str(leaf.dtype)) for leaf in kept if leaf.size < x.size}
    floats = {((8,), "float32"), ((2, 8), "float32"), ((2,), "float32")}
    assert small == floats | {((16,), "int32")}


def test_bfloat16_groups_reduce_in_float32():
    x = draw((4096, 2), jnp.float32)[0].astype(jnp.bfloat16)
    mean, variance, count = group_moments(x, jnp.arange(4096) % 2, 2)
    wide = np.asarray(x, np.float64).reshape(-1, 2, 2)
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, wide.var(0), rtol=1e-5)
    np.testing.assert_array_equal(count, [2048, 2048])


@pytest.mark.parametrize("groups", [0, 1, 4])
def test_who_needs_the_group_of_each_row(groups):
    x = draw((8, 5), jnp.float32)[0]
    module = BatchNorm(groups=groups)
    variables = module.init(jax.random.key(0), x, True)  # in no need of it

    def apply(train, *group):
        return module.apply(variables, x, train, *group, mutable=["batch_stats"])[0]

    group = jnp.arange(8) % 4
    np.testing.assert_array_equal(apply(False), apply(False, group))
    if groups < 2:
        np.testing.assert_array_equal(apply(True), apply(True, group))
        return
    with pytest.raises(ValueError, match=r"groups=4\) in train mode lacks `group`.* 8 rows"):
        apply(True)
    with pytest.raises(ValueError, match=r"groups=4\): `group` has shape \(4,\), but x 8 rows"):
        apply(True, group[:4])


@pytest.mark.x64
def test_groups_without_scale_and_bias_are_those_of_scale_1_and_bias_0():
    x, dy, group = images(24, 4, permuted=True)
    x, dy, one = jnp.asarray(x[0]), jnp.asarray(dy[0]), jnp.ones(3)

    @jax.jit
    def normalised(scale, bias):
        y, vjp = jax.vjp(lambda x: group_normalize(x, group, scale, bias, 4, EPSILON)[0], x)
        return y, *vjp(dy)

    for found, want in zip(normalised(None, None), normalised(one, 0 * one), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-13, atol=1e-13)
    plain = BatchNorm(epsilon=EPSILON, groups=4, center=False, scaled=False)
    variables = plain.init(jax.random.key(0), x, True)
    assert variables.keys() == {"batch_stats"}
    apply = jax.jit(functools.partial(plain.apply, train=True, mutable=["batch_stats"]))
    y, _ = apply(variables, x, group=jnp.asarray(group))
    np.testing.assert_allclose(y, normalised(one, 0 * one)[0], rtol=1e-13, atol=1e-13)
