"""NT-Xent against a brute-force definition, closed forms, and itself on eight devices."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from simclr_jax import parallel
from simclr_jax.losses import tiles
from simclr_jax.losses.nt_xent import NO_IMAGE, nt_xent
from simclr_jax.losses.unit import l2_normalize

DEVICES = 8
AT_ONCE = [None, 1, 3]  # of five images: all, each, three and the rest


def brute_force(z, temperature, kept=(), negative=None):
    """Return the mean over 2N views of eq. 1, and its gradient with respect to `z` `[2N, d]`.

    Views i and i + N are partners. Written row by row from the paper, without matrix identities.
    Rows of `kept` are more negatives of those images for which `negative` `[N, K]` says so.
    """
    total, d_unit = 0.0, np.zeros_like(z)
    length = np.linalg.norm(z, axis=1, keepdims=True)
    unit = z / length
    rows = len(z)
    for i in range(rows):
        partner = (i + rows // 2) % rows
        others = [k for k in range(rows) if k != i]
        weights = {k: math.exp(unit[i] @ unit[k] / temperature) for k in others}
        more = [row for k, row in enumerate(kept) if negative[i % (rows // 2), k]]
        more_weights = [math.exp(unit[i] @ row / temperature) for row in more]
        everything = sum(weights.values()) + sum(more_weights)
        total -= math.log(weights[partner] / everything) / rows
        for k in others:
            slope = (weights[k] / everything - (k == partner)) / (rows * temperature)
            d_unit[i] += slope * unit[k]
            d_unit[k] += slope * unit[i]
        for weight, row in zip(more_weights, more, strict=True):
            d_unit[i] += weight / everything / (rows * temperature) * row
    along = np.sum(d_unit * unit, axis=1, keepdims=True)
    return total, (d_unit - along * unit) / length


def draw(n, d, dtype, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2 * n, d)), dtype)


@functools.partial(jax.jit, static_argnames=("scale", "normalize", "at_once"))
def loss(z, temperature=0.5, **options):
    n = len(z) // 2
    return nt_xent(z[:n], z[n:], temperature=temperature, **options)


def value(z, **options):
    return loss(z, **options)[0]


def value_and_gradient(z, **options):
    return jax.value_and_grad(lambda z: value(z, **options))(z)


def sharded_gradient(function, z):
    """Return the sum of the local losses and the gradients of every row, over eight devices."""

    def local(z1, z2):
        share, (d_z1, d_z2) = jax.value_and_grad(function, (0, 1))(z1, z2)
        return lax.psum(share, parallel.AXIS), d_z1, d_z2

    P = jax.P
    sharded = jax.shard_map(
        local,
        mesh=parallel.make_mesh(DEVICES),
        in_specs=P(parallel.AXIS),
        out_specs=(P(), P(parallel.AXIS), P(parallel.AXIS)),
    )
    n = len(z) // 2
    total, d_z1, d_z2 = jax.jit(sharded)(z[:n], z[n:])
    return total, np.concatenate([d_z1, d_z2])


@pytest.mark.x64
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("scale, factor", [("mean", 1), ("sum", 2)])
@pytest.mark.parametrize("at_once", AT_ONCE)
def test_value_and_gradient_of_the_definition(temperature, scale, factor, at_once):
    z = draw(5, 7, jnp.float64)
    got, gradient = value_and_gradient(z, temperature=temperature, scale=scale, at_once=at_once)
    want, want_gradient = brute_force(np.asarray(z), temperature)
    np.testing.assert_allclose(got, factor * want, rtol=1e-13)
    np.testing.assert_allclose(gradient, factor * want_gradient, rtol=1e-11, atol=1e-14)
    # The reference's own gradient is by hand: hold it against central differences.
    direction = np.asarray(draw(5, 7, jnp.float64, seed=1))
    ahead, behind = (brute_force(z + e * direction, temperature)[0] for e in (1e-6, -1e-6))
    slope = np.sum(want_gradient * direction)
    np.testing.assert_allclose((ahead - behind) / 2e-6, slope, rtol=1e-7)


@pytest.mark.x64
@pytest.mark.parametrize("at_once", AT_ONCE)
def test_eight_devices_give_the_value_and_gradient_of_one(at_once):
    z = draw(5 * DEVICES, 6, jnp.float64)
    options = {"temperature": 0.2, "axis_name": parallel.AXIS, "at_once": at_once}
    total, gradient = sharded_gradient(lambda z1, z2: nt_xent(z1, z2, **options)[0], z)
    want, want_gradient = value_and_gradient(z, temperature=0.2)
    np.testing.assert_allclose(total, want, rtol=1e-14)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-11, atol=1e-15)


def kept_of(size, images):
    """Return embeddings `[size, 7]` of the images in turn, and the number of each one's image."""
    kept = l2_normalize(jnp.asarray(np.random.default_rng(7).normal(size=(size, 7))))
    return kept, np.arange(size) % images


