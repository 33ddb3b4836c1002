"""BYOL against recordings of deepmind-research: its loss, its schedules, whole training steps.

The recorded network has a stand-in for the encoder. It is our method, through `make_step`, that
takes the steps; what the official target has and ours has not is its predictor and its classifier,
which nothing reads.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from train import tiny

from simclr_jax import parallel, recipes
from simclr_jax.data.sources import Images
from simclr_jax.frame import modules
from simclr_jax.losses.byol import regression
from simclr_jax.methods import byol
from simclr_jax.stages import build, pretrain
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import timetable as timetables
from simclr_jax.train.step import make_step

pytestmark = pytest.mark.x64

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet

# Official modules and ours.
NAMES = {
    "small": ("encoder", "small"),
    "small_norm": ("encoder", "small_bn"),
    "projector/linear": ("head", "dense1"),
    "projector/batch_norm": ("head", "bn1"),
    "projector/linear_1": ("head", "dense2"),
    "predictor/linear": ("predictor", "dense1"),
    "predictor/batch_norm": ("predictor", "bn1"),
    "predictor/linear_1": ("predictor", "dense2"),
    "classifier": ("probe", "dense"),
}
METRICS = {
    "loss": "repr_loss",
    "probe_loss": "classif_loss",
    "target_momentum": "tau",
    "lr": "learning_rate",
}
LEAVES = {"w": "kernel", "b": "bias", "scale": "scale", "offset": "bias"}


class StandIn(nn.Module):
    """The recorded encoder: normalised images, flat, a linear layer, normalisation, ReLU."""

    width: int
    norm: modules.Norm

    @nn.compact
    def __call__(self, images, train, group=None):
        x = ((images - jnp.array(MEAN)) / jnp.array(STD)).reshape(len(images), -1)
        x = nn.Dense(self.width, param_dtype=jnp.float64, name="small")(x)
        h = nn.relu(self.norm(name="small_bn")(x, train, group))
        return dict.fromkeys(["h", *(f"block_group{i}" for i in range(1, 5))], h)


def tree(recording, prefix, parts):
    """Return the arrays of some of our parts that a recording has below `prefix`, if any."""
    found = {}
    for name, array in recording.arrays.items():
        if name.startswith(f"{prefix}/"):
            module, leaf = name.removeprefix(f"{prefix}/").rsplit("/", 1)
            part, ours = NAMES[module]
            if part in parts:
                shape = array.shape[-1:] if "norm" in module else array.shape
                found[part, ours, LEAVES[leaf]] = array.reshape(shape)
    return traverse_util.unflatten_dict(found)


def statistics(recording, prefix, parts):
    """Return the moving averages likewise.

    Haiku's `hidden` starts from 0 and is made unbiased when it is read; our variance starts from 1.
    """
    decay, found = recording.settings["bn_decay"], {}
    for name, array in recording.arrays.items():
        module, _, rest = name.removeprefix(f"{prefix}/").partition("/~/")
        if name.startswith(f"{prefix}/") and rest.endswith("hidden") and NAMES[module][0] in parts:
            kind = rest.partition("_ema")[0]  # mean or var
            passes = recording.arrays[name.removesuffix("hidden") + "counter"]
            start = decay**passes if kind == "var" else 0.0
            found[(*NAMES[module], kind)] = array.reshape(-1) + start
    return traverse_util.unflatten_dict(found)


def worst(found, official):
    """Return the largest error of any array of a tree.

    A bias before batch normalisation has no gradient but rounding: what is smaller than the largest
    array by so much counts as that.
    """
    assert jax.tree.structure(found) == jax.tree.structure(official)
    floor = 1e-3 * max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(official))
    errors = jax.tree.map(lambda a, b: golden.error(a, b, floor), found, official)
    return max(jax.tree.leaves(errors))


def recipe(settings):
    c = recipes.base("byol")
    c.data.image_size = settings["side"]
    c.head.hidden, c.head.dim = settings["projector_hidden"], settings["output"]
    c.byol.hidden, c.byol.momentum = settings["predictor_hidden"], settings["base_ema"]
    c.bn.momentum, c.bn.epsilon = settings["bn_decay"], settings["bn_eps"]
    c.optim.base_lr = settings["base_rate"] * settings["batch_for_rate"] / 256
    c.optim.lr_scaling, c.optim.momentum = "none", settings["momentum"]
    c.optim.weight_decay, c.optim.trust_coefficient = settings["weight_decay"], settings["eta"]
    examples = 8 * settings["n"]
    c.optim.warmup_epochs = settings["warmup_steps"] * settings["n"] / examples
    c.train.batch_size, c.train.steps = settings["n"], settings["total_steps"]
    c.train.dtype = "float64"
    return c, examples


def made(settings):
    """Return the stage of a recording's settings and its mesh, of one device."""
    (c, examples), mesh = recipe(settings), parallel.make_mesh(1)
    side, classes = settings["side"], settings["classes"]
    pixels = np.zeros((examples, side, side, 3), np.uint8)
    images = Images(pixels, (np.arange(examples) % classes).astype(np.int32), classes)
    stage = pretrain.make_stage(c, timetables.make(c, examples), Inputs(c, images, images), mesh)
    return dataclasses.replace(stage, optimizer=tiny.recording(stage.optimizer)), mesh


