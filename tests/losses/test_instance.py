"""The losses of instance discrimination against NumPy, over eight devices, and in tiles."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from losses import instances

from simclr_jax import parallel
from simclr_jax.losses import instance, tiles

KINDS = ("nce", "sampled_softmax", "softmax")
N, DIM, DRAWN, IMAGES, T = 29, 6, 5, 16, 0.3
Z = 40.0
P = jax.P
# By rows: images, their numbers, draws.
SPLIT = {"in_specs": (P(parallel.AXIS), P(), P(parallel.AXIS), P(parallel.AXIS))}


@pytest.fixture(scope="module")
def given():
    """Return embeddings, a bank, numbers of images of which one is there twice, and draws."""
    random = np.random.default_rng(0)
    x = random.normal(size=(IMAGES, DIM))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    bank, example = random.uniform(-0.9, 0.9, (N, DIM)), random.permutation(N)[:IMAGES]
    example[-1] = example[2]
    bank[example[:9]] += 2 * x[:9]
    return x, bank, example, random.integers(N, size=(IMAGES, DRAWN))


def loss(kind, x, bank, example, sampled, **how):
    """Return loss and metrics of a kind."""
    how = {"temperature": T} | how
    if kind == "nce":
        how = {"log_partition": math.log(Z)} | how
    drawn = () if kind == "softmax" else (sampled,)
    return getattr(instance, kind)(x, bank, example, *drawn, **how)


@functools.partial(jax.jit, static_argnames=("kind", "temperature"))
def value(kind, *given, **how):
    return loss(kind, *given, **how)[0]


def slopes(kind, *given, **how):
    """Return loss and metrics, and the gradients with respect to embeddings and bank."""
    function = functools.partial(loss, kind, **how)
    return jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True))(*given)


def in_small_tiles(monkeypatch, rows):
    monkeypatch.setattr(tiles, "WHOLE", 0)
    monkeypatch.setattr(tiles, "TILE", rows * (DRAWN + 1) * DIM * 8)


@pytest.mark.x64
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_value_gradient_and_accuracy_are_those_written_out(kind, tiled, given, monkeypatch):
    if tiled:  # of some images, and the rest
        in_small_tiles(monkeypatch, 3)
    (found, metrics), (d_x, d_bank) = slopes(kind, *given)
    want, gradient, accuracy = instances.loss(kind, *given, T, Z)
    assert 0 < accuracy < 1
    np.testing.assert_allclose(found, want, rtol=1e-13)
    np.testing.assert_allclose(metrics["instance_accuracy"], accuracy, rtol=1e-13)
    np.testing.assert_allclose(d_x, gradient, rtol=1e-11, atol=1e-14)
    assert not np.any(d_bank)


@pytest.mark.x64
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_eight_devices_are_the_whole(kind, tiled, given, monkeypatch):
    want = slopes(kind, *given)
    if tiled:  # of one image of the two that a device has
        in_small_tiles(monkeypatch, 1)

    def local(x, *others):
        share = functools.partial(loss, kind, axis_name=parallel.AXIS)
        found, slope = jax.value_and_grad(share, has_aux=True)(x, *others)
        return lax.psum(found, parallel.AXIS), slope

    mesh = parallel.make_mesh(8)
    split = jax.shard_map(local, mesh=mesh, **SPLIT, out_specs=(P(), P(parallel.AXIS)))
    (found, metrics), slope = jax.jit(split)(*given)
    np.testing.assert_allclose(found, want[0][0], rtol=1e-12)
    np.testing.assert_allclose(metrics["instance_accuracy"], want[0][1]["instance_accuracy"])
    np.testing.assert_allclose(slope, want[1][0], rtol=1e-12, atol=1e-15)


@pytest.mark.x64
def test_the_partition_is_that_of_the_whole_batch_on_any_devices(given):
    x, bank, example, sampled = given
    want = instances.partition(x, bank, example, sampled, T)
    of = functools.partial(instance.log_partition, temperature=T)
    np.testing.assert_allclose(np.exp(jax.jit(of)(*given)), want, rtol=1e-13)
    split = jax.shard_map(
        functools.partial(of, axis_name=parallel.AXIS),
        mesh=parallel.make_mesh(8),
        **SPLIT,
        out_specs=P(),  # the same on every device
    )
    np.testing.assert_allclose(np.exp(jax.jit(split)(*given)), want, rtol=1e-13)
    slope = jax.grad(lambda x: of(x, bank, example, sampled))(x)
    assert not np.any(slope)


@pytest.mark.x64
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_of_an_image_that_is_there_twice_the_last_is_written(momentum, given):
    x, bank, example, _ = given
    example = np.array(example)
    example[[0, 5, 9]] = example[3]  # the last of these is 9
    found = jax.jit(functools.partial(instance.moved, momentum=momentum))(bank, x, example)
    np.testing.assert_allclose(
        found, instances.moved(bank, x, example, momentum), rtol=1e-13, atol=1e-15
    )
    untouched = np.setdiff1d(np.arange(N), example)
    np.testing.assert_array_equal(found[untouched], bank[untouched])


def test_a_low_temperature_does_not_overflow(given):
    x, bank, example, sampled = (
        np.asarray(a, np.float32) if a.dtype == float else a for a in given
    )
    for kind in KINDS:
        (found, _), (slope, _) = slopes(kind, x, bank, example, sampled, temperature=1e-4)
        assert np.isfinite(found) and np.all(np.isfinite(slope)), kind
    log_z = jax.jit(functools.partial(instance.log_partition, temperature=1e-4))(
        x, bank, example, sampled
    )
    scores = np.einsum("nd,ncd->nc", x, bank[np.c_[example, sampled]]) / 1e-4
    want = scores.max() - math.log(scores.size) + math.log(N)
    np.testing.assert_allclose(log_z, want, rtol=1e-5)


def test_equal_rows_cost_the_logarithm_of_the_choices():
    x, bank = jnp.ones((4, 3)) / math.sqrt(3), jnp.ones((N, 3)) / math.sqrt(3)
    example, sampled = jnp.arange(4), jnp.zeros((4, DRAWN), int)
    assert float(value("softmax", x, bank, example, sampled)) == pytest.approx(math.log(N))
    found = value("sampled_softmax", x, bank, example, sampled)
    assert float(found) == pytest.approx(math.log(DRAWN + 1))
    # Every row as likely as noise: a choice of 1 in K + 1, K times one of K in K + 1.
    log_z = math.log(N) + 1 / T
    found = value("nce", x, bank, example, sampled, log_partition=log_z)
    want = math.log(1 + DRAWN) + DRAWN * math.log(1 + 1 / DRAWN)
    assert float(found) == pytest.approx(want, rel=1e-5)


def test_many_small_terms_of_noise_are_not_lost_in_float32():
    """4096 draws of which each is hardly likely: sums of them must not be sums of rounding."""
    random = np.random.default_rng(1)
    x = random.normal(size=(2, 16)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    bank = random.uniform(-0.4, 0.4, (9000, 16)).astype(np.float32)
    example, sampled = np.arange(2), random.integers(9000, size=(2, 4096))
    found = value("nce", x, bank, example, sampled, log_partition=math.log(1e9))
    wide = [a.astype(float) for a in (x, bank)]
    want = instances.loss("nce", *wide, example, sampled, T, 1e9)[0]
    np.testing.assert_allclose(found, want, rtol=3e-6)
    noise = instances.loss("nce", *wide, example, sampled[:, :1], T, 1e9)[0]
    assert want - noise > 1e-4  # which is there to be seen


def test_bfloat16_is_compared_in_float32(given):
    x, bank, example, sampled = (jnp.asarray(a) for a in given)
    narrow = x.astype(jnp.bfloat16)
    for kind in KINDS:
        found = value(kind, narrow, bank, example, sampled)
        want = value(kind, narrow.astype(jnp.float32), bank, example, sampled)
        assert found.dtype == jnp.float32 and found == want


def test_memory_grows_with_images_and_bank_not_with_their_product():
    """Nor, of draws, with the numbers of all the rows that they fetch."""

    def held(kind, images, size, drawn, dim, at_once=None):
        how = {"at_once": at_once} if kind == "softmax" else {}
        shapes = (images, dim), (size, dim), (images,), (images, drawn)
        dtypes = jnp.float32, jnp.float32, jnp.int32, jnp.int32
        given = map(jax.ShapeDtypeStruct, shapes, dtypes)
        function = jax.grad(lambda *given: loss(kind, *given, **how)[0])
        program = jax.jit(function).lower(*given).compile()
        return program.memory_analysis().temp_size_in_bytes

    whole = 1024 * 20_000 * 4
    assert held("softmax", 1024, 20_000, 1, 8, at_once=1024) > 2 * whole
    assert held("softmax", 1024, 20_000, 1, 8) < whole / 2
    fetched = 256 * 2048 * 64 * 4
    assert held("nce", 256, 1000, 2048, 64) < fetched / 2
