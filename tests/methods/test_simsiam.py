"""SimSiam on eight devices as on one; what learns at which rate, what does not; its recipe."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util
from frame import toys
from train import tiny

from simclr_jax import declaration, parallel, recipes, validation
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.train.step import make_step

pytestmark = pytest.mark.x64

STILL = ("head", "dense2", "bias")  # of the last of two layers


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


def recipe(**fields):
    fixed = {"head__hidden": 7, "head__dim": 5, "simsiam__hidden": 3, "train__dtype": "float64"}
    fixed |= {"optim__momentum": 0.0, "optim__weight_decay": 0.25}
    return toys.recipe("simsiam", **fixed | fields)


def test_eight_devices_do_what_one_does():
    """And the first loss, of a network that has learned nothing, is about the chance declared."""
    states, metrics = toys.both(recipe(head__dim=64))
    assert states[0].extra == {}
    said = declaration.find("simsiam")
    assert metrics[0]["loss"][0] == pytest.approx(said.chance(None), abs=0.1)
    assert said.floor(None) == -1


def test_the_bias_before_the_last_normalisation_keeps_its_first_value():
    """Decay acts on all others, and would pull at this one too."""
    start = tiny.perturbed(toys.run(recipe(), 1, steps=0)[0][0])
    states, _ = toys.run(recipe(), 1, state=start)
    before, after = (traverse_util.flatten_dict(s.params) for s in (states[0], states[-1]))
    np.testing.assert_array_equal(before[STILL], after[STILL])
    assert np.abs(before[STILL]).min() > 0
    assert all(np.abs(before[path] - after[path]).max() > 1e-3 for path in before if path != STILL)


@pytest.mark.parametrize("constant", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_rate_of_the_predictor_stays_where_the_others_fall(constant):
    """Each step is the rate times gradient and decay, of every parameter, those of norms included.

    An epoch is one step here.
    """
    fields = {"train__steps": None, "train__epochs": 3.0, "train__batch_size": tiny.BATCH * 3}
    c = recipe(simsiam__constant_rate=constant, **fields)
    stage, mesh = tiny.make_stage(c, 1)
    stage = dataclasses.replace(stage, optimizer=tiny.recording(stage.optimizer))
    state = tiny.perturbed(stage.init())
    state = state._replace(opt_state=stage.optimizer.init(state.params))
    state, step = parallel.replicate(mesh, state), make_step(stage, mesh)
    falls = 0.3 * (1 + np.cos(np.pi * np.arange(3) / 3)) / 2
    for (_, batch), rate in zip(stage.batches(0, 3), falls, strict=True):
        before = jax.tree.map(np.array, state.params)
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["lr"][0], rate, rtol=1e-12)
        for path, w in traverse_util.flatten_dict(before).items():
            if path == STILL:
                continue
            after, gradient = (
                traverse_util.flatten_dict(tree)[path]
                for tree in (state.params, state.opt_state[0])
            )
            own = 0.3 if constant and path[0] == "predictor" else rate
            want = w - own * (gradient + c.optim.weight_decay * w)
            np.testing.assert_allclose(after, want, rtol=1e-9, atol=1e-12, err_msg=str(path))


def test_without_a_projection_there_is_nothing_to_predict():
    with pytest.raises(UserError, match=r"head.kind is none, but simsiam.*head.kind=mlp"):
        validation.validate(recipe(head__kind="none"), 1)
    with pytest.raises(UserError, match=r"simsiam.hidden is 0: it must be 1 or more"):
        validation.validate(recipe(simsiam__hidden=0), 1)


def test_the_recipe_is_that_of_the_paper():
    c = recipes.base("simsiam")
    assert (c.head.kind, c.head.layers, c.head.hidden, c.head.dim) == ("mlp", 3, 0, 2048)
    assert (c.head.bias, c.head.norm, c.simsiam.hidden) == ("last", "all_plain", 512)
    o = c.optim
    assert (o.name, o.nesterov, o.momentum, o.base_lr) == ("sgd", False, 0.9, 0.05)
    assert (o.weight_decay, o.decayed, o.warmup_epochs, o.rate_per) == (1e-4, "all", 0.0, "epoch")
    for view in c.augment.views.values():
        assert [view[n] for n in ("brightness", "contrast", "saturation", "hue")] == [0.4] * 3 + [
            0.1
        ]
        assert (view.area_min, view.blur, view.solarize) == (0.2, 0.5, 0.0)
