"""PCL's steps by our method, through `make_step`, against recordings of salesforce/PCL.

The recorded network is that of MoCo's recordings; clusters and what was drawn among them are given.
There the average moves at the start of a step, here at the end of the step before.
"""

from __future__ import annotations

import dataclasses

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_moco_steps import StandIn, oldest_first, params, worst
from train import tiny

from simclr_jax import parallel, recipes
from simclr_jax.data.sources import Images
from simclr_jax.frame import modules
from simclr_jax.losses.prototypes import Clustering
from simclr_jax.methods import pcl
from simclr_jax.stages import pretrain
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import timetable as timetables
from simclr_jax.train.step import make_step

pytestmark = pytest.mark.x64


def recipe(settings):
    c = recipes.base("pcl")
    c.data.image_size = 1
    c.head.layers, c.head.dim = 2 if settings["mlp"] else 1, settings["dim"]
    c.pcl.queue = c.pcl.negatives = settings["queue_and_sampled"]
    c.pcl.clusters = ",".join(map(str, settings["clusters"]))
    c.pcl.momentum, c.loss.temperature = settings["momentum"], settings["temperature"]
    c.optim.base_lr, c.optim.lr_scaling = settings["rate"], "none"
    c.optim.momentum, c.optim.weight_decay = settings["sgd_momentum"], settings["weight_decay"]
    # A rate that stays, however many epochs the recorded steps are.
    c.train.steps, c.optim.rate_per, c.optim.drops = 10**9, "step", "1000"
    c.train.batch_size, c.bn.groups = settings["n"], 1
    c.train.dtype, c.eval.probe = "float64", False
    return c


def clusterings(recording, step):
    """Return the recorded clusterings of the batch of a step, at every granularity."""
    settings, arrays = recording.settings, recording.arrays
    found = []
    for g, clusters in enumerate(settings["clusters"]):
        prototypes = arrays[f"prototypes{g}"]
        assignment, negatives = arrays[f"assignment{g}"], arrays[f"step{step}_negatives{g}"]
        assert prototypes.shape == (clusters, settings["dim"]), recording.name
        assert assignment.shape == (settings["images"],), recording.name
        assert negatives.shape == (settings["queue_and_sampled"],), recording.name
        assigned = assignment[arrays[f"step{step}_index"]]
        found.append(Clustering(prototypes, arrays[f"density{g}"], assigned, negatives))
    return found


def nearest(recording, step):
    """Return how often the largest recorded logit is that of the image's own prototype."""
    shares = []
    for g, (_, _, assigned, negatives) in enumerate(clusterings(recording, step)):
        likeliest = np.argmax(recording.arrays[f"step{step}_proto_logits{g}"], axis=1)
        shares.append(np.mean(np.concatenate([assigned, negatives])[likeliest] == assigned))
    return np.mean(shares)


def first_state(stage, recording, examples):
    """Return the state that a recording starts from, with its clusters."""
    settings, arrays = recording.settings, recording.arrays
    state, start = jax.tree.map(np.asarray, stage.init()), params(recording, "q0")
    sets = {}
    for g in range(len(settings["clusters"])):
        assigned = np.zeros(examples, np.int32)
        assigned[: settings["images"]] = arrays[f"assignment{g}"]
        kept = {"prototypes": arrays[f"prototypes{g}"], "concentration": arrays[f"density{g}"]}
        sets[str(g)] = kept | {"assigned": assigned}
    extra = {
        "average": state.extra["average"] | {"params": start},
        "queue": arrays["queue0"].T,
        "clusters": {"epoch": np.int32(0), "sets": sets},
    }
    for found, given in ((state.params, start), (state.extra, extra)):
        assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, given), recording.name
    return state._replace(params=start, opt_state=stage.optimizer.init(start), extra=extra)


@pytest.mark.parametrize("recording", golden.cases("pcl"))
def test_steps(recording, monkeypatch, record_parity):
    settings, arrays, c = recording.settings, recording.arrays, recipe(recording.settings)
    examples, mesh = max(settings["images"], *settings["clusters"]), parallel.make_mesh(1)
    monkeypatch.setattr(modules, "encoder", lambda config: StandIn(None))
    images = Images(np.zeros((examples, 1, 1, settings["width"]), np.uint8), None, 0)
    inputs = Inputs(c, images, images)
    stage = pretrain.make_stage(c, timetables.make(c, examples), inputs, mesh)
    stage = dataclasses.replace(stage, optimizer=tiny.recording(stage.optimizer))
    steps = range(settings["steps"])
    drawn = [[of.negatives for of in clusterings(recording, k)] for k in steps]
    monkeypatch.setattr(
        pcl,
        "negatives",
        lambda keys, g, taken, size, count: jnp.array([of[g] for of in drawn])[keys.step],
    )
    state = parallel.replicate(mesh, first_state(stage, recording, examples))
    step, errors = make_step(stage, mesh), []
    for k in steps:
        if k == steps[-1]:
            average = params(recording, f"k{settings['steps']}")
            errors.append(worst(state.extra["average"]["params"], average))
        views = np.stack([arrays[f"step{k}_query"], arrays[f"step{k}_key"]], 1)
        assert views.shape == (settings["n"], 2, settings["width"]), recording.name
        batch = {
            "views/views": views[:, :, None, None],
            "example": arrays[f"step{k}_index"].astype(np.int32),
            "position": np.zeros((settings["n"], 2), np.uint32),
        }
        batch = parallel.shard(mesh, {name: x[None] for name, x in batch.items()}, axis=1)
        state, metrics = step(state, batch)
        found = {name: float(values[0]) for name, values in metrics.items()}
        of = {"loss": found["loss"], "proto_nce": found["prototype_loss"]}
        of["info_nce"] = of["loss"] - of["proto_nce"]
        errors += [golden.error(value, arrays[f"step{k}_{name}"]) for name, value in of.items()]
        errors.append(abs(found["prototype_accuracy"] - nearest(recording, k)))
        pointer = (k + 1) * settings["n"] % settings["queue_and_sampled"]
        official = oldest_first(arrays[f"step{k}_queue"], pointer)
        errors.append(golden.error(state.extra["queue"], official))
        if k == 0:
            errors.append(worst(state.opt_state[0], params(recording, "grad0")))
    errors.append(worst(state.params, params(recording, f"q{settings['steps']}")))
    record_parity("pcl", recording.name, max(errors), 1e-10, "float64")
