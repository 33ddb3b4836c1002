"""Rotation on eight devices as on one, and its loss from turned images, one by one."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frame import toys
from train import tiny

from simclr_jax import parallel, recipes, validation
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.train.step import make_step

pytestmark = pytest.mark.x64


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


def recipe(**fields):
    return toys.recipe("rotation", **{"train__dtype": "float64", "optim__base_lr": 0.01, **fields})


def test_eight_devices_do_what_one_does():
    _, metrics = toys.both(recipe())
    assert metrics[0]["loss"] == pytest.approx(math.log(4), rel=0.05)  # what it declares as chance


def test_the_loss_is_that_of_each_image_turned_by_numpy():
    c = recipe(augment__views__first__flip=0.0, bn__groups=1)
    stage, mesh = tiny.make_stage(c, 1)
    state, (_, batch) = tiny.perturbed(stage.init()), next(stage.batches(0, 1))
    params = state.params
    _, metrics = make_step(stage, mesh)(parallel.replicate(mesh, state), batch)

    look = jax.jit(stage.look)
    whole = np.asarray(look({name: rows[0] for name, rows in batch.items()})["views"])
    upright = whole[:, 0]  # [n, h, w, c]
    turned = [np.rot90(upright, k, (1, 2)) for k in range(4)]
    norm = functools.partial(modules.norm(c), axis_name=None)
    encoder = toys.Small(norm)
    variables = {"params": params["encoder"], "batch_stats": state.batch_stats["encoder"]}
    apply = jax.jit(functools.partial(encoder.apply, train=True, mutable=["batch_stats"]))
    ends, _ = apply(variables, np.concatenate(turned))
    dense = params["turn"]["dense"]
    logits = np.asarray(ends["h"]) @ dense["kernel"] + dense["bias"]  # [4n, 4]
    label = np.repeat(np.arange(4), len(upright))
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(
        metrics["loss"][0], -log_p[np.arange(len(label)), label].mean(), rtol=1e-10
    )
    np.testing.assert_allclose(
        metrics["turn_accuracy"][0], np.mean(logits.argmax(1) == label), rtol=1e-12
    )


def test_the_probe_reads_the_upright_image():
    c = recipe()
    stage, _ = tiny.make_stage(c, 8)
    batch = {name: rows[0] for name, rows in next(stage.batches(0, 1))[1].items()}
    state = stage.init()

    def forward(batch):
        batch = batch | {"row": jnp.arange(len(batch["position"]))}
        outputs, _ = stage.forward(state.params, state.batch_stats, {}, batch, state.step)
        return outputs["probe"]["logits"]

    mesh = parallel.make_mesh(8)
    P = jax.sharding.PartitionSpec
    specs = {"in_specs": P(parallel.AXIS), "out_specs": P(parallel.AXIS)}
    logits = jax.jit(jax.shard_map(forward, mesh=mesh, **specs))(batch)
    assert logits.shape == (tiny.BATCH, 1, tiny.CLASSES)
    assert stage.views_per_image == 4


def test_two_views_are_one_too_many():
    c = recipes.base("rotation")
    tiny.shrink(c)
    c.augment.views.first.copies = 2
    with pytest.raises(
        UserError, match=r"has 2 view\(s\) of the group views, method rotation looks at 1"
    ):
        validation.validate(c, 1)