def gradients_with_memory(z, kept, number, at_once=None):
    """Return the loss and its gradient with respect to `z` and to `kept`."""
    options = {"temperature": 0.5, "scale": "sum", "example": np.arange(len(z) // 2)}
    options["at_once"] = at_once
    return jax.value_and_grad(
        lambda z, kept: value(z, memory=(kept, number), **options), argnums=(0, 1)
    )(z, kept)


@pytest.mark.x64
@pytest.mark.parametrize("at_once", AT_ONCE)
def test_a_memory_adds_negatives_that_do_not_move(at_once):
    z, (kept, number) = draw(5, 7, jnp.float64), kept_of(11, images=5)
    got, (gradient, of_kept) = gradients_with_memory(z, kept, number, at_once)
    negative = number != np.arange(5)[:, None]  # an image is none of its own
    want, want_gradient = brute_force(np.asarray(z), 0.5, np.asarray(kept), negative)
    np.testing.assert_allclose(got, 2 * want, rtol=1e-13)
    np.testing.assert_allclose(gradient, 2 * want_gradient, rtol=1e-11, atol=1e-14)
    np.testing.assert_array_equal(of_kept, 0)
    assert want > brute_force(np.asarray(z), 0.5)[0] + 0.1


@pytest.mark.x64
def test_a_memory_without_negatives_is_none():
    """As one that has just started: all zeros, whose cosine of 0 must not count."""
    z, empty = draw(5, 7, jnp.float64), jnp.zeros((11, 7))
    got, (gradient, _) = gradients_with_memory(z, empty, np.full(11, NO_IMAGE))
    want, want_gradient = value_and_gradient(z, temperature=0.5, scale="sum")
    np.testing.assert_allclose(got, want, rtol=1e-14)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.x64
@pytest.mark.parametrize("at_once", AT_ONCE)
def test_eight_devices_with_a_memory_are_one(at_once):
    z, memory = draw(5 * DEVICES, 7, jnp.float64), kept_of(9, images=2 * DEVICES)
    example = np.arange(5 * DEVICES)

    def share(z1, z2):
        own = lax.dynamic_slice_in_dim(jnp.asarray(example), 5 * lax.axis_index(parallel.AXIS), 5)
        options = {"temperature": 0.2, "memory": memory, "axis_name": parallel.AXIS}
        options["at_once"] = at_once
        return nt_xent(z1, z2, example=own, **options)[0]

    total, gradient = sharded_gradient(share, z)
    want, want_gradient = value_and_gradient(z, temperature=0.2, memory=memory, example=example)
    np.testing.assert_allclose(total, want, rtol=1e-14)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-11, atol=1e-15)


@pytest.mark.x64
def test_without_gradient_through_the_gather_the_result_would_differ(monkeypatch):
    """The comparison above would see it: half of the gradient runs through the gathered copies."""
    z = draw(2 * DEVICES, 6, jnp.float64)
    gather = lax.all_gather
    monkeypatch.setattr(
        lax, "all_gather", lambda *args, **options: lax.stop_gradient(gather(*args, **options))
    )
    total, gradient = sharded_gradient(
        lambda z1, z2: nt_xent(z1, z2, temperature=0.2, axis_name=parallel.AXIS)[0], z
    )
    want, want_gradient = value_and_gradient(z, temperature=0.2)
    np.testing.assert_allclose(total, want, rtol=1e-14)
    error = np.linalg.norm(gradient - want_gradient) / np.linalg.norm(want_gradient)
    assert error > 0.1


@pytest.mark.x64
def test_weights_are_shared_out_over_devices():
    z = draw(DEVICES, 6, jnp.float64)
    weights = jnp.asarray([1.0, 0, 2, 0.5, 0, 0, 3, 1])

    def weighted(z1, z2, weights):
        share = nt_xent(z1, z2, temperature=0.5, weights=weights, axis_name=parallel.AXIS)[0]
        return lax.psum(share, parallel.AXIS)

    P = jax.P
    sharded = jax.shard_map(
        weighted, mesh=parallel.make_mesh(DEVICES), in_specs=P(parallel.AXIS), out_specs=P()
    )
    total = jax.jit(sharded)(z[:DEVICES], z[DEVICES:], weights)
    np.testing.assert_allclose(total, value(z, weights=weights), rtol=1e-14)


@pytest.mark.parametrize("normalize", [True, False])
def test_tiles_say_what_the_whole_says(normalize):
    """Loss, metrics and gradients, with weights and a memory; in tiles of a size that is usual."""
    z, images = draw(70, 8, jnp.float32), np.arange(70)
    weights = jnp.asarray(images % 3, jnp.float32)
    kept, number = kept_of(200, images=70)
    memory = kept[:, :1] * jnp.ones(8), number
    options = {"normalize": normalize, "weights": weights, "memory": memory, "example": images}

    def at_once(rows):
        return jax.value_and_grad(lambda z: loss(z, at_once=rows, **options), has_aux=True)(z)

    for got, want in zip(jax.tree.leaves(at_once(32)), jax.tree.leaves(at_once(70)), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-7)


@pytest.mark.x64
def test_a_temperature_that_is_learned_has_its_gradient_in_tiles():
    z = draw(5, 7, jnp.float64)
    slopes = [
        jax.grad(lambda t, rows=rows: value(z, temperature=t, at_once=rows))(0.3)
        for rows in AT_ONCE
    ]
    ahead, behind = (value(z, temperature=0.3 + e) for e in (1e-6, -1e-6))
    np.testing.assert_allclose(slopes, (ahead - behind) / 2e-6, rtol=1e-8)


def test_tiles_hold_no_matrix_of_all_pairs():
    """What the compiled program holds grows with the number of images, not with its square."""

    def held(n, at_once):
        z = jax.ShapeDtypeStruct((2 * n, 8), jnp.float32)
        one = jax.jit(jax.grad(lambda z: loss(z, at_once=at_once)[0]))
        return one.lower(z).compile().memory_analysis().temp_size_in_bytes

    assert held(1024, at_once=None) > 3 * 1024 * 2048 * 4
    assert held(1024, at_once=16) < 20 * 16 * 2048 * 4


def test_large_batches_are_compared_in_tiles():
    assert tiles.rows_at_once(1024, 2048, jnp.float32) == 1024
    rows = tiles.rows_at_once(16384, 32768, jnp.float32)
    assert rows >= 1 and rows * 32768 * 4 <= tiles.TILE < (rows + 1) * 32768 * 4
    assert tiles.rows_at_once(10**6, 10**9, jnp.float32) == 1


def test_equal_embeddings_cost_the_logarithm_of_the_choices():
    n = 6
    for scale, factor in (("sum", 2), ("mean", 1)):
        got, metrics = loss(jnp.ones((2 * n, 4)), scale=scale, temperature=0.1)
        assert float(got) == pytest.approx(factor * math.log(2 * n - 1), rel=1e-6)
        assert float(metrics["loss_mean"]) == pytest.approx(math.log(2 * n - 1), rel=1e-6)
        assert float(metrics["contrast_entropy"]) == pytest.approx(math.log(n), rel=1e-5)


def test_similarity_to_itself_plays_no_part():
    """Without normalisation a row's product with itself may be any size."""
    z = draw(4, 5, jnp.float32)
    want = value(z, normalize=False)
    # One more dimension in which only row 0 is nonzero changes z_0 . z_0 and no other product.
    longer = jnp.zeros((len(z), 1)).at[0].set(100.0)
    got, gradient = value_and_gradient(jnp.concatenate([z, longer], 1), normalize=False)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(gradient[0, -1], 0, atol=1e-7)


def test_the_order_of_images_and_of_views_is_of_no_account():
    z = draw(8, 5, jnp.float32)
    order = np.random.default_rng(1).permutation(8)
    want = value(z)
    np.testing.assert_allclose(value(z[np.r_[order, 8 + order]]), want, rtol=1e-6)
    np.testing.assert_allclose(value(z[np.r_[8:16, 0:8]]), want, rtol=1e-6)


def test_a_low_temperature_does_not_overflow():
    z = jnp.concatenate([jnp.eye(4, 8), jnp.eye(4, 8)])
    for factor in (1, -1):  # all partners found; all partners opposite
        z = z.at[4:].multiply(factor)
        got, gradient = value_and_gradient(z, temperature=0.01)
        assert np.isfinite(got) and np.all(np.isfinite(gradient))
    # Per view a partner at -1 against six others at 0, divided by the temperature.
    assert float(got) == pytest.approx(2 * (100 + math.log(6)), rel=1e-6)


def test_metrics_see_first_views_against_second_views():
    first = jnp.eye(4)
    second = jnp.eye(4)[jnp.array([0, 1, 3, 2])]  # two of four find their partner
    _, metrics = nt_xent(first, second, temperature=0.1)
    assert float(metrics["contrast_accuracy"]) == 0.5


def test_a_row_of_zeros_stays_zero_and_has_a_finite_gradient():
    z = draw(3, 4, jnp.float32).at[1].set(0.0)
    np.testing.assert_array_equal(l2_normalize(z)[1], np.zeros(4))
    assert np.all(np.isfinite(value_and_gradient(z)[1]))


def test_bfloat16_is_reduced_in_float32():
    z = draw(64, 16, jnp.bfloat16)
    got = value(z, temperature=0.1)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, value(z.astype(jnp.float32), temperature=0.1), rtol=1e-6)
