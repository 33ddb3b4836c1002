"""Instance discrimination against recordings of lemniscate.pytorch and CMC: several steps each.

The loss functions meet every recording, by themselves. Our method, through `make_step`, takes the
same steps with a stand-in for the encoder that hands on the recorded embeddings, and the recorded
draws; a recording of more draws than images, which the method refuses, is met by the functions
alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import flax.linen as nn
import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train import tiny

from simclr_jax import parallel, recipes
from simclr_jax.data.sources import Images
from simclr_jax.frame import modules
from simclr_jax.losses import instance
from simclr_jax.methods import instdisc
from simclr_jax.stages import pretrain
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import timetable as timetables
from simclr_jax.train.step import make_step

pytestmark = pytest.mark.x64

EXACT = 1e-12


class StandIn(nn.Module):
    """Hands on the numbers that stand in an image, with a bias whose gradient is theirs."""

    rows: int
    dim: int

    @nn.compact
    def __call__(self, images, train):
        shape = self.rows, self.dim
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float64)[: len(images)]
        h = images.reshape(len(images), -1)[:, : self.dim] + bias
        return dict.fromkeys(["h", *(f"block_group{i}" for i in range(1, 5))], h)


def loss_of(recording):
    """Return the name of a recording's loss, and how its function is called beside the arrays."""
    settings, name = recording.settings, recording.spec["kind"].removeprefix("instdisc_")
    return name, {"temperature": settings["temperature"]}


def steps_of(recording):
    """Yield for each step its arrays, and the bank before it."""
    arrays, settings = recording.arrays, recording.settings
    bank = arrays["bank0"]
    assert bank.shape == (settings["bank"], settings["dim"])
    for k in range(settings["steps"]):
        step = {
            name.removeprefix(f"step{k}_"): array
            for name, array in arrays.items()
            if name.startswith(f"step{k}_")
        }
        assert step["x"].shape == (settings["n"], settings["dim"])
        if "sampled" in step:  # whose first column is the image's own row
            assert step["sampled"].shape == (settings["n"], settings["negatives"] + 1)
            np.testing.assert_array_equal(step["sampled"][:, 0], step["index"])
        yield step, bank
        bank = step["bank"]


def by_functions(recording):
    """Yield the errors of the loss functions."""
    settings, (name, how), log_z = recording.settings, loss_of(recording), None
    if name == "nce":
        how["eps"] = settings["eps"]
        log_z = math.log(settings["Z"]) if settings["Z"] is not None else None

    @jax.jit
    def all_of(x, bank, index, drawn, log_z):
        def loss(x):
            more = {"log_partition": log_z} if name == "nce" else {}
            return getattr(instance, name)(x, bank, index, *drawn, **how, **more)[0]

        moved = instance.moved(bank, x, index, momentum=settings["momentum"])
        return *jax.value_and_grad(loss)(x), moved

    for step, bank in steps_of(recording):
        drawn = [step["sampled"][:, 1:]] if "sampled" in step else []
        if name == "nce":
            if log_z is None:
                args = step["x"], bank, step["index"], *drawn
                log_z = instance.log_partition(*args, temperature=settings["temperature"])
            yield golden.error(np.exp(log_z), step["Z"])
        found = all_of(step["x"], bank, step["index"], drawn, log_z)
        yield from map(golden.error, found, (step["loss"], step["grad"], step["bank"]))


def recipe(recording):
    settings, (name, how) = recording.settings, loss_of(recording)
    c = recipes.base("instdisc")
    c.data.image_size = math.ceil(math.sqrt(settings["dim"] / 3))
    c.head.kind, c.eval.probe = "none", False
    c.instdisc.loss, c.instdisc.momentum = name, settings["momentum"]
    c.loss.temperature = how["temperature"]
    c.train.batch_size, c.train.steps = settings["n"], settings["steps"]
    c.train.dtype = "float64"
    if name != "softmax":
        c.instdisc.negatives = settings["negatives"]
    if name == "nce" and settings["Z"] is not None:
        c.instdisc.partition = settings["Z"]
    return c


