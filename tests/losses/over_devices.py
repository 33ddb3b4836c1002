"""A loss of views and labels on eight devices, as one value and the gradient of all rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simclr_jax import parallel

DEVICES = 8


def on_one(function, z, *of_images):
    """Return value, metrics and gradient of `function(views, *of_images)` at `z` `[v, n, d]`."""
    one = jax.jit(jax.value_and_grad(lambda z, *rest: function(list(z), *rest), has_aux=True))
    (value, metrics), gradient = one(z, *of_images)
    return value, metrics, gradient


def on_eight(function, z, *of_images):
    """Return likewise the sum of the shares, those of the metrics, and the gradients of all rows.

    Args:
      function: of `(views, *of_images)` to this device's share and metrics.
      z: `[v, n, d]`, of which every device gets n / 8 images.
      of_images: arrays `[n, ...]`, such as labels.
    """

    def local(z, *rest):
        (share, metrics), gradient = jax.value_and_grad(
            lambda z: function(list(z), *rest), has_aux=True
        )(z)
        return jax.tree.map(lambda x: lax.psum(x, parallel.AXIS), (share, metrics)), gradient

    P = jax.P
    images = P(None, parallel.AXIS)
    sharded = jax.shard_map(
        local,
        mesh=parallel.make_mesh(DEVICES),
        in_specs=(images, *[P(parallel.AXIS)] * len(of_images)),
        out_specs=(P(), images),
    )
    (total, metrics), gradient = jax.jit(sharded)(z, *map(jnp.asarray, of_images))
    return total, metrics, gradient


def assert_equal(got, want, rtol=1e-12):
    """Assert that two of the above are equal, gradients relative to their largest entry."""
    np.testing.assert_allclose(got[0], want[0], rtol=rtol)
    assert got[1].keys() == want[1].keys()
    for name in got[1]:
        np.testing.assert_allclose(got[1][name], want[1][name], rtol=rtol, atol=1e-15)
    largest = np.max(np.abs(want[2]))
    assert largest > 0
    np.testing.assert_allclose(got[2], want[2], atol=rtol * largest)


def assert_defined(function, definition, z):
    """Assert that a loss has the value of its definition, and a gradient of its slope at `z`.

    Args:
      function: of v views `[n, d]` to loss and metrics.
      definition: of NumPy's `[v, n, d]` to the loss.
      z: `[v, n, d]`, float64.
    """
    value, _, gradient = on_one(function, z)
    np.testing.assert_allclose(value, definition(z), rtol=1e-12)
    direction = np.random.default_rng(1).normal(size=z.shape)
    ahead, behind = (definition(z + e * direction) for e in (1e-6, -1e-6))
    along = np.sum(gradient * direction)
    np.testing.assert_allclose(along, (ahead - behind) / 2e-6, rtol=1e-7, atol=1e-9)
