"""BYOL on eight devices as on one; its views, its target and its recipe."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from frame import toys
from train import tiny

from simclr_jax import recipes
from simclr_jax.frame import modules
from simclr_jax.train.step import make_step

pytestmark = pytest.mark.x64

PARTS = ("encoder", "head")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


def recipe(**fields):
    fixed = {"head__hidden": 7, "head__dim": 5, "byol__hidden": 6, "byol__momentum": 0.6}
    return toys.recipe("byol", **{"train__dtype": "float64", **fixed, **fields})


def test_eight_devices_do_what_one_does():
    states, metrics = toys.both(recipe())
    # From 0.6 to 1 as a cosine over three steps.
    want = 1 - 0.4 * (np.cos(np.pi * np.arange(3) / 3) + 1) / 2
    np.testing.assert_allclose([m["target_momentum"][0] for m in metrics], want, rtol=1e-12)
    for old, new, tau in zip(states[:-1], states[1:], want, strict=True):
        for part in PARTS:
            before, after, online = (
                tree["conv" if part == "encoder" else "dense1"]["kernel"]
                for tree in (
                    old.extra["target"]["params"][part],
                    new.extra["target"]["params"][part],
                    new.params[part],
                )
            )
            np.testing.assert_allclose(after, tau * before + (1 - tau) * online, rtol=1e-12)
    assert set(states[0].extra["target"]["params"]) == set(PARTS)


def test_each_view_is_normalised_by_its_own_statistics():
    """And averages move twice a step: once for each view."""
    c = recipe(bn__momentum=0.5, optim__base_lr=1e-12)
    stage, mesh = tiny.make_stage(c, 1)
    _, batch = next(stage.batches(0, 1))
    state = stage.init()
    params, start = state.params["encoder"]["conv"]["kernel"], state.batch_stats["encoder"]["bn"]
    kernel, start = np.asarray(params), {k: np.asarray(v) for k, v in start.items()}
    state, _ = make_step(stage, mesh)(state, batch)
    views = jax.jit(stage.look)({name: rows[0] for name, rows in batch.items()})["views"]
    module = toys.Small(modules.norm(c))
    mean = start["mean"]
    for view in (0, 1):
        images = np.asarray(views[:, view])
        conv = module.apply(
            {
                "params": {
                    "conv": {"kernel": kernel},
                    "bn": {"scale": np.ones(6), "bias": np.zeros(6)},
                },
                "batch_stats": {"bn": {"mean": np.zeros(6), "var": np.ones(6) - c.bn.epsilon}},
            },
            images,
            train=False,
            capture_intermediates=True,
            mutable=["intermediates"],
        )[1]["intermediates"]["conv"]["__call__"][0]
        mean = 0.5 * mean + 0.5 * np.asarray(conv).mean((0, 1, 2))
    np.testing.assert_allclose(state.batch_stats["encoder"]["bn"]["mean"], mean, rtol=1e-9)


def test_the_recipe_is_that_of_the_paper():
    c = recipes.base("byol")
    first, second = c.augment.views.first, c.augment.views.second
    assert (first.blur, second.blur, first.solarize, second.solarize) == (1.0, 0.1, 0.0, 0.2)
    strengths = [first[name] for name in ("brightness", "contrast", "saturation", "hue")]
    assert (
        strengths
        == [0.4, 0.4, 0.2, 0.1]
        == [second[n] for n in ("brightness", "contrast", "saturation", "hue")]
    )
    assert (c.head.kind, c.head.layers, c.head.hidden, c.head.dim) == ("mlp", 2, 4096, 256)
    assert c.byol.momentum == 0.996 and c.byol.hidden == 4096
    assert c.model.input == "normalised"
