"""Gradients that are summed over devices in bfloat16: what is sent, and what it costs in exactness.

The independent source is NumPy: the gradients of each device by itself, rounded and summed there.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from train import tiny

from simclr_jax import parallel
from simclr_jax.errors import UserError
from simclr_jax.planning import program
from simclr_jax.train import step as step_module
from simclr_jax.train.step import make_step
from simclr_jax.validation import validate

DEVICES = 8


def traced(reduce_dtype):
    """Return a step, its arguments, and how many parameters there are."""
    stage, mesh = tiny.make_stage(tiny.recipe(train__reduce_dtype=reduce_dtype), DEVICES)
    arguments = jax.eval_shape(stage.init), next(stage.batches(0, 1))[1]
    size = sum(leaf.size for leaf in jax.tree.leaves(arguments[0].params))
    return make_step(stage, mesh), arguments, size


def step_taken(devices, reduce_dtype):
    """Return what one step leaves on the host: gradients, the state, and metrics."""
    stage, mesh = tiny.make_stage(tiny.recipe(train__reduce_dtype=reduce_dtype), devices)
    stage = dataclasses.replace(stage, optimizer=tiny.recording(stage.optimizer))
    first = tiny.perturbed(stage.init())
    first = first._replace(opt_state=stage.optimizer.init(first.params))
    batch = next(stage.batches(0, 1))[1]
    state, metrics = make_step(stage, mesh)(parallel.replicate(mesh, first), batch)
    return jax.tree.map(np.asarray, (state.opt_state[0], state, metrics))


taken = functools.cache(step_taken)


def of_each_device():
    """Return the gradients before they are summed, `[DEVICES, ...]`, in float32."""

    class Telling:
        def __getattr__(self, name):
            return getattr(lax, name)

        def psum(self, both, axis):
            gradients, metrics = lax.psum(both, axis)
            each = jax.tree.map(lambda g: parallel.everyone(g[None]), both[0])
            return gradients, metrics | {"each": each}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "lax", Telling())
        each = step_taken(DEVICES, "float32")[2]["each"]
    return jax.tree.map(lambda g: g[0], each)


def error(found, want):
    """Return the length of the difference of two trees beside that of the second."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True))
    wrong = sum(np.sum((a - b).astype(np.float64) ** 2) for a, b in pairs)
    return float(np.sqrt(wrong / sum(np.sum(b.astype(np.float64) ** 2) for _, b in pairs)))


def rounded(x):
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.mark.slow
def test_the_sum_is_that_of_rounded_gradients():
    """Within what the order and the precision of the sum itself leave open: 8 terms, 8 bits."""
    narrow, wide = taken(DEVICES, "bfloat16")[0], taken(DEVICES, "float32")[0]
    parts = of_each_device()
    assert error(jax.tree.map(lambda g: g.sum(0), parts), wide) < 1e-5
    want = jax.tree.map(lambda g: rounded(rounded(g).sum(0)), parts)
    assert error(narrow, want) < error(narrow, wide)
    assert 1e-4 < error(narrow, wide) < 2**-8
    # A ring may round after every addition: the sum is then still as near.
    in_turn = jax.tree.map(
        lambda g: functools.reduce(lambda a, b: rounded(a + b), rounded(g)), parts
    )
    assert error(in_turn, wide) < 2**-7


@pytest.mark.slow
def test_metrics_and_statistics_are_not_touched():
    (_, narrow, metrics), (_, wide, want) = taken(DEVICES, "bfloat16"), taken(DEVICES, "float32")
    of_gradient = {"gradient_norm", "update_norm"}
    for name in want.keys() - of_gradient:
        np.testing.assert_array_equal(metrics[name], want[name], err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, narrow.batch_stats, wide.batch_stats)
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.params)} == {np.dtype(np.float32)}


@pytest.mark.slow
def test_on_one_device_nothing_is_sent_and_nothing_rounded():
    jax.tree.map(np.testing.assert_array_equal, taken(1, "bfloat16"), taken(1, "float32"))


REDUCED = re.compile(r"stablehlo\.all_reduce.*?^ *\}\) : \(.*?\) -> (.*?)$", re.S | re.M)


def all_reduced(step, arguments):
    """Return how many numbers of each type the all-reduces of the lowered step return."""
    found = collections.Counter()
    for types in REDUCED.findall(step.lower(*arguments).as_text()):
        for shape, dtype in re.findall(r"tensor<((?:\d+x)*)(\w+)>", types):
            found[dtype] += math.prod(int(n) for n in shape.split("x") if n)
    return found


def test_half_the_bytes_of_gradients_are_sent_and_all_else_as_it_was():
    """Read in the program that JAX hands to the compiler, and as a plan counts it."""
    (wide_step, arguments, size), (narrow_step, _, _) = traced("float32"), traced("bfloat16")
    wide, narrow = (all_reduced(step, arguments) for step in (wide_step, narrow_step))
    assert wide["bf16"] == 0 and narrow["bf16"] == size
    assert {**wide, "f32": wide["f32"] - size, "bf16": size} == narrow
    wide, narrow = (
        program.collectives(program.read(step, *arguments)) for step in (wide_step, narrow_step)
    )
    # A statistic that is a gradient too is sent once in float32, and then in both.
    assert 0.99 * 2 * size < wide.pop("all-reduce") - narrow.pop("all-reduce") <= 2 * size
    assert wide == narrow


def test_bfloat16_is_refused_of_float64():
    config = tiny.recipe(train__reduce_dtype="bfloat16", train__dtype="float64")
    with pytest.raises(UserError, match=r"train.reduce_dtype is bfloat16.*reduce_dtype=float32"):
        validate(config, DEVICES)
