"""Every method alike: on eight devices as on one, in parts as at once, the probe watching only.

Those that can use local crops are asked with them too. None is known here by name; `smallest.py`
has their smallest recipes.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
import smallest
from frame import toys
from train import tiny

from simclr_jax import parallel, validation
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.stages import pretrain
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train.step import make_step

pytestmark = pytest.mark.x64

LOCAL = [pytest.param(case, marks=pytest.mark.slow) for case in smallest.WITH_LOCAL]
PARTS = 2  # of a batch, of half of its normalisation groups each
CLOSE = 1e-9  # rounding of float64, after three steps


@pytest.fixture(scope="module", autouse=True)
def small():
    """Replace the encoder by one that compiles at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))
        yield


def recipe(method, **fields):
    return smallest.recipe(method, train__dtype="float64", **fields)


@functools.cache
def made(method):
    """Return the stage on one device, the whole batch at once, its mesh and its step."""
    stage, mesh = tiny.make_stage(recipe(method), 1)
    return stage, mesh, make_step(stage, mesh)


@functools.cache
def on_one(method):
    """Return states and metrics of a run of that stage."""
    return toys.go(*made(method), tiny.timetable(recipe(method)))


def compare(found, want):
    """See that two runs agree: all of their states, and the metrics of all steps."""
    (states, metrics), (expected, said) = found, want
    assert metrics[0].keys() == said[0].keys()
    for a, b in zip(
        jax.tree.leaves((states, metrics)), jax.tree.leaves((expected, said)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=CLOSE * max(np.abs(b).max(initial=0), 1))


def moved(before, after):
    """Tell whether anything in a tree has changed."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


@pytest.mark.slow  # of methods that have a test of their own of this, `make test` runs that one
@pytest.mark.parametrize("method", smallest.CASES)
def test_eight_devices_do_what_one_does(method):
    """With as many normalisation groups on either: states, what is kept beside them, metrics."""
    want = on_one(method)
    compare(toys.run(recipe(method), 8), want)
    first, last = want[0][0], want[0][-1]
    assert moved(first.params["encoder"], last.params["encoder"])
    assert moved(first.extra, last.extra) or not first.extra


@functools.cache
def refusal(method):
    """Return why the method takes no batch in parts, None if it does."""
    c = recipe(method)
    c.train.accumulate = PARTS
    try:
        validation.validate(c, 1)
        inputs = Inputs(c, tiny.sorted_images(), tiny.sorted_images())
        stage = pretrain.make_stage(c, tiny.timetable(c), inputs, parallel.make_mesh(1))
        jax.eval_shape(stage.init)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("method", smallest.CASES)
def test_a_batch_in_parts_is_refused_in_one_line_or_is_to_be_exact(method):
    """It names the field and what to set; methods that are not refused are compared below."""
    said = refusal(method)
    if said is not None:
        assert "\n" not in said
        assert f"train.accumulate is {PARTS}" in said and "--config.train.accumulate=1" in said


@pytest.mark.slow
@pytest.mark.parametrize("method", smallest.CASES)
def test_a_batch_in_parts_is_the_batch_at_once(method):
    if said := refusal(method):
        pytest.skip(f"refused: {said}")
    compare(toys.run(recipe(method, train__accumulate=PARTS), 1), on_one(method))


@pytest.mark.parametrize("method", [*smallest.METHODS, *LOCAL])
def test_the_probe_moves_nothing_but_itself(method):
    """Two probes that say different things leave the same network, to the bit, after a step."""
    stage, mesh, step = made(method)
    start = tiny.perturbed(stage.init())
    other = start._replace(
        params=start.params | {"probe": jax.tree.map(lambda x: 0.5 - x, start.params["probe"])}
    )
    _, batch = next(stage.batches(0, 1))
    (a, said), (b, also) = (
        step(parallel.replicate(mesh, state), batch) for state in (start, other)
    )
    assert said["loss"][0] == also["loss"][0] and said["probe_loss"][0] != also["probe_loss"][0]
    for state in (a, b):
        assert all(moved(start.params[part], state.params[part]) for part in ("encoder", "probe"))
    assert moved(a.params.pop("probe"), b.params.pop("probe"))
    assert not moved((a.params, a.batch_stats, a.extra), (b.params, b.batch_stats, b.extra))