@pytest.mark.parametrize("recording", golden.cases("byol"))
def test_steps(recording, monkeypatch, record_parity):
    settings, arrays = recording.settings, recording.arrays
    standing = lambda config: StandIn(settings["width"], modules.norm(config))  # noqa: E731
    monkeypatch.setattr(modules, "encoder", standing)
    stage, mesh = made(settings)
    everything, judged = {part for part, _ in NAMES.values()}, {"encoder", "head"}

    state = jax.tree.map(np.asarray, stage.init())
    params = tree(recording, "online0", everything)
    target = state.extra["target"] | {"params": tree(recording, "target0", judged)}
    assert jax.tree.map(np.shape, state.params) == jax.tree.map(np.shape, params)
    assert jax.tree.map(np.shape, state.extra["target"]) == jax.tree.map(np.shape, target)
    state = state._replace(
        params=params, opt_state=stage.optimizer.init(params), extra={"target": target}
    )

    step, state, errors = make_step(stage, mesh), parallel.replicate(mesh, state), []
    for k in range(settings["steps"]):
        state, metrics = step(state, batch_of(recording, k, mesh))
        for ours, theirs in METRICS.items():
            errors.append(golden.error(metrics[ours][0], arrays[f"step{k}_{theirs}"]))
        if k == 0:
            gradients = tree(recording, "grad0", everything)
            errors.append(worst(state.opt_state[0], gradients))
        if online := tree(recording, f"step{k}_online", everything):
            errors.append(worst(state.params, online))
            moved = tree(recording, f"step{k}_target", judged)
            errors.append(worst(state.extra["target"]["params"], moved))
    last = f"state{settings['steps']}"
    errors.append(worst(state.batch_stats, statistics(recording, f"{last}_online", everything)))
    ours = state.extra["target"]["batch_stats"]
    errors.append(worst(ours, statistics(recording, f"{last}_target", judged)))
    record_parity("byol", recording.name, max(errors), 1e-10, "float64")


def batch_of(recording, k, mesh):
    """Return the recorded batch of a step, as placement `host` hands it over."""
    arrays, n = recording.arrays, recording.settings["n"]
    batch = {
        "views/views": np.stack([arrays[f"step{k}_view1"], arrays[f"step{k}_view2"]], 1),
        "label": arrays[f"step{k}_labels"].astype(np.int32),
        "example": np.arange(n, dtype=np.int32),
        "position": np.zeros((n, 2), np.uint32),
    }
    return parallel.shard(mesh, {name: array[None] for name, array in batch.items()}, axis=1)


@pytest.mark.parametrize("recording", golden.cases("byol_loss"))
def test_loss(recording, record_parity):
    arrays = recording.arrays

    def loss(p1, p2):
        return regression(p1, arrays["target2"]) + regression(p2, arrays["target1"])

    found, gradients = jax.value_and_grad(loss, (0, 1))(
        arrays["prediction1"], arrays["prediction2"]
    )
    errors = [golden.error(found, arrays["loss"])]
    errors += [golden.error(g, arrays[f"grad{i}"]) for i, g in enumerate(gradients, start=1)]
    record_parity("byol_loss", recording.name, max(errors), 1e-12, "float64")


@pytest.mark.parametrize("recording", golden.cases("byol_schedule"))
def test_schedules(recording, record_parity):
    settings, steps = recording.settings, recording.arrays["steps"]
    share = build.schedules.share_done([settings["total_steps"]])
    tau = jax.vmap(functools.partial(byol.momentum, settings["base_ema"], share))(steps)
    rate = build.schedules.warmup_cosine(
        build.schedules.peak_rate(settings["base_rate"], "linear", settings["batch_size"]),
        settings["warmup_steps"],
        settings["total_steps"],
    )
    # The official warm-up is in float32: a quotient, a rate and a product are rounded, each by
    # half an EPS32 at most.
    record_parity(
        "byol_schedule",
        recording.name,
        golden.error(tau, recording.arrays["tau"]),
        1e-12,
        "float64",
    )
    record_parity(
        "byol_schedule (rate)",
        recording.name,
        golden.error(jax.vmap(rate)(steps), recording.arrays["rate"]),
        1.5 * golden.EPS32,
    )
