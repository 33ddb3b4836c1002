"""FNC on eight devices as on one; its memory, its average, its views, its chance, its recipe."""

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
from simclr_jax.methods import fnc
from simclr_jax.planning import plan
from simclr_jax.planning.described import Case
from simclr_jax.train import timetable as timetables
from simclr_jax.train.stage import Update

SUPPORT = 1
KEYS = (2 + SUPPORT) * tiny.BATCH  # of a batch
OLDER = KEYS + 8  # keys of earlier batches: those of one, and some of the one before


@pytest.fixture
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


def recipe(support=SUPPORT, **fields):
    c = toys.recipe("fnc")
    fnc.support(c, support)
    fixed = {"fnc.memory": KEYS + OLDER, "fnc.momentum": 0.6, "optim.base_lr": 0.1}
    fixed |= {"fnc.top_k": 5, "fnc.threshold": 0.5}
    c.update_from_flattened_dict(fixed | {k.replace("__", "."): v for k, v in fields.items()})
    return c


@pytest.mark.x64
def test_eight_devices_do_what_one_does(small):
    """The average moves by its law; keys of a batch enter the memory whole, the oldest leave."""
    states, metrics = toys.both(recipe(train__dtype="float64"), tolerance=1e-12)
    assert not states[0].extra["queue"].any()
    for old, new in itertools.pairwise(states):
        for part in ("encoder", "head"):
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
        assert after.shape == (OLDER, 5)
        np.testing.assert_array_equal(after[: OLDER - KEYS], before[KEYS:])
        np.testing.assert_allclose(np.linalg.norm(after[-KEYS:], axis=1), 1, rtol=1e-12)
    assert all(0 < m["false_negatives"][0] <= 5 for m in metrics)


@pytest.mark.slow
@pytest.mark.x64
def test_without_support_views_memory_and_false_negatives_it_is_simclr(small):
    """To the last number that both have: no similarity is above a threshold of 1.1."""
    shared = {"optim__base_lr": 0.1, "optim__lr_scaling": "none", "train__dtype": "float64"}
    alone = {"fnc__memory": 0, "fnc__momentum": fnc.MOMENTUM, "fnc__threshold": 1.1}
    ours, found = toys.run(recipe(support=0, **shared, **alone), 1)
    simclr = toys.recipe("simclr", **shared)
    theirs, wanted = toys.run(simclr, 1)
    assert ours[-1].extra == {}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, theirs)
    for mine, other in zip(found, wanted, strict=True):
        assert mine["loss"][0] == pytest.approx(other["loss"][0], rel=1e-12)
        assert mine["false_negatives"][0] == 0


@pytest.mark.slow
def test_keys_of_no_earlier_batch_need_no_place(small):
    """A memory of a batch's keys and no more is the average's pass alone."""
    states, _ = toys.run(recipe(fnc__memory=KEYS), 1, steps=1)
    assert set(states[-1].extra) == {"average"}


def test_the_plan_counts_average_and_older_keys(small):
    def kept(memory, momentum=0.6):
        c = recipe(fnc__memory=memory, fnc__momentum=momentum)
        c.data.source, c.data.path = "folder", "nowhere"
        return plan.parts_of(Case.of(c, 8, 48, tiny.CLASSES).state())

    without, with_older = kept(0, fnc.MOMENTUM), kept(KEYS + OLDER)
    assert "averages, queues" not in without
    average = kept(KEYS)["averages, queues"]
    probe = 4 * tiny.CLASSES * (1 + 6)  # is not averaged; h has 6 numbers
    assert average == without["parameters"] + without["statistics"] - probe
    assert with_older["averages, queues"] - average == 4 * OLDER * 5


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"fnc__memory": 47}, "fnc.memory is 47, .* 3 views of 16 images: set 0, or 48 or more"),
        ({"fnc__memory": -1}, "fnc.memory is -1: it must be 0 or more"),
        ({"fnc__memory": 0}, "fnc.momentum is 0.6, but fnc without a memory .* leave it at 0.999"),
        ({"fnc__momentum": 1.0}, r"fnc.momentum is 1.0: it must be in \[0, 1\)"),
        ({"fnc__top_k": 0}, "fnc.top_k is 0: it must be 1 or more"),
        ({"fnc__threshold": math.nan}, "fnc.threshold is nan: it must be a finite number"),
        ({"fnc__cancel": "atraction"}, "cancel is atraction: it must be attraction or elimination"),
        ({"augment__views__support__size": 6}, "views of 6, 8 pixels, but fnc .* all one size"),
        ({"augment__views__support__group": "local"}, "group local, at which method fnc does not"),
        ({"augment__views__first__copies": 2}, "3 view.* of the group views, method fnc looks at"),
        ({"memory__size": 64}, "memory.size is 64, but method fnc does not read it"),
        ({"loss__scale": "mean"}, "loss.scale is mean, but method fnc does not read it"),
    ],
)
def test_what_it_cannot_do_is_said_in_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        validation.validate(recipe(**fields), 8)


