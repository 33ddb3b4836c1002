"""Instance discrimination on eight devices as on one: its bank, its draws, its Z, its mistakes."""

from __future__ import annotations

import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smallest
from frame import toys
from losses import instances
from recipes.freeze import resolved
from train import tiny

from simclr_jax import documents, parallel, recipes, validation
from simclr_jax.data import order
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.frame.keys import Keys
from simclr_jax.methods import instdisc
from simclr_jax.reporting import findings, record
from simclr_jax.stages import pretrain
from simclr_jax.train import timetable as timetables
from simclr_jax.train.stage import Update
from simclr_jax.train.step import make_step
from simclr_jax.train.workdir import check_recipe

x64 = pytest.mark.x64
LOSSES = ("nce", "sampled_softmax", "softmax")
DRAWN, T = 9, 0.3
EXAMPLES = tiny.BATCH * tiny.STEPS


@pytest.fixture
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


def recipe(loss="nce", **fields):
    fixed = {"train__dtype": "float64", "instdisc__loss": loss, "loss__temperature": T}
    if loss != "softmax":
        fixed["instdisc__negatives"] = DRAWN
    return toys.recipe("instdisc", **{**fixed, **fields})


def in_batch(step):
    """Return the images of the batch of a step."""
    positions = step * tiny.BATCH + np.arange(tiny.BATCH)
    return order.examples(0, positions, EXAMPLES)


