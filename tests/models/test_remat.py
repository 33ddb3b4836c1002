"""Blocks that are computed again in the backward pass give what plain ones do."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.test_step import DEVICES, errors, trained

from simclr_jax.models import resnet
from simclr_jax.models.normalization import BatchNorm

EXACT = 1e-12  # float64, relative to the largest number of an array


@pytest.mark.slow
@pytest.mark.x64
def test_a_step_on_eight_devices_is_the_same():
    """State, gradients, statistics and metrics, by the same names."""
    plain, block = (trained(DEVICES, 1, train__remat=remat) for remat in ("none", "block"))
    found = errors(block, plain)  # which also compares the names
    assert max(found.values()) < EXACT
    assert any(path.startswith("['state'].batch_stats") for path in found)


@pytest.mark.x64
@pytest.mark.parametrize("groups", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bottlenecks_with_channel_attention_are_the_same(monkeypatch, groups):
    monkeypatch.setitem(resnet.ARCHITECTURES, 14, (True, (2, 0, 0, 0)))
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 3))
    group = jnp.arange(4) % groups

    def gradients(remat):
        norm = functools.partial(BatchNorm, groups=groups, param_dtype=jnp.float64)
        encoder = resnet.ResNet(
            14, 1 / 16, "cifar", norm, 0.25, 0.25, param_dtype=jnp.float64, remat=remat
        )
        variables = jax.jit(functools.partial(encoder.init, train=True))(jax.random.key(0), images)
        # Residual branches start at scale 0, where most gradients would be 0.
        params = jax.tree.map(lambda p: p + 0.3, variables["params"])

        def loss(params, images):
            state = {"params": params, "batch_stats": variables["batch_stats"]}
            ends, moved = encoder.apply(state, images, True, group, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(ends["h"])), moved

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, images)

    found = errors(gradients(True), gradients(False))
    assert max(found.values()) < EXACT
