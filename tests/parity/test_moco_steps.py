"""MoCo against recordings of facebookresearch/moco and of CMC: steps, shuffling, the queue.

The recorded network is a stand-in for the encoder, of vectors in place of images. It is our method,
through `make_step`, that takes the steps. There the average moves at the start of a step and the
queue is a ring; here it moves at the end of the step before, and the oldest row is the first.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec as P
from train import tiny

from simclr_jax import parallel, recipes
from simclr_jax.data.sources import Images
from simclr_jax.frame import modules
from simclr_jax.frame.net import Rows
from simclr_jax.frame.queue import Queue
from simclr_jax.losses.queue_contrast import queue_contrast
from simclr_jax.stages import pretrain
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import timetable as timetables
from simclr_jax.train.step import make_step

pytestmark = pytest.mark.x64

# Official modules and ours: the last layer of a backbone is the head, or with `mlp` two.
NAMES = {
    "bn": ("encoder", "bn"),
    "fc": ("head", "dense1"),
    "fc.0": ("head", "dense1"),
    "fc.2": ("head", "dense2"),
}


class StandIn(nn.Module):
    """The recorded encoder: vectors as they are, or normalised."""

    norm: modules.Norm | None

    @nn.compact
    def __call__(self, images, train, group=None):
        h = images.reshape(len(images), -1)
        if self.norm is not None:
            h = self.norm(name="bn")(h, train, group)
        return dict.fromkeys(["h", *(f"block_group{i}" for i in range(1, 5))], h)


def params(recording, prefix):
    """Return the parameters of our parts that a recording has below `prefix`."""
    found = {}
    for name, array in recording.arrays.items():
        if name.startswith(f"{prefix}/"):
            module, leaf = name.removeprefix(f"{prefix}/").rsplit(".", 1)
            if leaf == "weight":
                leaf = "scale" if module == "bn" else "kernel"
            found[(*NAMES[module], leaf)] = array.T
    return traverse_util.unflatten_dict(found)


def statistics(recording, prefix):
    """Return the moving averages likewise, if there are any."""
    arrays = recording.arrays
    if f"{prefix}/bn.running_mean" not in arrays:
        return {}
    found = {kind: arrays[f"{prefix}/bn.running_{kind}"] for kind in ("mean", "var")}
    return {"encoder": {"bn": found}}


def worst(found, official):
    assert jax.tree.structure(found) == jax.tree.structure(official)
    return max(jax.tree.leaves(jax.tree.map(golden.error, found, official)), default=0.0)


def oldest_first(queue, pointer):
    """Return the rows of a ring `[d, K]`, whose next row will be written at `pointer`."""
    return np.roll(queue.T, -pointer, axis=0)


def recipe(settings, batch, groups, mlp):
    c = recipes.base("moco")
    c.data.image_size = 1
    c.head.layers, c.head.dim = 2 if mlp else 1, settings["dim"]
    c.moco.queue, c.moco.momentum = settings["queue"], settings["momentum"]
    c.loss.temperature, c.bn.groups = settings["temperature"], groups
    c.optim.lr_scaling, c.train.batch_size = "none", batch
    c.train.dtype, c.eval.probe = "float64", False
    return c


def made(c, width, devices, monkeypatch, norm):
    """Return the stage of a recipe, whose images are vectors, and its mesh."""
    standing = (
        (lambda config: StandIn(modules.norm(config, unbiased_moving=True)))
        if norm
        else (lambda config: StandIn(None))
    )
    monkeypatch.setattr(modules, "encoder", standing)
    examples, mesh = c.train.batch_size * (c.train.steps or 1), parallel.make_mesh(devices)
    images = Images(np.zeros((examples, 1, 1, width), np.uint8), None, 0)
    stage = pretrain.make_stage(c, timetables.make(c, examples), Inputs(c, images, images), mesh)
    return dataclasses.replace(stage, optimizer=tiny.recording(stage.optimizer)), mesh


def started(stage, first, queue):
    """Return the first state with these parameters, also of the average, and this queue."""
    state = jax.tree.map(np.asarray, stage.init())
    average = state.extra["average"] | {"params": first}
    extra = {"average": average, "queue": queue}
    for found, given in ((state.params, first), (state.extra, extra)):
        assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, given)
    return state._replace(params=first, opt_state=stage.optimizer.init(first), extra=extra)


def batch_of(mesh, query, key):
    """Return a batch of vectors `[N, width]`, as placement `host` hands it over."""
    n = len(query)
    batch = {
        "views/views": np.stack([query, key], 1)[:, :, None, None],
        "example": np.arange(n, dtype=np.int32),
        "position": np.zeros((n, 2), np.uint32),
    }
    return parallel.shard(mesh, {name: array[None] for name, array in batch.items()}, axis=1)


def found_share(logits):
    """Return how often the first logit is the largest."""
    return np.mean(np.argmax(logits, 1) == 0)


@pytest.mark.parametrize("recording", golden.cases("moco"))
def test_steps(recording, monkeypatch, record_parity):
    settings, arrays = recording.settings, recording.arrays
    assert settings["world_size"] == 1, "steps of several processes are of the kind moco_shuffle"
    c = recipe(settings, settings["n"], groups=1, mlp=settings["mlp"])
    # One epoch, in which the rate is constant.
    c.train.steps, c.optim.base_lr = settings["steps"], settings["rate"]
    c.optim.momentum, c.optim.weight_decay = settings["sgd_momentum"], settings["weight_decay"]
    stage, mesh = made(c, settings["width"], 1, monkeypatch, settings["bn"])
    state = started(stage, params(recording, "q0"), arrays["queue0"].T)

    step, state, errors = make_step(stage, mesh), parallel.replicate(mesh, state), []
    for k in range(settings["steps"]):
        average = params(recording, f"step{k}_k")
        errors.append(worst(state.extra["average"]["params"], average))
        batch = batch_of(mesh, arrays[f"step{k}_query"], arrays[f"step{k}_key"])
        state, metrics = step(state, batch)
        errors.append(golden.error(metrics["loss"][0], arrays[f"step{k}_loss"]))
        share = found_share(arrays[f"step{k}_logits"])
        errors.append(abs(float(metrics["contrast_accuracy"][0]) - share))
        official = oldest_first(arrays[f"step{k}_queue"], arrays[f"step{k}_pointer"])
        errors.append(golden.error(state.extra["queue"], official))
        if k == 0:
            errors.append(worst(state.opt_state[0], params(recording, "grad0")))
    last = settings["steps"]
    errors.append(worst(state.params, params(recording, f"q{last}")))
    errors.append(worst(state.batch_stats, statistics(recording, f"q{last}_stats")))
    own = state.extra["average"]["batch_stats"]
    errors.append(worst(own, statistics(recording, f"k{last}_stats")))
    record_parity("moco", recording.name, max(errors), 1e-10, "float64")


@pytest.mark.parametrize("recording", golden.cases("moco_shuffle"))
@pytest.mark.parametrize("spread", [False, True])
def test_shuffled_groups(recording, spread, monkeypatch, record_parity):
    """What each process normalises by itself is a group here, on one device or on as many."""
    settings, arrays = recording.settings, recording.arrays
    groups, n = settings["processes"], settings["n_per_process"]
    # Our image j is the official row `row[j]`: of process j mod G, which is its group.
    row = np.arange(groups * n) % groups * n + np.arange(groups * n) // groups
    of_rank = lambda name: np.concatenate([arrays[f"rank{r}_{name}"] for r in range(groups)])  # noqa: E731
    drawn = jnp.asarray(arrays["rank0_unshuffle"][row] // n, jnp.int32)
    monkeypatch.setattr(Rows, "shuffled", lambda self, key, batch: drawn[self.number])

    c = recipe(settings, groups * n, groups, mlp="q0/fc.0.weight" in arrays)
    c.bn.momentum, c.bn.epsilon = 1 - settings["bn_momentum"], settings["bn_eps"]
    c.train.steps = 1
    stage, mesh = made(c, settings["width"], groups if spread else 1, monkeypatch, True)
    state = started(stage, params(recording, "q0"), arrays["queue0"].T)
    batch = batch_of(mesh, of_rank("query")[row], of_rank("key")[row])
    state, metrics = make_step(stage, mesh)(parallel.replicate(mesh, state), batch)

    loss = np.mean([arrays[f"rank{r}_loss"] for r in range(groups)])
    official = oldest_first(arrays["rank0_queue1"], arrays["rank0_pointer1"])
    official[-groups * n :] = official[-groups * n :][row]
    own = state.extra["average"]["batch_stats"]["encoder"]["bn"]
    errors = [
        golden.error(metrics["loss"][0], loss),
        abs(float(metrics["contrast_accuracy"][0]) - found_share(of_rank("logits"))),
        golden.error(state.extra["queue"], official),
        # Each process has averages of its own there; here they are of all groups.
        *(
            golden.error(
                own[kind], np.mean([arrays[f"rank{r}_key_stats_{kind}"] for r in range(groups)], 0)
            )
            for kind in ("mean", "var")
        ),
    ]
    record_parity("moco_shuffle", recording.name, max(errors), 1e-10, "float64")


@pytest.mark.parametrize("recording", golden.cases("moco_queue"))
def test_queue(recording, record_parity):
    """CMC's: rows that need not be unit vectors, and a ring that turns inside a batch."""
    settings, arrays = recording.settings, recording.arrays
    mesh, queue = parallel.make_mesh(1), Queue(settings["queue"])

    @jax.jit
    def step(q, k, kept):
        def local(q, k, kept):
            loss = lambda q: queue_contrast(  # noqa: E731
                q, k, kept, temperature=settings["temperature"], normalize=False
            )[0]
            return *jax.value_and_grad(loss)(q), queue.push(kept, k)

        rows = P(parallel.AXIS)
        specs = {"in_specs": (rows, rows, P()), "out_specs": (P(), rows, P())}
        return jax.shard_map(local, mesh=mesh, **specs, check_vma=False)(q, k, kept)

    kept, errors = arrays["queue0"], []
    assert kept.shape == (settings["queue"], settings["dim"])
    for s in range(settings["steps"]):
        q, k = arrays[f"step{s}_q"], arrays[f"step{s}_k"]
        assert len(q) == settings["n"]
        loss, slope, kept = step(q, k, kept)
        official = oldest_first(arrays[f"step{s}_queue"].T, arrays[f"step{s}_pointer"])
        errors += [golden.error(loss, arrays[f"step{s}_loss"]), golden.error(kept, official)]
        errors.append(golden.error(slope, arrays[f"step{s}_grad"]))
    record_parity("moco_queue", recording.name, max(errors), 1e-12, "float64")
