"""SimSiam against recordings of facebookresearch/simsiam: its loss, whole training steps.

The recorded backbone is the identity. It is our method, through `make_step`, that takes the steps.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import golden
import jax
import numpy as np
import pytest
from flax import traverse_util
from train import tiny

from simclr_jax import parallel, recipes
from simclr_jax.data.sources import Images
from simclr_jax.frame import modules
from simclr_jax.losses.simsiam import negative_cosine
from simclr_jax.stages import pretrain
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import timetable as timetables
from simclr_jax.train.step import make_step

pytestmark = pytest.mark.x64

# Official modules and ours.
NAMES = {
    "encoder.fc.0": ("head", "dense1"),
    "encoder.fc.1": ("head", "bn1"),
    "encoder.fc.3": ("head", "dense2"),
    "encoder.fc.4": ("head", "bn2"),
    "encoder.fc.6": ("head", "dense3"),
    "encoder.fc.7": ("head", "bn3"),
    "predictor.0": ("predictor", "dense1"),
    "predictor.1": ("predictor", "bn1"),
    "predictor.3": ("predictor", "dense2"),
}
STILL = ("head", "dense3", "bias")


class Identity(nn.Module):
    """The recorded backbone: what it is given, `[n, 1, 1, width]`, is h."""

    @nn.compact
    def __call__(self, images):
        h = images.reshape(len(images), -1)
        return dict.fromkeys(["h", *(f"block_group{i}" for i in range(1, 5))], h)


def tree(recording, prefix):
    """Return the arrays that a recording has below `prefix`, by our names."""
    found = {}
    for name, array in recording.arrays.items():
        if not name.startswith(f"{prefix}/"):
            continue
        module, leaf = name.removeprefix(f"{prefix}/").rsplit(".", 1)
        part, ours = NAMES[module]
        normalises = ours.startswith("bn")
        leaf = {
            "weight": "scale" if normalises else "kernel",
            "running_mean": "mean",
            "running_var": "var",
        }.get(leaf, leaf)
        found[part, ours, leaf] = array.T
    return traverse_util.unflatten_dict(found)


def statistics(recording):
    """Return the moving averages. PyTorch's are of variances times n / (n - 1), ours are not."""
    s = recording.settings
    start, biased = (1 - s["bn_momentum"]) ** (2 * s["steps"]), (s["n"] - 1) / s["n"]
    found = traverse_util.flatten_dict(tree(recording, f"stats{s['steps']}"))
    return traverse_util.unflatten_dict(
        {
            path: start + (array - start) * biased if path[-1] == "var" else array
            for path, array in found.items()
        }
    )


def worst(found, official):
    """Return the largest error of any array of a tree, relative to its largest number.

    Arrays of numbers that are rounding beside the largest one of the tree count as that large.
    """
    assert jax.tree.structure(found) == jax.tree.structure(official)
    floor = 1e-3 * max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(official))
    errors = jax.tree.map(lambda a, b: golden.error(a, b, floor), found, official)
    return max(jax.tree.leaves(errors))


def recipe(settings):
    """Return the recipe of a recording, whose epochs are of one step."""
    c = recipes.base("simsiam")
    c.data.image_size = 1
    c.head.dim, c.simsiam.hidden = settings["dim"], settings["pred_dim"]
    c.simsiam.constant_rate = settings["fix_pred_lr"]
    c.bn.momentum, c.bn.epsilon = 1 - settings["bn_momentum"], settings["bn_eps"]
    c.optim.base_lr, c.optim.lr_scaling = settings["base_rate"], "none"
    c.optim.momentum, c.optim.weight_decay = settings["momentum"], settings["weight_decay"]
    c.train.batch_size, c.train.epochs = settings["n"], float(settings["epochs"])
    c.train.dtype = "float64"
    c.eval.probe = c.eval.knn = False
    return c


@pytest.mark.parametrize("recording", golden.cases("simsiam"))
def test_steps(recording, monkeypatch, record_parity):
    settings, arrays = recording.settings, recording.arrays
    monkeypatch.setattr(modules, "encoder", lambda config: Identity())
    c, mesh = recipe(settings), parallel.make_mesh(1)
    images = Images(np.zeros((settings["n"], 1, 1, settings["width"]), np.uint8), None, 0)
    timetable = timetables.make(c, settings["n"])
    stage = pretrain.make_stage(c, timetable, Inputs(c, images, images), mesh)
    stage = dataclasses.replace(stage, optimizer=tiny.recording(stage.optimizer))

    state, params = jax.tree.map(np.asarray, stage.init()), tree(recording, "var0")
    assert jax.tree.map(np.shape, state.params) == jax.tree.map(np.shape, params)
    state = state._replace(params=params, opt_state=stage.optimizer.init(params))
    step, state, errors = make_step(stage, mesh), parallel.replicate(mesh, state), []
    for k in range(settings["steps"]):
        state, metrics = step(state, batch_of(recording, k, mesh))
        errors.append(golden.error(metrics["loss"][0], arrays[f"step{k}_loss"]))
        errors.append(golden.error(metrics["lr"][0], arrays["rates"][k, 0]))
        if k == 0:
            gradients = jax.tree.map(np.asarray, state.opt_state[0])
            del gradients[STILL[0]][STILL[1]][STILL[2]]  # officially there is none
            errors.append(worst(gradients, tree(recording, "grad0")))
    found = jax.tree.map(np.asarray, state.params)
    errors.append(worst(found, tree(recording, f"var{settings['steps']}")))
    errors.append(worst(state.batch_stats, statistics(recording)))
    np.testing.assert_array_equal(found["head"]["dense3"]["bias"], params["head"]["dense3"]["bias"])

    own = pretrain.make_method(c, timetable, images).rates
    assert (arrays["rates"].shape[1] == 2) == bool(own) == settings["fix_pred_lr"]
    for rate in own.values():
        of_predictor = [rate(k) for k in range(settings["steps"])]
        errors.append(golden.error(of_predictor, arrays["rates"][:, 1]))
    record_parity("simsiam", recording.name, max(errors), 1e-10, "float64")


def batch_of(recording, k, mesh):
    """Return the recorded batch of a step, as placement `host` hands it over."""
    arrays, n = recording.arrays, recording.settings["n"]
    views = np.stack([arrays[f"step{k}_x1"], arrays[f"step{k}_x2"]], 1)
    batch = {
        "views/views": views[:, :, None, None],
        "example": np.arange(n, dtype=np.int32),
        "position": np.zeros((n, 2), np.uint32),
    }
    return parallel.shard(mesh, {name: array[None] for name, array in batch.items()}, axis=1)


@pytest.mark.parametrize("recording", golden.cases("simsiam_loss"))
def test_loss(recording, record_parity):
    arrays = recording.arrays

    @jax.jit
    def loss(p1, p2):
        to_second, to_first = (negative_cosine(p, arrays[z]) for p, z in ((p1, "z2"), (p2, "z1")))
        return (to_second + to_first) / 2

    found, gradients = jax.value_and_grad(loss, (0, 1))(arrays["p1"], arrays["p2"])
    errors = [golden.error(found, arrays["loss"])]
    errors += [golden.error(g, arrays[f"grad{i}"]) for i, g in enumerate(gradients, start=1)]
    record_parity("simsiam_loss", recording.name, max(errors), 1e-12, "float64")