@x64
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "loss", ["nce", *(pytest.param(loss, marks=pytest.mark.slow) for loss in LOSSES[1:])]
)
def test_eight_devices_do_what_one_does(loss):
    """Draws are the same, Z is that of the whole batch, and the probe moves nothing but itself."""
    states, metrics = toys.both(recipe(loss))
    for step, (old, new) in enumerate(itertools.pairwise(states)):
        before, after = old.extra["bank"], new.extra["bank"]
        met = in_batch(step)
        assert np.flatnonzero(np.any(before != after, axis=1)).tolist() == sorted(met)
        np.testing.assert_allclose(np.linalg.norm(after[met], axis=1), 1, rtol=1e-12)
    if loss == "nce":
        kept = [float(state.extra["log_partition"]) for state in states]
        assert kept[0] == 0 and kept[1] == kept[2] == kept[3] > math.log(EXAMPLES) - 1
    assert all(0 <= m["instance_accuracy"] <= 1 for m in metrics)
    unwatched, _ = toys.run(recipe(loss, eval__probe=False), 1)
    for part in ("encoder", "head"):
        for a, b in zip(
            jax.tree.leaves(unwatched[-1].params[part]),
            jax.tree.leaves(states[-1].params[part]),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(unwatched[-1].extra["bank"], states[-1].extra["bank"], atol=1e-9)


@x64
@pytest.mark.usefixtures("small")
def test_a_step_is_that_written_out():
    """With momentum 0 the bank shows the embeddings; then loss and Z of the draws follow."""
    c = recipe(instdisc__momentum=0.0)
    stage, mesh = tiny.make_stage(c, 8)
    batches = list(stage.batches(0, 2))
    bank = np.asarray(stage.init().extra["bank"])
    step, state, log_z = make_step(stage, mesh), stage.init(), None
    for k, (_, batch) in enumerate(batches):
        state, metrics = step(state, batch)
        example = np.asarray(batch["example"][0])
        np.testing.assert_array_equal(example, in_batch(k))
        keys = Keys(c.seed, jnp.asarray(k), jnp.asarray(np.asarray(batch["position"][0])))
        drawn = np.asarray(instdisc.draw(keys, DRAWN, EXAMPLES))
        after = np.asarray(state.extra["bank"])
        x = after[example]
        if log_z is None:  # the first batch fixes it
            log_z = math.log(instances.partition(x, bank, example, drawn, T))
        np.testing.assert_allclose(state.extra["log_partition"], log_z, rtol=1e-12)
        found = instances.loss("nce", x, bank, example, drawn, T, math.exp(log_z))
        np.testing.assert_allclose(metrics["loss"][0], found[0], rtol=1e-10)
        np.testing.assert_allclose(metrics["instance_accuracy"][0], found[2], rtol=1e-12)
        bank = after


@x64
@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_run_that_is_resumed_and_one_in_long_calls_draw_the_same():
    calls = dict.fromkeys(
        ("train__steps_per_call", "log__every_steps", "checkpoint__every_steps"), 3
    )
    stage, mesh = tiny.make_stage(recipe(eval__probe=False), 1)
    step, state = make_step(stage, mesh), stage.init()
    for _, batch in stage.batches(0, 1):
        state, _ = step(state, batch)
    state = parallel.replicate(mesh, jax.tree.map(np.array, state))  # as from a checkpoint
    for _, batch in stage.batches(1, 3):
        state, _ = step(state, batch)
    straight, _ = toys.run(recipe(eval__probe=False, **calls), 1)
    found, want = jax.tree.leaves(state), jax.tree.leaves(straight[-1])
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@x64
@pytest.mark.usefixtures("small")
def test_of_an_image_that_is_there_twice_the_last_view_is_kept():
    """Also where other devices write the others; an image stands in for one that is unreadable."""
    c = recipe("softmax", instdisc__momentum=0.0, eval__probe=False)
    twice = np.array(in_batch(0))
    twice[[0, 3, 12]] = twice[7]  # of devices 0, 1, 6, and 3
    banks = {}
    for devices in (1, 8):
        stage, mesh = tiny.make_stage(c, devices)
        _, batch = next(stage.batches(0, 1))
        step = make_step(stage, mesh)
        for name, example in (("each", in_batch(0)), ("twice", twice)):
            given = parallel.shard(mesh, {"example": example[None].astype(np.int32)}, axis=1)
            state, _ = step(stage.init(), batch | given)
            banks[name, devices] = np.asarray(state.extra["bank"])
    for devices in (1, 8):
        views = banks["each", devices][in_batch(0)]  # in the order of the batch
        np.testing.assert_allclose(banks["twice", devices][twice[7]], views[12], atol=1e-12)
        kept = {row: views[place] for place, row in enumerate(twice)}
        for row, view in kept.items():
            np.testing.assert_allclose(banks["twice", devices][row], view, atol=1e-12)


@pytest.mark.usefixtures("small")
def test_the_bank_starts_uniform_from_the_seed():
    def first(**fields):
        stage, _ = tiny.make_stage(recipe(train__dtype="float32", head__dim=40, **fields), 1)
        return np.asarray(stage.init().extra["bank"])

    bank, most = first(), 1 / math.sqrt(40 / 3)
    assert bank.shape == (EXAMPLES, 40) and bank.dtype == np.float32
    # Of 1920 numbers; the deviation of a uniform one is most / sqrt(3) = 1 / sqrt(40).
    assert 0.99 * most < np.abs(bank).max() <= most
    assert abs(bank.mean()) < 5 / math.sqrt(40 * bank.size)
    assert np.square(bank).mean() == pytest.approx(1 / 40, rel=0.1)
    assert not np.allclose(first(seed=1), bank)


def test_rows_are_drawn_uniformly_and_with_replacement():
    position = np.stack([np.zeros(400), np.arange(400)], 1).astype(np.uint32)
    drawn = np.asarray(jax.jit(lambda p: instdisc.draw(Keys(0, 0, p), 30, 25))(position))
    assert drawn.shape == (400, 30) and drawn.dtype == np.int32
    counts = np.bincount(drawn.ravel(), minlength=25)
    expected = drawn.size / 25
    assert len(counts) == 25 and np.sum((counts - expected) ** 2 / expected) < 52  # 0.999 of 24
    assert all(len(set(row)) < 30 for row in drawn)  # 30 of 25
    assert len({tuple(row) for row in drawn}) == 400
    later = np.asarray(instdisc.draw(Keys(0, 0, jnp.asarray(position[100:])), 30, 25))
    np.testing.assert_array_equal(later, drawn[100:])  # whatever is drawn beside them


@x64
@pytest.mark.usefixtures("small")
def test_a_partition_that_is_given_is_the_one():
    given = 300.0
    c = recipe(instdisc__partition=given, instdisc__momentum=0.0, eval__probe=False)
    states, metrics = toys.run(c, 1, 1)
    assert set(states[0].extra) == {"bank"}
    keys = Keys(c.seed, jnp.zeros((), int), jnp.stack([jnp.zeros(16, int), jnp.arange(16)], 1))
    drawn = np.asarray(instdisc.draw(keys, DRAWN, EXAMPLES))
    before, after = (state.extra["bank"] for state in states)
    found = instances.loss("nce", after[in_batch(0)], before, in_batch(0), drawn, T, given)
    np.testing.assert_allclose(metrics[0]["loss"][0], found[0], rtol=1e-10)


# What it comes to --------------------------------------------------------------------------------


@functools.cache
def collapsed(loss, momentum=0.5, epochs=4):
    """Return the losses of embeddings that are all equal, by epoch, and the recipe and images."""
    examples, batch, steps = 640, 32, 20
    c = recipes.base("instdisc")
    c.instdisc.loss, c.instdisc.momentum = loss, momentum
    c.head.dim, c.train.batch_size, c.loss.temperature = 64, batch, 0.2
    c.instdisc.negatives = 4096 if loss == "softmax" else 100
    with_images = smallest.setting(examples, 0, batch)
    method, mesh = instdisc.make(c, with_images), parallel.make_mesh(2)
    random = np.random.default_rng(0)

    def outputs(example, drawn):
        z = jnp.broadcast_to(jnp.eye(64)[0], (len(example), 64))
        return {"z": z, "example": example, "sampled": drawn}

    P = jax.P(parallel.AXIS)

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P, P, jax.P(), jax.P()), out_specs=jax.P()
    )
    def run(example, drawn, extra, step):
        out = outputs(example, drawn)
        share, _ = method.loss(out, extra, Keys(0, step), parallel.AXIS)
        update = Update({}, {}, {}, out, step)
        return jax.lax.psum(share, parallel.AXIS), extra | method.next(extra, update)

    extra = method.first(outputs(jnp.arange(2), None), jax.random.key(3))
    found = []
    for _ in range(epochs):
        for example in random.permutation(examples).reshape(steps, batch):
            drawn = random.integers(examples, size=(batch, 100))
            loss_of_step, extra = run(example, drawn, extra, len(found))
            found.append(float(loss_of_step))
    return np.array(found).reshape(epochs, steps), c, examples


