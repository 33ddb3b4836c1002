"""Whole training steps, one after another, against the official ones: the code that users run.

The views are those of the recording, so everything behind them is compared: encoder, head, probe,
loss, gradients over devices, LARS, schedule of statistics. The recorded learning rates are fed,
which TensorFlow rounds to float32; the rate of the moving averages is theirs for the same reason.
"""

from __future__ import annotations

import dataclasses
import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sections

from simclr_jax import config as recipes
from simclr_jax import parallel
from simclr_jax.data.sources import Images
from simclr_jax.interop import official_names as official
from simclr_jax.optim import optimizers
from simclr_jax.stages import pretrain
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import plan as plans
from simclr_jax.train.stage import TrainState
from simclr_jax.train.step import make_step

# Two float64 programs; each step multiplies rounding errors by up to ten. A gradient without
# weight decay, a mean loss or another momentum are wrong by 1e-4 to 1.
TOLERANCE = 1e-10


def pretrains(recording: golden.Recording) -> bool:
    """Tell whether this is contrastive pretraining by LARS with the probe, if any, on h."""
    flags = recording.flags
    return (
        not recording.tf1
        and "pretrain" in recording.path.stem
        and flags.get("ft_proj_selector", 0) == 0
    )


def cases() -> list:
    """All of them under SIMCLR_PARITY=all; otherwise the shortest, since a step compiles long."""
    parameters = golden.cases("trajectory", pretrains)
    if golden.EVERYTHING or len(parameters) < 2:
        return parameters
    slow = pytest.mark.skip(reason="slow: runs under SIMCLR_PARITY=all")
    shortest = min(parameters, key=lambda p: (p.values[0].settings["steps"], p.id))
    return [
        p if p is shortest else pytest.param(*p.values, marks=slow, id=p.id) for p in parameters
    ]


def recipe(recording: golden.Recording) -> recipes.ConfigDict:
    flags, c = recording.flags, recipes.base()
    c.augment.placement = "host"  # which is how finished views come in
    c.data.image_size = flags["image_size"]
    c.model.depth, c.model.width = flags["resnet_depth"], float(flags["width_multiplier"])
    c.model.stem = "cifar" if flags["image_size"] <= 32 else "imagenet"
    c.bn.momentum, c.bn.sync = 1 - float(np.float32(0.1)), flags.get("global_bn", True)
    c.head.layers, c.head.dim = flags.get("num_proj_layers", 3), flags["proj_out_dim"]
    c.loss.temperature = flags["temperature"]
    c.optim.weight_decay = flags.get("weight_decay", 1e-6)
    c.optim.warmup_epochs = 0.0
    c.train.batch_size, c.train.steps = flags["train_batch_size"], recording.settings["steps"]
    c.train.dtype = "float64"
    c.eval.probe, c.eval.knn = flags.get("lineareval_while_pretraining", True), False
    return c


def views(recording: golden.Recording, step: int) -> np.ndarray:
    """Return `[n, 2, h, w, c]`: coarse noise, enlarged; the second view is near the first."""
    how = recording.settings["views"]
    both = recording.fill(how["name"].format(k=step), how["fill_shape"], how["law"])
    both[..., 3:] = np.float32(0.7) * both[..., :3] + np.float32(0.3) * both[..., 3:]
    repeat = recording.flags["image_size"] // both.shape[1]
    both = np.repeat(np.repeat(both, repeat, 1), repeat, 2)
    return np.stack([both[..., :3], both[..., 3:]], 1).astype(np.float64)


def make(recording: golden.Recording):
    """Return the stage, its first state by the recording's rule, the mesh and the names."""
    c = recipe(recording)
    mesh = parallel.make_mesh(recording.settings.get("num_replicas", 1))
    recipes.validate(c, mesh.size)
    images = Images(np.zeros((16, 8, 8, 3), np.uint8), np.zeros(16, np.int32), 10)  # never read
    inputs = Inputs(c, images, images)
    plan = plans.make(c, recording.settings["num_train_examples"])
    stage = pretrain.make_stage(c, plan, inputs, mesh)
    rates = jnp.asarray(recording.arrays["learning_rate"], jnp.float64)
    optimizer = optimizers.lars(
        lambda step: rates[step],
        momentum=c.optim.momentum,
        weight_decay=c.optim.weight_decay,
        trust_coefficient=c.optim.trust_coefficient,
    )
    stage = dataclasses.replace(stage, optimizer=optimizer)

    namer = official.namer(recording.tf1, c.bn.sync)
    names = namer.encoder(sections.architecture(recording)) | namer.head("nonlinear", c.head.layers)
    if c.eval.probe:
        names |= {n: (p[0], "probe", *p[2:]) for n, p in namer.classifier().items()}
    assert list(names) == list(recording.variables)
    tree = jax.tree.map(jnp.float64, official.to_tree(recording.filled(), names))
    state = TrainState(
        jnp.zeros((), jnp.int32),
        tree["params"],
        tree["batch_stats"],
        optimizer.init(tree["params"]),
    )
    return stage, parallel.replicate(mesh, state), mesh, names


@pytest.mark.x64
@pytest.mark.parametrize("recording", cases())
def test_steps_are_the_official_ones(recording, record_parity):
    stage, state, mesh, names = make(recording)
    step, arrays = make_step(stage, mesh), recording.arrays
    record = functools.partial(record_parity, "trajectory", recording.name)
    for k in range(recording.settings["steps"]):
        labels = arrays["labels"][k].astype(np.int32)
        batch = {"views": views(recording, k)[None], "label": labels[None]}
        state, metrics = step(state, parallel.shard(mesh, batch, axis=1))

        losses = {"train_contrast_loss64": "loss", "train_supervised_loss64": "probe_loss"}
        for theirs, ours in losses.items():
            if ours in metrics:
                record(golden.error(metrics[ours][0], arrays[theirs][k]), TOLERANCE)
        momentum = optax.tree_utils.tree_get(state.opt_state, "trace")
        values = {"params": state.params, "batch_stats": state.batch_stats}
        found = official.from_tree(values, names)
        # Optax keeps minus the rate times the gradient where the official buffer has plus.
        moved = {n: -x for n, x in official.from_tree({"params": momentum}, names).items()}
        for digest, key in zip(
            golden.digest(recording, recording.variables, found, moved),
            ("var64", "momentum64"),
            strict=True,
        ):
            stored = golden.Digests.stored(recording, f"step{k + 1}_{key}")
            record(digest.error(stored), TOLERANCE)
