"""SimSiam's loss against float64 NumPy, and on 8 devices against 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from simclr_jax import parallel
from simclr_jax.losses.simsiam import negative_cosine

ROWS, DIM = 16, 6


def rows(seed):
    return np.random.default_rng(seed).normal(size=(ROWS, DIM))


def by_numpy(p, z):
    return -np.mean((p * z).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(z, axis=1))


def test_it_is_minus_the_mean_cosine():
    p, z = np.float32(rows(0)), np.float32(rows(1))
    found = negative_cosine(p, z)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, by_numpy(np.float64(p), np.float64(z)), rtol=1e-5)
    assert negative_cosine(jnp.bfloat16(p), jnp.bfloat16(z)).dtype == jnp.float32
    np.testing.assert_allclose(negative_cosine(p, 3 * p), -1, rtol=1e-6)


@pytest.mark.x64
def test_its_gradient_reaches_predictions_alone_and_is_that_of_the_formula():
    p, z = rows(0), rows(1)
    to_p, to_z = jax.jit(jax.grad(negative_cosine, argnums=(0, 1)))(p, z)
    assert np.abs(to_z).max() == 0
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    length = np.linalg.norm(p, axis=1, keepdims=True)
    across = unit - p * (p * unit).sum(1, keepdims=True) / length**2  # what p lacks to point there
    np.testing.assert_allclose(to_p, -across / length / ROWS, rtol=1e-12)


def test_a_prediction_of_zeros_counts_nothing():
    p, z = rows(0), rows(1)
    p[:] = 0
    found, gradient = jax.value_and_grad(negative_cosine)(jnp.float32(p), jnp.float32(z))
    assert found == 0 and np.isfinite(gradient).all()


@pytest.mark.x64
def test_shares_of_eight_devices_add_up():
    mesh, (p, z) = parallel.make_mesh(), (rows(0), rows(1))
    spread = functools.partial(jax.shard_map, mesh=mesh, in_specs=P(parallel.AXIS))

    @jax.jit
    @functools.partial(spread, out_specs=(P(), P(parallel.AXIS)))
    def summed(p, z):
        share, gradient = jax.value_and_grad(negative_cosine)(p, z, axis_name=parallel.AXIS)
        return jax.lax.psum(share, parallel.AXIS), gradient

    found, gradient = summed(p, z)
    np.testing.assert_allclose(found, by_numpy(p, z), rtol=1e-12)
    np.testing.assert_allclose(gradient, jax.grad(negative_cosine)(p, z), rtol=1e-12, atol=1e-14)
