"""Toy methods: each shows one thing that a method may need, on the tiny recipe of `train.tiny`."""

from __future__ import annotations

import contextlib
import itertools
import sys
import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from train import tiny

from simclr_jax import parallel, recipes
from simclr_jax.declaration import Declaration
from simclr_jax.frame import modules
from simclr_jax.frame.method import Method
from simclr_jax.frame.net import project
from simclr_jax.stages import encoder as encoders
from simclr_jax.train.step import make_step

_numbers = itertools.count()


def declare(make, **said) -> str:
    """Make a module of a method as `config.method` finds it, and return its name."""
    module: Any = types.ModuleType(f"toys.toy{next(_numbers)}")
    module.DECLARATION = Declaration(
        **{"title": "Toy", "reads": ("loss", "memory", "head"), **said}
    )
    module.make = make
    sys.modules[module.__name__] = module
    return module.__name__


def recipe(method: str, **fields):
    """Return the tiny recipe of a method, whose views do nothing but flip."""
    c = recipes.base(method)
    tiny.shrink(c)
    for view in c.augment.views.values():
        view.crop, view.jitter, view.grayscale, view.blur = False, 0.0, 0.0, 0.0
        view.solarize = 0.0
    for name, value in fields.items():
        c.update_from_flattened_dict({name.replace("__", "."): value})
    return c


class Small(nn.Module):
    """An encoder that compiles at once."""

    norm: Any
    features: int = 6

    @nn.compact
    def __call__(self, images, train, group=None):
        dtype = self.norm.keywords["param_dtype"]
        x = nn.Conv(self.features, (3, 3), (2, 2), use_bias=False, param_dtype=dtype, name="conv")(
            images.astype(dtype)
        )
        x = nn.relu(self.norm(name="bn")(x, train, group))
        return {f"block_group{i}": x for i in range(1, 5)} | {"h": x.mean((1, 2))}


class Stem(nn.Module):
    """The first convolution, under the name by which an encoder is known again."""

    dtype: Any

    @nn.compact
    def __call__(self, images):
        how = {"use_bias": False, "param_dtype": self.dtype, "name": "conv"}
        return nn.Conv(6, (3, 3), (2, 2), **how)(images.astype(self.dtype))


class Known(nn.Module):
    """An encoder that compiles at once, and whose runs can be read again."""

    norm: Any

    @nn.compact
    def __call__(self, images, train, group=None):
        x = Stem(self.norm.keywords["param_dtype"], name="stem_conv")(images)
        x = nn.relu(self.norm(name="bn")(x, train, group))
        h = x.mean((1, 2))
        return {f"block_group{i}": x for i in range(1, 5)} | {"h": h}


@contextlib.contextmanager
def known():
    """Replace the encoder by `Known`, also where runs are read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "encoder", lambda config: Known(modules.norm(config)))
        encoders._leaves.cache_clear()  # names and shapes of the other, by recipe
        yield
    encoders._leaves.cache_clear()


def shared(value: jax.Array, axis_name: str) -> jax.Array:
    """Return this device's share of a number that all devices have."""
    return value / lax.axis_size(axis_name)


def mean(rows: jax.Array, axis_name: str) -> jax.Array:
    """Return this device's share of the mean over the rows of all devices."""
    return jnp.sum(rows) / (rows.size * lax.axis_size(axis_name))


def simplest(config, setting, **changed) -> Method:
    """Return a method whose loss is the mean square of z, with parts of it changed."""

    def forward(net, views, extra, batch, keys):
        taps = project(net, views["views"])
        return {"taps": taps, "z": taps[-1]}

    def loss(outputs, extra, keys, axis_name):
        return mean(jnp.square(outputs["z"] - 1), axis_name), {}

    fields = {"forward": forward, "loss": loss}
    return Method(**{**fields, **changed})


def run(config, devices: int, steps: int = tiny.STEPS, state=None):
    """Train a recipe; return the states from the first on, and the metrics of each step."""
    stage, mesh = tiny.make_stage(config, devices)
    return go(stage, mesh, make_step(stage, mesh), tiny.timetable(config), steps, state)


def go(stage, mesh, step, timetable, steps: int = tiny.STEPS, state=None):
    """Take steps of a stage; see `run`."""
    state = stage.init() if state is None else parallel.replicate(mesh, state)
    states, metrics = [jax.tree.map(np.array, state)], []
    for chunk, batch in stage.batches(0, steps):
        epoch = timetable.new_epoch(chunk)
        if stage.before_epoch and epoch is not None:
            state = stage.before_epoch(state, epoch)
        state, found = step(state, batch)
        states.append(jax.tree.map(np.array, state))
        metrics.append(jax.tree.map(np.array, found))
    return states, metrics


def both(config, steps: int = tiny.STEPS, tolerance: float = 1e-9):
    """Train on eight devices and on one, see that they agree, and return what one gave."""
    one, eight = run(config, 1, steps), run(config, 8, steps)
    for a, b in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(initial=0), 1))
    return one
