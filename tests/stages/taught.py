"""The smallest recipes of the stages that learn a classifier, and their steps."""

from __future__ import annotations

import functools

import jax
import numpy as np
from train import tiny

from simclr_jax import parallel, recipes, validation
from simclr_jax.stages import labels, run
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import timetable as timetables
from simclr_jax.train.step import make_step


def recipe(stage="finetune", **fields):
    """Return a recipe with other `fields`, their dots written as double underscores."""
    c = tiny.recipe(eval__probe=False, eval__knn=False, optim__weight_decay=0.1)
    c.stage = stage
    recipes.crop_and_flip(c)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c


def make_stage(config, devices=1, train=None):
    """Return the stage of a recipe over the first `devices` devices, and their mesh."""
    mesh = parallel.make_mesh(devices)
    validation.validate(config, devices)
    train = tiny.sorted_images(config.seed) if train is None else train
    inputs = Inputs(config, labels.restrict(config, train), train.take(np.arange(21)))
    timetable = timetables.make(config, len(inputs.train))
    return run.STAGES[config.stage](config, timetable, inputs, mesh), mesh


@functools.cache
def initial_state(dtype="float32"):
    """Return the state that fine-tuning from scratch starts with, on one device."""
    return make_stage(recipe(train__dtype=dtype))[0].init()


def first_state(dtype="float32"):
    """Return a host state with random parameters; the optimiser's is to be made by each stage."""
    return tiny.perturbed(initial_state(dtype))


def start(stage, mesh, dtype="float32"):
    """Return that state, replicated, as a first one of `stage`."""
    state = first_state(dtype)
    made = jax.jit(stage.optimizer.init)(state.params)
    return parallel.replicate(mesh, state._replace(opt_state=jax.device_get(made)))


def trained(stage, mesh, steps=tiny.STEPS, dtype="float32"):
    """Return state and metrics `[steps]`, on the host, after some steps from `start`."""
    step, state, metrics = make_step(stage, mesh), start(stage, mesh, dtype), []
    for _, batch in stage.batches(0, steps):
        state, found = step(state, batch, stage.frozen)
        metrics.append(found)
    metrics = jax.tree.map(lambda *each: np.concatenate(each), *metrics)
    return jax.tree.map(np.asarray, (state, metrics))


def lowered(stage, mesh):
    """Return the program of one step as text, before it is compiled."""
    state = jax.eval_shape(stage.init)
    batch = next(stage.batches(0, 1))[1]
    return make_step(stage, mesh).lower(state, batch, stage.frozen).as_text()


def convolutions(program):
    """Count the convolutions of a lowered program."""
    return program.count("stablehlo.convolution")


def close(found, want, tolerance):
    """Assert that each array agrees, relative to its largest number."""

    def error(a, b):
        return np.max(np.abs(np.subtract(a, b, dtype=np.float64))) / (np.max(np.abs(b)) or 1)

    errors = jax.tree_util.tree_leaves_with_path(jax.tree.map(error, found, want))
    path, worst = max(errors, key=lambda item: item[1])
    assert worst < tolerance, (jax.tree_util.keystr(path), worst)