@pytest.mark.parametrize("support, memory", [(0, 0), (3, 0), (0, 32), (0, 33), (3, 80)])
def test_support_views_and_memory_go_with_or_without_each_other(support, memory):
    """As in the official program, whose two losses both take any number of support views."""
    momentum = 0.6 if memory else fnc.MOMENTUM
    c = recipe(support=support, fnc__memory=memory, fnc__momentum=momentum)
    validation.validate(c, 8)


# What a loss says ---------------------------------------------------------------------------------


def losses(config, embed, steps):
    """Return the loss of each step of a method whose two networks embed by `embed`, two devices."""
    batch, mesh = config.train.batch_size, parallel.make_mesh(2)
    setting = smallest.setting(10**6, 0, batch)
    method = declaration.module("fnc").make(config, setting)

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(parallel.AXIS), P()), out_specs=(P(), P())
    )
    def run(example, extra):
        z = jnp.stack([embed(example)] * fnc.view_count(config), 1)  # [n, v, d]
        outputs = {"z": z, "keys": z / jnp.linalg.norm(z, axis=-1, keepdims=True)}
        loss, _ = method.loss(outputs, extra, Keys(0, 0), parallel.AXIS)
        extra = method.next(extra, Update({}, {}, {}, outputs, 0))
        return jax.lax.psum(loss, parallel.AXIS), extra

    extra, found = method.first({"keys": jnp.zeros((2, 1, 256))}, jax.random.key(0)), []
    for step in range(steps):
        loss, extra = run(step * batch + jnp.arange(batch), extra)
        found.append(float(loss))
    return np.array(found)


def equal(example):
    return jnp.ones((len(example), 256))


THRESHOLDS = [0.5, 1.5, -0.5]


BOTH_WAYS = [pytest.param("attraction", marks=pytest.mark.slow), "elimination"]


@pytest.mark.parametrize("cancel", BOTH_WAYS)
@pytest.mark.parametrize(
    "memory, threshold",
    [(KEYS + OLDER, 0.5), *(pytest.param(2 * KEYS, t, marks=pytest.mark.slow) for t in THRESHOLDS)],
)
def test_embeddings_that_are_all_equal_have_the_loss_declared(cancel, memory, threshold):
    """In each step while their keys push out the zeros, and after: chance is where it ends.

    More false negatives are asked for than there are equal candidates at first.
    """
    config = recipe(
        fnc__cancel=cancel, fnc__memory=memory, fnc__threshold=threshold, fnc__top_k=KEYS + 5
    )
    config.loss.temperature, steps = 0.5, 4
    said, found = declaration.find("fnc"), losses(config, equal, steps)
    np.testing.assert_allclose(found, said.chance_at(config, np.arange(steps)), rtol=1e-5)
    assert found[-1] == pytest.approx(said.chance(config), rel=1e-5)
    assert abs(found[0] - found[-1]) > 0.1
    config.loss.normalize = False
    assert said.chance(config) is None


@pytest.mark.slow
@pytest.mark.parametrize("cancel", ["attraction", "elimination"])
def test_images_at_right_angles_have_the_loss_that_is_the_floor(cancel):
    config = recipe(fnc__cancel=cancel)
    found = losses(config, lambda example: jax.nn.one_hot(example, 256), 4)[-1]
    assert found == pytest.approx(declaration.find("fnc").floor(config), rel=1e-5)


# Recipes ------------------------------------------------------------------------------------------

# The flags of google-research/fnc `run.py`, and the length of its paper.
PUBLISHED = {
    "augment.views.support.copies": 8,
    "fnc.top_k": 10,
    "fnc.threshold": 0.7,
    "fnc.memory": 16 * 4096,
    "fnc.momentum": 0.999,
    "fnc.cancel": "attraction",
    "loss.temperature": 0.1,
    "head.kind": "nonlinear",
    "head.layers": 3,
    "head.dim": 128,
    "optim.name": "lars",
    "optim.weight_decay": 1e-4,
    "optim.warmup_epochs": 10.0,
    "train.batch_size": 4096,
    "train.epochs": 1000.0,
    "bn.groups": 1,
    "model.depth": 50,
}


def test_presets_are_those_published():
    c = resolved("fnc", "imagenet")
    validation.validate(c, 8)
    for name, value in PUBLISHED.items():
        assert recipes.get(c, name) == value, name
    assert timetables.make(c, 1_281_167).peak_rate == pytest.approx(0.1 * 4096**0.5)
    first, support = (c.augment.views[name].to_dict() for name in ("first", "support"))
    assert support | {"group": "views", "copies": 1} == first


@pytest.mark.parametrize(
    "argument", ["support=0", "support=9,elimination", "no_memory", "cifar10,support=1"]
)
def test_what_a_recipe_is_told_goes_together(argument):
    c = resolved("fnc", argument)
    validation.validate(c, 8)
    assert ("support" in c.augment.views) == ("support=0" not in argument)
    assert c.fnc.cancel == ("elimination" if "elimination" in argument else "attraction")
    assert bool(c.fnc.memory) == ("no_memory" not in argument)
