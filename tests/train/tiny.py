"""The smallest recipe that has every part of a real one, and images whose shards differ."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simclr_jax import parallel, recipes, validation
from simclr_jax.data import order
from simclr_jax.data.sources import Images
from simclr_jax.stages import pretrain
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import timetable as timetables

BATCH = 16
STEPS = 3
CLASSES = 4


def recipe(**fields):
    """Return the recipe with other `fields`, their dots written as double underscores."""
    c = recipes.base()
    shrink(c)
    for name, value in fields.items():
        c.update_from_flattened_dict({name.replace("__", "."): value})
    return c


def shrink(c):
    """Make a recipe the smallest one."""
    c.data.image_size = 8
    c.model.depth, c.model.width, c.model.stem = 10, 1 / 16, "cifar"
    if c.head.kind != "none":
        c.head.layers, c.head.dim = 2, 5
    c.optim.base_lr, c.optim.lr_scaling, c.optim.warmup_epochs = 0.3, "none", 0.0
    c.train.batch_size, c.train.steps = BATCH, STEPS
    c.eval.knn_k, c.eval.few_labels = 5, 2


def timetable(config):
    """Return the run of a recipe on `sorted_images` in numbers."""
    return timetables.make(config, BATCH * STEPS)


def sorted_images(seed: int = 0, count: int = BATCH * STEPS) -> Images:
    """Return images that come batch by batch from darkest to brightest, in one epoch.

    Each device's rows so differ from every other's in mean and spread, which is when statistics of
    some rows cannot pass for those of all.
    """
    random = np.random.default_rng(0)
    place = np.arange(count) % BATCH  # in its batch
    level = 10 + 13.0 * place[:, None, None, None]
    noise = random.normal(size=(count, 10, 10, 3)) * (1 + place % 8)[:, None, None, None]
    in_order = np.clip(np.rint(level + 4 * noise), 0, 255).astype(np.uint8)
    rows = order.examples(seed, np.arange(count), count)
    pixels, labels = np.empty_like(in_order), np.empty(count, np.int32)
    pixels[rows], labels[rows] = in_order, place * CLASSES // BATCH
    return Images(pixels, labels, CLASSES)


def make_stage(config, devices: int):
    """Return the pretraining stage of a recipe over the first `devices` devices, and their mesh."""
    mesh = parallel.make_mesh(devices)
    validation.validate(config, devices)
    train = sorted_images(config.seed)
    inputs = Inputs(config, train, train.take(np.arange(21)))
    return pretrain.make_stage(config, timetables.make(config, len(train)), inputs, mesh), mesh


def perturbed(state):
    """Return a state, on the host, whose every parameter is random, the zero scales included."""
    random = np.random.default_rng(1)

    def perturb(leaf):
        leaf = np.asarray(leaf)
        return (leaf + 0.3 * random.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(np.asarray, state)._replace(params=jax.tree.map(perturb, state.params))


def recording(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the optimiser with the gradients it was last given at the front of its state."""

    def init(params):
        return jax.tree.map(jnp.zeros_like, params)

    return optax.chain(optax.GradientTransformation(init, lambda g, *_: (g, g)), optimizer)
