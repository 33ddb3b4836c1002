"""InfoNCE with a queue against its definition, in tiles, on eight devices, and at the edges."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from simclr_jax import parallel
from simclr_jax.losses.queue_contrast import queue_contrast

DEVICES, KEPT, DIM = 8, 21, 6
AT_ONCE = [None, 1, 3]  # of 16 queries: all, each, three and the rest


def draw(seed, rows, unit=False):
    x = np.random.default_rng(seed).normal(size=(rows, DIM))
    return x / np.linalg.norm(x, axis=1, keepdims=True) if unit else x


QUERY, KEY, QUEUE = draw(0, 2 * DEVICES), draw(1, 2 * DEVICES), draw(2, KEPT, unit=True)


def by_hand(query, key, queue, temperature, normalize=True):
    """Return the mean loss, its gradient in the queries, and the share found; row by row."""
    total, found, slopes = 0.0, 0, np.zeros_like(query)
    for i, (q, k) in enumerate(zip(query, key, strict=True)):
        length = np.linalg.norm(q) if normalize else 1.0
        unit, k = q / length, k / (np.linalg.norm(k) if normalize else 1.0)
        candidates = np.stack([k, *queue])
        weights = np.exp(candidates @ unit / temperature)
        share = weights / weights.sum()
        total -= math.log(share[0]) / len(query)
        found += weights[0] > weights[1:].max()
        slope = (share @ candidates - k) / (temperature * len(query))
        slopes[i] = (slope - (slope @ unit) * unit * normalize) / length
    return total, slopes, found / len(query)


@functools.partial(jax.jit, static_argnames=("normalize", "at_once"))
def loss(query, key=KEY, queue=QUEUE, temperature=0.2, **options):
    (found, metrics), slope = jax.value_and_grad(queue_contrast, has_aux=True)(
        query, key, queue, temperature=temperature, **options
    )
    return found, slope, metrics["contrast_accuracy"]


@pytest.mark.x64
@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("at_once", AT_ONCE)
def test_value_gradient_and_share_of_the_definition(temperature, normalize, at_once):
    found = loss(QUERY, temperature=temperature, normalize=normalize, at_once=at_once)
    want = by_hand(QUERY, KEY, QUEUE, temperature, normalize)
    for got, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-14)
    assert 0 < want[2] < 1


@pytest.mark.x64
@pytest.mark.parametrize("at_once", [None, 1])
def test_eight_devices_give_the_value_and_gradient_of_one(at_once):
    P, options = jax.P, {"temperature": 0.2, "axis_name": parallel.AXIS, "at_once": at_once}

    def local(query, key, queue):
        def share(query):
            return queue_contrast(query, key, queue, **options)

        (value, metrics), slope = jax.value_and_grad(share, has_aux=True)(query)
        return lax.psum((value, metrics["contrast_accuracy"]), parallel.AXIS), slope

    rows = P(parallel.AXIS)
    specs = {"in_specs": (rows, rows, P()), "out_specs": (P(), rows)}
    sharded = jax.jit(jax.shard_map(local, mesh=parallel.make_mesh(DEVICES), **specs))
    (value, share), slope = sharded(QUERY, KEY, QUEUE)
    for got, want in zip((value, slope, share), loss(QUERY), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


@pytest.mark.x64
def test_keys_and_queue_carry_no_gradient():
    def value(key, queue):
        return queue_contrast(QUERY, key, queue, temperature=0.2)[0]

    slopes = jax.jit(jax.grad(value, (0, 1)))(KEY, QUEUE)
    assert not any(np.any(slope) for slope in slopes)


@pytest.mark.x64
def test_a_temperature_that_is_learned_has_its_gradient_in_tiles():
    def value(t):
        return queue_contrast(QUERY, KEY, QUEUE, temperature=t, at_once=3)[0]

    slope = jax.jit(jax.grad(value))(0.3)
    ahead, behind = (loss(QUERY, temperature=0.3 + e)[0] for e in (1e-6, -1e-6))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-7)


def test_tiles_hold_no_matrix_of_all_pairs():
    """What the compiled program holds grows with the queue, not with queries times the queue."""

    def held(at_once):
        shapes = [jax.ShapeDtypeStruct((rows, 8), jnp.float32) for rows in (1024, 1024, 4096)]

        def value(query, key, queue):
            return queue_contrast(query, key, queue, temperature=0.2, at_once=at_once)[0]

        compiled = jax.jit(jax.grad(value)).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    matrix = 1024 * 4096 * 4
    assert held(None) > matrix > 10 * held(16)


def test_embeddings_that_are_all_equal_cost_the_logarithm_of_the_choices():
    ones = np.ones((4, DIM), np.float32)
    value = loss(ones, ones, np.full((KEPT, DIM), DIM**-0.5, np.float32))[0]
    assert float(value) == pytest.approx(math.log(KEPT + 1), rel=1e-5)


def test_a_low_temperature_does_not_overflow_and_zeros_stay_finite():
    query = np.float32(QUERY)
    query[3] = 0
    for key in (query, -query):
        value, slope, _ = loss(query, key, np.float32(QUEUE), 1e-3)
        assert np.isfinite(value) and np.all(np.isfinite(slope))


def test_bfloat16_is_reduced_in_float32():
    q, k = jnp.asarray(QUERY, jnp.bfloat16), jnp.asarray(KEY, jnp.bfloat16)
    value, wide = (loss(q.astype(kind), k.astype(kind))[0] for kind in (q.dtype, jnp.float32))
    assert value.dtype == jnp.float32 and float(value) == pytest.approx(float(wide), rel=1e-6)
