"""MoCo on eight devices as on one; its average, its queue, its groups, its chance, its recipes."""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smallest
from frame import toys
from jax.sharding import PartitionSpec as P
from recipes.freeze import resolved
from train import tiny

from simclr_jax import declaration, parallel, recipes, validation
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.net import Rows
from simclr_jax.stages import pretrain
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import timetable as timetables
from simclr_jax.train.stage import Update

PARTS = ("encoder", "head")
SIZE = tiny.BATCH + 8  # the second batch pushes out half of the first, and all that was random


@pytest.fixture
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


def recipe(**fields):
    fixed = {"moco__queue": SIZE, "moco__momentum": 0.6, "bn__groups": 8}
    return toys.recipe("moco", **{**fixed, "optim__base_lr": 0.1, **fields})


@pytest.mark.x64
def test_eight_devices_do_what_one_does(small, monkeypatch):
    """With eight groups on either, shuffled; the average moves by its law, the queue by its own."""
    drawn = []
    shuffled = Rows.shuffled

    def noted(rows, key, batch):
        group = shuffled(rows, key, batch)
        drawn.append((np.shape(group), batch))
        return group

    monkeypatch.setattr(Rows, "shuffled", noted)
    states, _ = toys.both(recipe(train__dtype="float64"), tolerance=1e-12)
    assert {batch for _, batch in drawn} == {tiny.BATCH}
    assert {shape for shape, _ in drawn} == {(2,), (tiny.BATCH,)}  # as made; on 8 and on 1
    start = states[0].extra["queue"]
    np.testing.assert_allclose(np.linalg.norm(start, axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(states[1].extra["queue"][:8], start[-8:])
    for old, new in itertools.pairwise(states):
        for part in PARTS:
            want = jax.tree.map(
                lambda a, b: 0.6 * a + 0.4 * b,
                old.extra["average"]["params"][part],
                new.params[part],
            )
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-12),
                new.extra["average"]["params"][part],
                want,
            )
        before, after = old.extra["queue"], new.extra["queue"]
        np.testing.assert_array_equal(after[: SIZE - tiny.BATCH], before[tiny.BATCH :])
        np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, rtol=1e-12)
    assert set(states[0].extra["average"]["params"]) == set(PARTS)
    own, network = (
        tree["encoder"]["bn"]["var"]
        for tree in (states[-1].extra["average"]["batch_stats"], states[-1].batch_stats)
    )
    assert not np.allclose(own, network, rtol=1e-6)


@pytest.mark.x64
def test_keys_are_normalised_in_shuffled_groups(small, monkeypatch):
    """Not shuffled, the first keys would be others; queries are never shuffled."""
    plain, _ = toys.run(recipe(train__dtype="float64"), 1, steps=1)
    as_they_lie = lambda rows, key, batch: rows.group  # noqa: E731
    monkeypatch.setattr(Rows, "shuffled", as_they_lie)
    still, _ = toys.run(recipe(train__dtype="float64"), 1, steps=1)
    keys = [states[1].extra["queue"][-tiny.BATCH :] for states in (plain, still)]
    assert np.abs(keys[0] - keys[1]).max() > 1e-3
    np.testing.assert_allclose(*(s[1].batch_stats["encoder"]["bn"]["mean"] for s in (plain, still)))


@pytest.mark.parametrize("groups, parts", [(8, 2), (4, 4)])
def test_a_batch_in_parts_is_refused_by_name(small, groups, parts):
    """Also where a part holds one group, in which nothing could be shuffled."""
    refused = rf"accumulate is {parts}, but the method shuffles.*accumulate=1"
    c = recipe(bn__groups=groups, train__accumulate=parts)
    with pytest.raises(UserError, match=refused):
        validation.validate(c, 1)
    inputs = Inputs(c, tiny.sorted_images(), tiny.sorted_images())
    stage = pretrain.make_stage(c, tiny.timetable(c), inputs, parallel.make_mesh(1))
    with pytest.raises(UserError, match=refused):
        jax.eval_shape(stage.init)


@pytest.mark.slow
def test_with_one_group_there_is_nothing_to_shuffle(small):
    states, _ = toys.run(recipe(bn__groups=1), 8, steps=1)
    assert np.all(np.isfinite(states[-1].extra["queue"]))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"moco__queue": 15}, "moco.queue is 15, less than one batch: set 16 or more"),
        ({"moco__queue": 0}, "moco.queue is 0: it must be 1 or more"),
        ({"moco__momentum": 1.0}, r"moco.momentum is 1.0: it must be in \[0, 1\)"),
        ({"bn__groups": 0}, "among which moco cannot shuffle: .* --config.bn.groups=8"),
        ({"memory__size": 64}, "memory.size is 64, but method moco does not read it"),
        ({"loss__scale": "mean"}, "loss.scale is mean, but method moco does not read it"),
    ],
)
def test_what_it_cannot_do_is_said_in_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        validation.validate(recipe(**fields), 8)


