"""FNC with its memory against recordings of google-research/fnc, through a whole training step.

What a recorded network made of images is here the network: view v of image i is row v n + i of the
identity, and the head a dense layer without bias, whose kernel is the recorded `hidden`, in the
average `hidden_ema`. The gradient of the kernel is that of the vectors.
"""

from __future__ import annotations

import dataclasses

import golden
import jax
import numpy as np
import pytest
from test_false_negatives import by_view, tolerances
from test_moco_steps import StandIn
from train import tiny

from simclr_jax import parallel, recipes, validation
from simclr_jax.data.sources import Images
from simclr_jax.frame import modules
from simclr_jax.methods import fnc
from simclr_jax.stages import pretrain
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import timetable as timetables
from simclr_jax.train.step import make_step

pytestmark = pytest.mark.x64

MOMENTUM = 0.75


def recipe(settings):
    c = recipes.base("fnc")
    fnc.support(c, settings["support"])
    c.data.image_size, c.train.dtype, c.eval.probe = 1, "float64", False
    c.head.kind, c.head.layers, c.head.dim = "mlp", 1, settings["dim"]
    c.head.bias = c.head.norm = "none"
    c.loss.temperature = settings["temperature"]
    c.loss.normalize = settings.get("hidden_norm", True)
    c.fnc.top_k, c.fnc.threshold = settings["top_k"], settings["threshold"]
    c.fnc.memory, c.fnc.momentum = settings["memory_multiplier"] * settings["n"], MOMENTUM
    c.train.batch_size, c.train.steps, c.optim.warmup_epochs = settings["n"], 1, 0.0
    return c


def network(kernel):
    return {"head": {"dense1": {"kernel": kernel.reshape(-1, kernel.shape[-1])}}}


def oldest_first(memory, n):
    """Return rows `[m n, d]` that begin with the newest view of n images, as the queue has them."""
    return memory.reshape(-1, n, memory.shape[-1])[::-1].reshape(memory.shape)


@pytest.mark.parametrize("recording", golden.cases("fnc_memory"))
def test_a_step(recording, monkeypatch, record_parity):
    settings, arrays = recording.settings, recording.arrays
    n, c = settings["n"], recipe(settings)
    hidden, keys = by_view(recording, "hidden"), by_view(recording, "hidden_ema")
    now, memory = len(keys) * n, arrays["memory"].astype(np.float64)
    assert memory.shape == (c.fnc.memory, c.head.dim), recording.name

    monkeypatch.setattr(modules, "encoder", lambda config: StandIn(None))
    mesh = parallel.make_mesh(1 if n % 2 else 2)
    validation.validate(c, mesh.size)
    images = Images(np.zeros((n, 1, 1, now), np.uint8), None, 0)
    stage = pretrain.make_stage(c, timetables.make(c, n), Inputs(c, images, images), mesh)
    stage = dataclasses.replace(stage, optimizer=tiny.recording(stage.optimizer))
    state = jax.tree.map(np.asarray, stage.init())
    extra = {"average": {"params": network(keys), "batch_stats": {}}}
    if len(memory) > now:
        extra["queue"] = oldest_first(memory[now:], n)
    for found, given in ((state.params, network(hidden)), (state.extra, extra)):
        assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, given)
    started = stage.optimizer.init(network(hidden))
    state = state._replace(params=network(hidden), opt_state=started, extra=extra)
    shown = np.eye(now).reshape(-1, n, 1, 1, now).swapaxes(0, 1)  # [n, views, 1, 1, views n]
    batch = {
        "views/views": shown[:, :2],
        "views/support": shown[:, 2:],
        "example": np.arange(n, dtype=np.int32),
        "position": np.zeros((n, 2), np.uint32),
    }
    if not settings["support"]:
        del batch["views/support"]
    batch = parallel.shard(mesh, {name: array[None] for name, array in batch.items()}, axis=1)
    state, metrics = make_step(stage, mesh)(parallel.replicate(mesh, state), batch)

    limit, recorded, floor = tolerances(recording, hidden)
    slope = state.opt_state[0]["head"]["dense1"]["kernel"]
    average = state.extra["average"]["params"]["head"]["dense1"]["kernel"]
    new = np.asarray(state.params["head"]["dense1"]["kernel"])
    assert np.abs(new - hidden.reshape(new.shape)).max() > 0
    errors = [
        golden.error(metrics["loss"][0], arrays["loss"], 1.0),
        golden.error(slope, arrays["grad_hidden" if "grad_hidden" in arrays else "grad"], floor),
        golden.error(average, MOMENTUM * keys.reshape(new.shape) + (1 - MOMENTUM) * new, 1.0),
    ]
    if "queue" in extra:
        kept = oldest_first(memory[: len(memory) - now], n)  # of what was there, and the batch
        errors.append(golden.error(state.extra["queue"], kept, 1.0))
    for error in errors:
        record_parity("fnc_memory", recording.name, error, limit, recorded)