def by_steps(recording, monkeypatch):
    """Yield the errors of training steps of the method."""
    settings, steps = recording.settings, [step for step, _ in steps_of(recording)]
    c, mesh = recipe(recording), parallel.make_mesh(1)
    standing = StandIn(settings["n"], settings["dim"])
    monkeypatch.setattr(modules, "encoder", lambda config: standing)
    if "sampled" in steps[0]:
        drawn = np.stack([step["sampled"][:, 1:] for step in steps])
        monkeypatch.setattr(instdisc, "draw", lambda keys, *_: jnp.asarray(drawn)[keys.step])
    if c.instdisc.loss == "nce":
        nce = functools.partial(instance.nce, eps=settings["eps"])
        monkeypatch.setitem(instdisc.LOSSES, "nce", nce)
    side = c.data.image_size
    pixels = np.zeros((settings["bank"], side, side, 3), np.uint8)
    images = Images(pixels, None, 0)
    timetable = timetables.make(c, settings["bank"])
    stage = pretrain.make_stage(c, timetable, Inputs(c, images, images), mesh)
    # Nothing learns: the next embeddings are those of the recording.
    stage = dataclasses.replace(stage, optimizer=tiny.recording(optax.set_to_zero()))

    state = jax.tree.map(np.asarray, stage.init())
    start = recording.arrays["bank0"]
    assert state.extra["bank"].shape == start.shape
    opt_state = stage.optimizer.init(state.params)
    state = state._replace(opt_state=opt_state, extra=state.extra | {"bank": start})
    state = parallel.replicate(mesh, state)
    take = make_step(stage, mesh)
    for step in steps:
        state, metrics = take(state, batch_of(step, side, mesh))
        yield golden.error(metrics["loss"][0], step["loss"])
        yield golden.error(state.extra["bank"], step["bank"])
        if "log_partition" in state.extra:
            yield golden.error(np.exp(state.extra["log_partition"]), step["Z"])
        # Ours is behind the scaling to length 1, which takes away what is along an embedding.
        x, slope = step["x"], step["grad"]
        across = slope - x * np.sum(x * slope, axis=1, keepdims=True)
        found = state.opt_state[0]["encoder"]["bias"]
        yield golden.error(found, across, floor=np.max(np.abs(slope)))


def batch_of(step, side, mesh):
    """Return a recorded batch, as placement `host` hands it over; x fills what it can."""
    x = step["x"]
    n, dim = x.shape
    image = np.zeros((n, side * side * 3))
    image[:, :dim] = x
    batch = {
        "views/views": image.reshape(n, 1, side, side, 3),
        "example": step["index"].astype(np.int32),
        "position": np.zeros((n, 2), np.uint32),
    }
    return parallel.shard(mesh, {name: array[None] for name, array in batch.items()}, axis=1)


def judge(recording, record_parity, monkeypatch):
    kind, errors = recording.spec["kind"], list(by_functions(recording))
    record_parity(kind, recording.name, max(errors), EXACT, "float64")
    lengths = np.array([np.linalg.norm(step["x"], axis=1) for step, _ in steps_of(recording)])
    if recording.settings.get("negatives", 0) <= recording.settings["bank"]:
        np.testing.assert_allclose(lengths, 1, rtol=1e-12, err_msg="our method makes unit vectors")
        steps = list(by_steps(recording, monkeypatch))
        record_parity(f"{kind} (steps)", recording.name, max(steps), EXACT, "float64")


KINDS = ("instdisc_nce", "instdisc_sampled_softmax", "instdisc_softmax")


@pytest.mark.parametrize("recording", [case for kind in KINDS for case in golden.cases(kind)])
def test_losses_gradients_and_banks_are_those_recorded(recording, record_parity, monkeypatch):
    judge(recording, record_parity, monkeypatch)