def test_a_queue_need_not_be_a_multiple_of_the_batch_and_may_be_one_batch():
    for size in (tiny.BATCH, tiny.BATCH + 1, 1000):
        validation.validate(recipe(moco__queue=size), 8)


# What a loss says ---------------------------------------------------------------------------------


def losses(config, embed, steps):
    """Return the loss of each step of a method whose two networks embed by `embed`, two devices."""
    batch, mesh = config.train.batch_size, parallel.make_mesh(2)
    setting = smallest.setting(10**6, 0, batch)
    method = declaration.module("moco").make(config, setting)

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(parallel.AXIS), P()), out_specs=(P(), P())
    )
    def run(example, extra):
        z = embed(example)
        outputs = {"query": z, "key": z / jnp.linalg.norm(z, axis=-1, keepdims=True)}
        loss, _ = method.loss(outputs, extra, Keys(0, 0), parallel.AXIS)
        extra = method.next(extra, Update({}, {}, {}, outputs, 0))
        return jax.lax.psum(loss, parallel.AXIS), extra

    extra = method.first({"key": embed(jnp.arange(2))}, jax.random.key(0))
    found = []
    for step in range(steps):
        loss, extra = run(step * batch + jnp.arange(batch), extra)
        found.append(float(loss))
    return np.array(found)


def equal(example):
    return jnp.broadcast_to(jnp.arange(1.0, 513), (len(example), 512))


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_embeddings_that_are_all_equal_have_the_loss_declared(temperature):
    """In each step while their keys push out the random ones, and after: chance is where it ends.

    Random directions of 512 dimensions are at right angles but for a few hundredths.
    """
    config = recipe(moco__queue=72, loss__temperature=temperature)
    said, steps = declaration.find("moco"), 8
    found = losses(config, equal, steps)
    want = said.chance_at(config, np.arange(steps))
    np.testing.assert_allclose(found[1:], want[1:], rtol=2e-2)
    assert found[0] == pytest.approx(want[0], rel=0.25)  # random keys alone
    assert found[-1] == pytest.approx(said.chance(config), rel=1e-5) == pytest.approx(math.log(73))


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_images_at_right_angles_have_the_loss_that_is_the_floor(temperature):
    config = recipe(moco__queue=48, loss__temperature=temperature)
    found = losses(config, lambda example: jax.nn.one_hot(example, 512), 5)[-1]
    assert found == pytest.approx(declaration.find("moco").floor(config), rel=1e-5)


# Recipes ------------------------------------------------------------------------------------------

# From the papers and `main_moco.py`: recipe argument, then fields.
V1 = {
    "head.layers": 1,
    "loss.temperature": 0.07,
    "optim.drops": "120,160",
    "optim.drop_factor": 0.1,
    "optim.rate_per": "step",
    "train.epochs": 200.0,
}
V2 = {
    "head.layers": 2,
    "loss.temperature": 0.2,
    "optim.drops": "",
    "optim.rate_per": "epoch",
    "train.epochs": 200.0,
}
BOTH = {
    "head.kind": "mlp",
    "head.hidden": 0,
    "head.dim": 128,
    "head.bias": "all",
    "head.norm": "none",
    "moco.queue": 65536,
    "moco.momentum": 0.999,
    "bn.groups": 8,
    "bn.momentum": 0.9,
    "optim.name": "sgd",
    "optim.nesterov": False,
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4,
    "optim.decayed": "all",
    "optim.warmup_epochs": 0.0,
    "train.batch_size": 256,
    "model.depth": 50,
    "model.input": "normalised",
}
VIEWS = {  # area, jitter, hue, gray first, blur
    "v1": (0.2, 1.0, 0.4, True, 0.0),
    "v2": (0.2, 0.8, 0.1, False, 0.5),
}


@pytest.mark.parametrize("argument, fields", [("v1", V1), ("v2", V2), ("v2,epochs=800", V2)])
def test_presets_are_those_published(argument, fields):
    c = resolved("moco", argument)
    validation.validate(c, 8)
    if "epochs" in argument:
        fields = fields | {"train.epochs": 800.0}
    for name, value in (BOTH | fields).items():
        assert recipes.get(c, name) == value, name
    for view in c.augment.views.values():
        found = (view.area_min, view.jitter, view.hue, view.grayscale_first, view.blur)
        assert found == VIEWS[argument[:2]]
        assert {view.strength * view[n] for n in ("brightness", "contrast", "saturation")} == {0.4}
        assert view.grayscale == 0.2 and view.flip == 0.5
    assert timetables.make(c, 1_281_167).peak_rate == pytest.approx(0.03)