@pytest.mark.parametrize("loss, momentum", [("softmax", 0.5), ("sampled_softmax", 0.0)])
def test_equal_embeddings_have_the_loss_declared_from_the_first_epoch_on(loss, momentum):
    found, c, examples = collapsed(loss, momentum)
    declared = instdisc.chance_at(c, np.arange(found.size), examples).reshape(found.shape)
    assert np.ptp(declared) > 0.5
    for epoch in range(len(found)):  # of few images, whose first rows are what they are
        np.testing.assert_allclose(found[epoch].mean(), declared[epoch].mean(), rtol=0.015)
    np.testing.assert_allclose(found, declared, rtol=0.05)
    end = instdisc.chance(c, examples)
    assert end == pytest.approx(math.log(examples if loss == "softmax" else 101))
    later = instdisc.chance_at(c, np.array([1e4, 1e9]), examples)
    np.testing.assert_allclose(later, end, rtol=1e-4)


def test_images_at_right_angles_have_the_loss_that_is_the_floor():
    bank = np.eye(50)
    for loss in ("softmax", "sampled_softmax"):
        c = recipes.base("instdisc")
        c.instdisc.loss, c.loss.temperature = loss, 0.2
        sampled = 1 + np.arange(49).reshape(1, 49)
        c.instdisc.negatives = 49
        found = instances.loss(loss, bank[:1], bank, np.array([0]), sampled, 0.2)[0]
        assert instdisc.floor(c, 50) == pytest.approx(found)
        assert instdisc.floor(c, 50) < instdisc.chance(c, 50)


