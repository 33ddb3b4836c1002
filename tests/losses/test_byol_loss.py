"""BYOL's loss against float64 NumPy, and on 8 devices against 1."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from simclr_jax import parallel
from simclr_jax.losses.byol import regression

ROWS, DIM = 16, 6


def rows(seed):
    return np.random.default_rng(seed).normal(size=(ROWS, DIM)).astype(np.float32)


def by_numpy(p, z):
    p, z = p.astype(np.float64), z.astype(np.float64)
    cosine = (p * z).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(z, axis=1)
    return np.mean(2 - 2 * cosine)


def test_it_is_two_minus_twice_the_cosine():
    p, z = rows(0), rows(1)
    np.testing.assert_allclose(regression(p, z), by_numpy(p, z), rtol=1e-6)


def test_the_target_carries_no_gradient():
    p, z = rows(0), rows(1)
    to_p, to_z = jax.grad(regression, argnums=(0, 1))(p, z)
    assert np.abs(to_p).max() > 1e-3 and np.abs(to_z).max() == 0


def test_a_prediction_of_zeros_counts_one_not_two():
    """The official `l2_normalize` leaves it at zero, a distance of 1 from any unit vector."""
    p, z = rows(0), rows(1)
    p[:] = 0
    assert float(regression(p, z)) == pytest.approx(1)


def test_shares_of_eight_devices_add_up():
    mesh, (p, z) = parallel.make_mesh(), (rows(0), rows(1))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P(parallel.AXIS), out_specs=P())
    def summed(p, z):
        return jax.lax.psum(regression(p, z, axis_name=parallel.AXIS), parallel.AXIS)

    np.testing.assert_allclose(summed(p, z), by_numpy(p, z), rtol=1e-6)
