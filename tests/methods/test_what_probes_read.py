"""The online probe of every method learns from whole views, as it is asked about whole images."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smallest
from frame import toys
from train import tiny

from simclr_jax import parallel
from simclr_jax.frame import modules
from simclr_jax.stages import pretrain
from simclr_jax.stages.views import view_maker

pytestmark = pytest.mark.x64

# Their networks are shown nothing but pieces, damaged or shrunk copies of an image.
PROBED = ("context_encoder", "counting", "denoising_autoencoder", "jigsaw", "relative_patch")
OTHERS = [
    method if method == "rotation" else pytest.param(method, marks=pytest.mark.slow)
    for method in smallest.METHODS
    if method not in PROBED
]


class Brightness(nn.Module):
    """An encoder whose h is the mean of an image, and of its squares: it tells no turned one."""

    @nn.compact
    def __call__(self, images, train, group=None):
        kernel = self.param("kernel", nn.initializers.ones, (1, 1), images.dtype)
        x = images * kernel[0, 0]
        h = jnp.concatenate([x.mean((1, 2)), jnp.square(x).mean((1, 2))], -1)
        small = x[:, ::8, ::8]  # as a map of the last block, which decoders enlarge
        return {f"block_group{i}": small for i in range(1, 5)} | {"h": h}


def read(c):
    """Return a state, views `[n, v, h, w, c]`, and logits of the probe in a step, `[n, v, 4]`."""
    stage, mesh = tiny.make_stage(c, 1)
    random = np.random.default_rng(1)
    state = jax.tree.map(
        lambda leaf: random.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype),
        jax.eval_shape(stage.init),
    )
    rows = {name: value[0] for name, value in next(stage.batches(0, 1))[1].items()}
    rows |= {"row": jnp.arange(len(rows["position"]))}
    views = view_maker(c)

    def forward(rows):
        outputs, _ = stage.forward(state.params, state.batch_stats, state.extra, rows, state.step)
        return views(rows)["views"], outputs["probe"]["logits"]

    P = jax.sharding.PartitionSpec
    specs = {"in_specs": P(parallel.AXIS), "out_specs": P(parallel.AXIS)}
    found = jax.jit(jax.shard_map(forward, mesh=mesh, **specs))(rows)
    return stage, state, *map(np.asarray, found)


def answered(state, h):
    layer = state.params["probe"]["dense"]
    return h @ layer["kernel"] + layer["bias"]


@pytest.mark.parametrize("method", PROBED)
def test_of_networks_that_see_no_whole_image_it_reads_the_view(method, monkeypatch):
    """By moving averages, as where a run is judged; without a probe nobody looks at the view."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))
    c = smallest.recipe(method, train__dtype="float64")
    stage, state, views, found = read(c)
    stats = {"params": state.params["encoder"], "batch_stats": state.batch_stats["encoder"]}
    encode = functools.partial(toys.Small(modules.norm(c)).apply, train=False)
    h = np.asarray(jax.jit(encode)(stats, views[:, 0])["h"])
    np.testing.assert_allclose(found[:, 0], answered(state, h), rtol=1e-9)
    alone, _ = tiny.make_stage(smallest.recipe(method, eval__probe=False), 1)
    assert stage.views_per_image == alone.views_per_image + 1


@pytest.mark.parametrize("method", OTHERS)
def test_of_others_it_reads_views_too(method, monkeypatch):
    """What it is told of an image is of one augmented view or of several, and of nothing less."""
    monkeypatch.setattr(modules, "encoder", lambda config: Brightness())
    _, state, views, found = read(smallest.recipe(method, train__dtype="float64"))
    x = views * state.params["encoder"]["kernel"][0, 0]
    h = np.concatenate([x.mean((2, 3)), np.square(x).mean((2, 3))], -1)  # [n, v, 2c]
    apart = np.abs(found[:, :, None] - answered(state, h)[:, None]).max(-1)
    assert apart.min(-1).max() < 1e-9


def test_those_are_all_that_say_so():
    def said(method):
        c = smallest.recipe(method)
        return pretrain.make_method(c, tiny.timetable(c), tiny.sorted_images()).probed

    assert {method for method in smallest.METHODS if said(method)} == {*PROBED}