def test_the_loss_of_nce_without_learning_is_not_declared():
    """Of equal embeddings it lies far above where a run begins: to be below it is no success."""
    c = recipes.base("instdisc")
    assert instdisc.chance(c, 1000) is None
    found, *_ = collapsed("nce", epochs=3)
    assert found[-1].mean() > 5 * found[0, 0]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_report_says_nothing_false_of_the_loss(loss, tmp_path):
    """It takes the number of images from the epochs; in the first one a loss above log N is low."""
    c = recipes.base("instdisc")
    c.instdisc.loss, c.train.batch_size, c.train.steps = loss, 100, 400  # 20 epochs
    documents.write(tmp_path / "config.json", c.to_dict())

    def said(losses):
        lines = [
            {"step": step, "epoch": step * 100 / 2000, "loss": value}
            for step, value in losses.items()
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        read = record.read(str(tmp_path))
        texts = [finding.text for finding in findings.findings(read)]
        return any("hardly anything has been learned" in text for text in texts), read

    end = {"nce": 3000.0, "sampled_softmax": math.log(4097), "softmax": math.log(2000)}[loss]
    found, read = said({300: 2 * end, 400: end})
    assert found is (loss != "nce")
    assert read.chance is None if loss == "nce" else read.chance == pytest.approx(end, rel=1e-3)
    assert not said({300: 2 * end, 400: 0.8 * end})[0]
    assert not said({5: end, 10: 1.05 * end})[0]  # half of an epoch: most rows are random


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"instdisc.loss": "softmx"}, "instdisc.loss is softmx: it must be one of nce, sampled_so"),
        ({"instdisc.negatives": 0}, "instdisc.negatives is 0: it must be 1 or more"),
        ({"instdisc.momentum": 1.0}, r"instdisc.momentum is 1.0: it must be in \[0, 1\)"),
        ({"instdisc.partition": -1.0}, "instdisc.partition is -1.0: it must be a number, 0 or mo"),
        (
            {"instdisc.loss": "softmax", "instdisc.negatives": 100},
            "instdisc.negatives is 100, but instdisc.loss=softmax does not read it: leave it at 40",
        ),
        (
            {"instdisc.loss": "sampled_softmax", "instdisc.partition": 5.0},
            "instdisc.partition is 5.0, but instdisc.loss=sampled_softmax does not read it",
        ),
        ({"head.kind": "none", "head.bias": "all", "head.norm": "none"}, "head.kind is none"),
        ({"loss.scale": "mean"}, "loss.scale is mean, but method instdisc does not read it"),
        ({"augment.views.first.copies": 2}, r"has 2 view\(s\) .* method instdisc looks at 1"),
    ],
)
def test_mistakes_are_one_line(fields, words):
    c = recipes.base("instdisc")
    c.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=words) as raised:
        validation.validate(c, 1)
    assert "\n" not in str(raised.value)


def test_more_draws_than_images_are_refused_before_the_work():
    c = recipe(instdisc__negatives=EXAMPLES + 1, train__dtype="float32")
    words = r"negatives is 49, but there are 48 images .*=softmax --config.instdisc.negatives=4096"
    with pytest.raises(UserError, match=words):
        pretrain.check(c, tiny.timetable(c), tiny.sorted_images())
    c.instdisc.negatives = EXAMPLES
    pretrain.check(c, tiny.timetable(c), tiny.sorted_images())


def test_a_bank_of_another_number_of_images_is_not_continued(tmp_path):
    images, before = tiny.sorted_images(), recipes.base("instdisc").to_dict()
    of = [source.fingerprint() for source in (images, images.take(np.arange(47)))]
    (tmp_path / "config.json").write_text(json.dumps(before | {"images": of[:1]}))
    check_recipe(tmp_path, before | {"images": of[:1]}, "auto", fresh=False)
    with pytest.raises(UserError, match=r"images: \['48 images, .* -> \['47 images, .*--workdir"):
        check_recipe(tmp_path, before | {"images": of[1:]}, "auto", fresh=False)


# lemniscate.pytorch, `main.py` and `cifar.py`.
BOTH = {
    "head.kind": "mlp",
    "head.layers": 1,
    "head.dim": 128,
    "head.bias": "all",
    "head.norm": "none",
    "instdisc.momentum": 0.5,
    "optim.name": "sgd",
    "optim.nesterov": False,
    "optim.momentum": 0.9,
    "optim.decayed": "all",
    "optim.warmup_epochs": 0.0,
    "optim.drops": "120,160",
    "optim.drop_factor": 0.1,
    "augment.crop_law": "area",
    "train.epochs": 200.0,
}
PRESETS = {
    "imagenet": {
        "instdisc.loss": "nce",
        "instdisc.negatives": 4096,
        "loss.temperature": 0.07,
        "optim.weight_decay": 1e-4,
        "train.batch_size": 256,
    },
    "cifar10": {
        "instdisc.loss": "softmax",
        "loss.temperature": 0.1,
        "optim.weight_decay": 5e-4,
        "train.batch_size": 128,
    },
}
FLIP_AND_GRAY_FIRST = {"imagenet": (0.5, True), "cifar10": (0.0, False)}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_those_published(preset):
    c = resolved("instdisc", preset)
    validation.validate(c, 8)
    for name, value in (BOTH | PRESETS[preset]).items():
        assert recipes.get(c, name) == value, name
    (view,) = c.augment.views.values()
    assert (view.area_min, view.jitter, view.grayscale, view.blur) == (0.2, 1.0, 0.2, 0.0)
    assert (view.flip, view.grayscale_first) == FLIP_AND_GRAY_FIRST[preset]
    strengths = ("brightness", "contrast", "saturation", "hue")
    assert {view.strength * view[name] for name in strengths} == {0.4}
    assert timetables.make(c, 50_000).peak_rate == pytest.approx(0.03)
