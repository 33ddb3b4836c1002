"""The memory of SimCLRv2 against a plain list of embeddings, and on eight devices against one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from train import tiny
from train.test_step import expected, inspect

from simclr_jax import parallel, validation
from simclr_jax.data import order
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.models.normalization import BatchNorm
from simclr_jax.stages import pretrain, views
from simclr_jax.train.stage import TrainState
from simclr_jax.train.step import make_step

DEVICES = 8
SIZE = 40  # two batches and a half: the third step fills the memory and drops the oldest rows
STEPS = 6  # two epochs: from the fourth step on, the memory holds images that come again
IMAGES = tiny.BATCH * STEPS // 2
MOMENTUM = 0.6  # an average that moves visibly
EMPTY = -1
PARTS = ("encoder", "head")  # that embed; the probe does not


def recipe(**fields):
    fixed = {"memory__size": SIZE, "memory__momentum": MOMENTUM, "train__steps": STEPS}
    # Views that flip and do nothing else compile in half the time.
    off = {"crop": False, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
    for name, value in off.items():
        fixed |= {f"augment__views__{view}__{name}": value for view in ("first", "second")}
    return tiny.recipe(**fixed, optim__base_lr=0.1, **fields)


class OneConvolution(nn.Module):
    """An encoder that compiles at once; what embeds is of no account to the memory."""

    norm: Callable

    @nn.compact
    def __call__(self, images, train, group=None):
        images = images.astype("float64")
        options = {"use_bias": False, "param_dtype": "float64", "name": "conv"}
        x = nn.Conv(6, (3, 3), (2, 2), **options)(images)
        x = nn.relu(self.norm(name="bn")(x, train))
        return {f"block_group{i}": x for i in range(1, 5)} | {"h": x.mean((1, 2))}


@pytest.fixture(scope="module")
def one_convolution():
    with pytest.MonkeyPatch.context() as patch:
        norm = functools.partial(BatchNorm, axis_name=parallel.AXIS, param_dtype="float64")
        patch.setattr(modules, "encoder", lambda config: OneConvolution(norm))
        yield


small = pytest.mark.usefixtures("one_convolution")


@functools.cache
def make_stage(devices, steps_per_call=1):
    every = {f"{name}__every_steps": steps_per_call for name in ("log", "checkpoint")}
    calls = {"train__steps_per_call": steps_per_call, "train__dtype": "float64"}
    return tiny.make_stage(recipe(**calls, **every), devices)


@functools.cache
def first_state():
    """Return a host state of random parameters, of which the average has nine tenths."""
    state = tiny.perturbed(make_stage(DEVICES, 2)[0].init())
    near = {part: jax.tree.map(lambda leaf: 0.9 * leaf, state.params[part]) for part in PARTS}
    average = state.extra["average"] | {"params": near}
    return state._replace(extra=state.extra | {"average": average})


class Course(NamedTuple):
    """States, from the first on, and what went into the steps and came out."""

    states: list[TrainState]
    batches: list[dict]
    metrics: list[dict]


@functools.cache
def trained(devices, steps_per_call=1):
    stage, mesh = make_stage(devices, steps_per_call)
    step, state = make_step(stage, mesh), parallel.replicate(mesh, first_state())
    course = Course([first_state()], [], [])
    for _, batch in stage.batches(0, STEPS):
        state, metrics = step(state, batch)
        course.states.append(jax.tree.map(np.array, state))
        course.batches.append(batch)
        course.metrics.append(metrics)
    return course


def assert_close(found, want, tolerance=1e-10):
    """Compare float64 arrays relative to the largest number of each, and all others exactly."""
    chex.assert_trees_all_equal_shapes_and_dtypes(found, want)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(want), strict=True
    ):
        exact = not np.issubdtype(b.dtype, np.floating)
        allowed = 0 if exact else tolerance * np.max(np.abs(b), initial=1e-30)
        np.testing.assert_allclose(a, b, rtol=0, atol=allowed, err_msg=jax.tree_util.keystr(path))


@small
@pytest.mark.x64
def test_eight_devices_in_calls_of_two_steps_keep_what_one_device_keeps():
    one, eight = trained(1), trained(DEVICES, 2)
    for calls in range(4):  # no row yet; room for half a batch; rows dropped; rows of two epochs
        assert_close(eight.states[calls], one.states[2 * calls])
    chex.assert_trees_all_equal_dtypes(eight.states[-1].extra, first_state().extra)


@small
@pytest.mark.x64
def test_devices_exchange_the_new_rows_and_nothing_else_beside_what_they_do_without():
    stage, mesh = make_stage(DEVICES, 2)
    state, (_, batch) = parallel.replicate(mesh, first_state()), next(stage.batches(0, STEPS))
    found = inspect(make_step(stage, mesh), state, batch)
    without = expected(state, tiny.BATCH, recipe().head.dim, scalars=7)  # in float32
    statistics = sum(leaf.size for leaf in jax.tree.leaves(state.extra["average"]["batch_stats"]))
    rows = tiny.BATCH * (8 * recipe().head.dim + 4)  # embeddings, and numbers of images
    assert found.sent == {kind: 2 * size for kind, size in without.sent.items()} | {
        "all-gather": 2 * without.sent["all-gather"] + 8 * DEVICES * statistics,
        "all-reduce": 2 * without.sent["all-reduce"] + rows,
    }
    assert found.convolutions == without.convolutions + 1


# Against plain NumPy ----------------------------------------------------------------------------


@functools.cache
def forward():
    """Return `(state, batch) -> z [2N, d], the average's z of second views, its statistics`."""
    config, mesh = recipe(train__dtype="float64"), make_stage(1)[1]
    encoder, head = modules.encoder(config), modules.projection_head(config)
    make_views = views.view_maker(config)

    def project(params, stats, images):
        moved = {}

        def run(name, module, x):
            variables = {"params": params[name], "batch_stats": stats[name]}
            found, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
            moved[name] = new["batch_stats"]
            return found

        hiddens = run("head", head, run("encoder", encoder, images)["h"])
        return hiddens[-1], moved

    def both(params, stats, average, batch):
        made = make_views({name: rows[0] for name, rows in batch.items()})["views"]
        first, second = made[:, 0], made[:, 1]
        z, _ = project(params, stats, jax.numpy.concatenate([first, second]))
        return z, *project(average["params"], average["batch_stats"], second)

    P, rows = jax.P, jax.P(parallel.AXIS)
    specs = {"in_specs": (P(), P(), P(), P(None, parallel.AXIS)), "out_specs": (rows, rows, P())}
    sharded = jax.jit(jax.shard_map(both, mesh=mesh, **specs))
    return lambda state, batch: jax.tree.map(
        np.asarray, sharded(state.params, state.batch_stats, state.extra["average"], batch)
    )


class Moment(NamedTuple):
    """A step as plain NumPy has it, with the memory before it as a list, oldest first."""

    images: np.ndarray  # [N] of the batch
    z: np.ndarray  # [2N, d]
    kept: list[tuple[int, np.ndarray]]  # image and unit vector
    average_stats: dict  # moved


@functools.cache
def moments():
    """Return all steps, each from the state that training had then, and the memory at the end."""
    course, kept, found = trained(1), [], []
    for step, (state, batch) in enumerate(zip(course.states, course.batches, strict=False)):
        images = order.examples(0, step * tiny.BATCH + np.arange(tiny.BATCH), IMAGES)
        z, new, average_stats = forward()(state, batch)
        found.append(Moment(images, z, kept, average_stats))
        unit = new / np.linalg.norm(new, axis=1, keepdims=True)
        kept = [*kept, *zip(images.tolist(), unit, strict=True)][-SIZE:]
    return found, kept


def contrast(moment, own_too=False):
    """Return the paper's loss, the mean over 2N views; with `own_too` no entry is left out."""
    unit = moment.z / np.linalg.norm(moment.z, axis=1, keepdims=True)
    rows, total, temperature = len(unit), 0.0, recipe().loss.temperature
    for i, anchor in enumerate(unit):
        image = moment.images[i % (rows // 2)]
        others = {k: math.exp(anchor @ unit[k] / temperature) for k in range(rows) if k != i}
        more = [
            math.exp(anchor @ row / temperature)
            for of, row in moment.kept
            if own_too or of != image
        ]
        partner = others[(i + rows // 2) % rows]
        total -= math.log(partner / (sum(others.values()) + sum(more))) / rows
    return total


@small
@pytest.mark.x64
def test_memory_holds_what_the_average_network_made_of_second_views_oldest_first():
    found, last = moments()
    after = [*(moment.kept for moment in found[1:]), last]
    assert [len(kept) for kept in after] == [16, 32, SIZE, SIZE, SIZE, SIZE]
    for state, kept in zip(trained(1).states[1:], after, strict=True):
        room = SIZE - len(kept)
        queue = state.extra["queue"]
        assert queue["example"].tolist() == [EMPTY] * room + [image for image, _ in kept]
        assert not np.any(queue["z"][:room])
        np.testing.assert_allclose(queue["z"][room:], [row for _, row in kept], atol=1e-12)


@small
@pytest.mark.x64
def test_loss_counts_the_memory_from_before_the_step():
    course, (found, _) = trained(1), moments()
    for metrics, moment in zip(course.metrics, found, strict=True):
        np.testing.assert_allclose(metrics["loss_mean"], contrast(moment), rtol=1e-12)
    without = found[1]._replace(kept=[])
    assert contrast(found[1]) > contrast(without) + 0.1


@small
@pytest.mark.x64
def test_memory_never_holds_a_views_own_positive_as_a_negative():
    """An image that comes again meets itself in the memory, and is not pushed away from there.

    48 images, 16 a step: the fourth step begins the second epoch, while the memory holds the last
    40 images of the first. Most of its batch are among them: an embedding of the same image, by
    nearly the same network, that must be no negative, near as it is.
    """
    found, _ = moments()
    for moment in found[:3]:
        assert not {image for image, _ in moment.kept} & set(moment.images)
        assert contrast(moment) == contrast(moment, own_too=True)
    for moment, metrics in zip(found[3:], trained(1).metrics[3:], strict=True):
        own = {image for image, _ in moment.kept} & set(moment.images.tolist())
        assert len(own) >= 3
        np.testing.assert_allclose(metrics["loss_mean"], contrast(moment), rtol=1e-12)
        assert contrast(moment, own_too=True) > contrast(moment) + 1e-4


@small
@pytest.mark.x64
def test_average_moves_by_its_law_towards_the_new_parameters():
    course, (found, _) = trained(1), moments()
    for before, after, moment in zip(course.states, course.states[1:], found, strict=False):
        old, new = (state.extra["average"] for state in (before, after))
        towards = {part: after.params[part] for part in PARTS}
        want = jax.tree.map(lambda a, b: MOMENTUM * a + (1 - MOMENTUM) * b, old["params"], towards)
        assert_close(new["params"], want, 1e-14)
        assert_close(new["batch_stats"], moment.average_stats, 1e-12)


# How it starts, and in which recipes ------------------------------------------------------------


@small
@pytest.mark.x64
def test_average_starts_from_the_weights_that_a_run_starts_from(monkeypatch):
    """In buffers of its own, where the step wants them: else it is compiled twice, or fails."""

    def load_parts(init, state, tap, others):
        return state._replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params))

    monkeypatch.setattr(pretrain, "load_parts", load_parts)
    config = recipe(train__dtype="float64", init__run="another", init__parts="encoder,head")
    stage, mesh = tiny.make_stage(config, DEVICES)
    state = stage.warm_start(stage.init())
    average = state.extra["average"]["params"]
    chex.assert_trees_all_equal(average, {part: state.params[part] for part in PARTS})
    assert np.all(state.extra["queue"]["example"] == EMPTY)
    leaves, everywhere = jax.tree.leaves(state), parallel.replicate(mesh, np.zeros(())).sharding
    assert all(leaf.sharding == everywhere for leaf in leaves)
    places = {leaf.addressable_data(0).unsafe_buffer_pointer() for leaf in leaves}
    assert len(places) == len(leaves)


def test_a_step_changes_no_structure_no_shape_and_no_dtype():
    """In a recipe that has the other one of every choice: a second step could not take it."""
    fields = {"head__kind": "none", "train__dtype": "bfloat16", "bn__groups": 0}
    stage, mesh = tiny.make_stage(recipe(loss__normalize=False, **fields), DEVICES)
    before = jax.eval_shape(stage.init)
    after, _ = jax.eval_shape(make_step(stage, mesh), before, next(stage.batches(0, 1))[1])
    assert after.extra["queue"]["z"].shape == (SIZE, 32)  # h
    chex.assert_trees_all_equal_shapes_and_dtypes(after, before)


def test_a_memory_must_hold_a_batch():
    with pytest.raises(UserError, match=r"size is 15, less than one batch: set 0, or 16"):
        validation.validate(tiny.recipe(memory__size=tiny.BATCH - 1), DEVICES)
