"""What each loss is of a network that has learned nothing, as declared and as really measured."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smallest
from frame import toys
from jax.sharding import PartitionSpec as P
from sklearn.dummy import DummyClassifier
from sklearn.metrics import log_loss
from stages import taught
from train import tiny

from simclr_jax import declaration, documents, parallel, recipes
from simclr_jax.data.sources import NO_LABEL
from simclr_jax.frame.keys import Keys
from simclr_jax.losses.byol import regression
from simclr_jax.losses.nt_xent import NO_IMAGE
from simclr_jax.reporting import findings, record
from simclr_jax.stages import distill, finetune, labels
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.stage import Update
from simclr_jax.train.step import make_step

BATCH, EXAMPLES, DIM = 16, 480, 4


@pytest.fixture(scope="module", autouse=True)
def small():
    """Replace the encoder by one that compiles at once."""
    with toys.known():
        yield


def recipe(method="simclr", **fields):
    c = recipes.base(method)
    c.train.batch_size = BATCH
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c


def simclr(config):
    return declaration.module("simclr").make(config, smallest.setting(EXAMPLES, 0, BATCH))


def losses(config, embed, steps):
    """Return the loss of each step of a method whose two networks embed by `embed`, two devices."""
    method, mesh = simclr(config), parallel.make_mesh(2)

    def outputs(example):
        z = embed(example)  # [n, d], of both views
        kept = z / jnp.linalg.norm(z, axis=-1, keepdims=True) if config.loss.normalize else z
        return {"z": jnp.stack([z, z], 1), "kept": {"z": kept, "example": example}}

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(parallel.AXIS), P()), out_specs=(P(), P())
    )
    def run(example, extra):
        out = outputs(example)
        loss, _ = method.loss(out, extra, Keys(0, 0), parallel.AXIS)
        if config.memory.size:
            extra = method.next(extra, Update({}, {}, {}, out, 0))
        return jax.lax.psum(loss, parallel.AXIS), extra

    extra = {}
    if config.memory.size:
        extra = method.first(outputs(jnp.arange(2)), jax.random.key(0))
        assert (extra["queue"]["example"] == NO_IMAGE).all()
    found = []
    for step in range(steps):
        loss, extra = run((step * BATCH + jnp.arange(BATCH)) % EXAMPLES, extra)
        found.append(float(loss))
    return np.array(found)


def constant(example):
    return jnp.broadcast_to(jnp.arange(1.0, DIM + 1), (len(example), DIM))


@pytest.mark.parametrize(
    "scale, fields",
    [("sum", {"temperature": 1.0}), ("mean", {"temperature": 0.07}), ("sum", {"normalize": False})],
)
@pytest.mark.parametrize("memory", [0, 40, 200])
def test_embeddings_that_are_all_equal_have_the_loss_declared(scale, fields, memory):
    """In each step while the memory fills, of batches that are no multiples of it, and after."""
    fields = {f"loss__{name}": value for name, value in fields.items()}
    config = recipe(loss__scale=scale, memory__size=memory, **fields)
    said, steps = declaration.find("simclr"), memory // BATCH + 3
    found = losses(config, constant, steps)
    np.testing.assert_allclose(found, said.chance_at(config, np.arange(steps)), rtol=1e-5)
    assert found[-1] == pytest.approx(said.chance(config), rel=1e-5)
    assert found[0] == pytest.approx((2 if scale == "sum" else 1) * math.log(2 * BATCH - 1))


def test_its_own_images_are_all_that_a_full_memory_lacks():
    """One that spans an epoch holds each image once: 1 of 480."""
    config = recipe(memory__size=EXAMPLES)
    found = losses(config, constant, EXAMPLES // BATCH + 2)[-1]
    assert found == pytest.approx(2 * math.log(2 * BATCH - 1 + EXAMPLES - 1), rel=1e-6)
    assert found == pytest.approx(declaration.find("simclr").chance(config), rel=1e-3)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
def test_images_at_right_angles_have_the_loss_that_is_the_floor(temperature):
    """At a high temperature it is hardly below chance: who is there has not failed to learn."""
    config = recipe(loss__temperature=temperature)
    found = losses(config, lambda example: jax.nn.one_hot(example, EXAMPLES), 1)
    said = declaration.find("simclr")
    np.testing.assert_allclose(found, said.floor(config), rtol=1e-4, atol=1e-3)
    assert (said.floor(config) > 0.98 * said.chance(config)) is (temperature == 20)


def test_byol_and_rotation_begin_at_chance():
    """Random predictions lie at right angles to targets, on average; turns are guessed."""
    random = np.random.default_rng(0)
    apart = [regression(*jnp.asarray(random.normal(size=(2, 64, 256)))) for _ in range(9)]
    assert 2 * np.mean(apart) == pytest.approx(declaration.find("byol").chance(None), rel=0.01)
    turns = np.tile(np.arange(4), 9)
    guess = log_loss(turns, np.full((36, 4), 0.25))
    assert declaration.find("rotation").chance(None) == pytest.approx(guess)


def unequal():
    """Images of which the first class has most, and some have no label."""
    train = tiny.sorted_images()
    number = np.arange(len(train))
    some = np.where(number % 5 == 0, NO_LABEL, np.where(number % 3, 0, train.labels))
    return dataclasses.replace(train, labels=some.astype(np.int32))


def test_a_classifier_that_knows_how_frequent_classes_are_has_learned_nothing():
    train = labels.restrict(taught.recipe(), unequal())
    assert (train.labels >= 0).all()
    guess = DummyClassifier(strategy="prior").fit(np.zeros((len(train), 1)), train.labels)
    expected = log_loss(train.labels, guess.predict_proba(np.zeros((len(train), 1))))
    assert finetune.chance(taught.recipe(), train) == pytest.approx(expected)
    assert expected < 0.9 * math.log(tiny.CLASSES)  # where it begins


def test_fine_tuning_begins_at_chance():
    train = tiny.sorted_images()
    stage, mesh = taught.make_stage(taught.recipe())
    first = first_loss(stage, mesh)
    assert first == pytest.approx(finetune.chance(taught.recipe(), train), rel=1e-5)


def test_a_student_begins_at_chance_whatever_its_teacher_says(tmp_path):
    fields = {"distill__alpha": 0.25, "labels__use": "25%", "distill__temperature": 2.0}
    fields |= {"distill__times_squared_temperature": True}
    teacher = written_teacher(tmp_path)
    config = taught.recipe("distill", distill__teacher=str(teacher), train__batch_size=48, **fields)
    stage, mesh = taught.make_stage(config)
    train = labels.restrict(config, tiny.sorted_images(config.seed))
    assert first_loss(stage, mesh) == pytest.approx(distill.chance(config, train), rel=1e-5)


def first_loss(stage, mesh):
    _, batch = next(stage.batches(0, 1))
    _, metrics = make_step(stage, mesh)(stage.init(), batch, stage.frozen)
    return float(metrics["loss"][0])


def written_teacher(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = tiny.perturbed(taught.make_stage(taught.recipe())[0].init())
    checkpoints.save(1, state._replace(step=np.int32(1)))
    checkpoints.close()
    documents.write(workdir / "config.json", taught.recipe().to_dict())
    return workdir


# What a report says of it


def reported(tmp_path, loss, last=100, every=10, **fields):
    """Return what is said of a run with this loss, by finished steps, and its record."""
    beside = {name: fields.pop(name) for name in ("stage", "chance") if name in fields}
    config = recipe(train__steps=100, **fields).to_dict() | beside
    tmp_path.mkdir(exist_ok=True)
    documents.write(tmp_path / "config.json", config)
    steps = range(every, last + 1, every)
    lines = [{"step": s, "epoch": s / 10, "loss": float(loss(s))} for s in steps]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = record.read(str(tmp_path))
    said = [finding.text for finding in findings.findings(read)]
    return [text for text in said if "stopped" not in text], read


def test_a_run_whose_memory_is_filling_is_measured_by_what_is_in_it(tmp_path):
    """Of 65536 places 1584 are taken after 100 steps of 16."""
    fields = {"memory__size": 65536}
    chance_at = declaration.find("simclr").chance_at
    config = recipe(**fields)

    def nothing(step, every=10):
        return chance_at(config, np.arange(step - every, step)).mean()

    said, read = reported(tmp_path / "nothing", nothing, **fields)
    assert len(said) == 1 and "hardly anything has been learned" in said[0]
    np.testing.assert_allclose(read.chances, [nothing(s) for s in range(10, 101, 10)], rtol=2e-3)
    said, _ = reported(tmp_path / "some", lambda step: 0.7 * nothing(step), **fields)
    assert said == []
    # Chance rises faster than this falls below it.
    losses = {s: nothing(s, 5) - s / 60 for s in range(5, 101, 5)}
    assert losses[100] > losses[80]
    falling, _ = reported(tmp_path / "falls", losses.get, every=5, **fields)
    assert len(falling) == 1 and "loss was still falling at the end" in falling[0]


def test_at_a_high_temperature_the_floor_is_not_called_nothing(tmp_path):
    fields = {"loss__temperature": 20.0}
    said, floor = declaration.find("simclr"), None
    floor, chance = said.floor(recipe(**fields)), said.chance(recipe(**fields))
    assert reported(tmp_path / "a", lambda step: floor, **fields)[0] == []
    (text,) = reported(tmp_path / "b", lambda step: 0.99 * chance + 0.01 * floor, **fields)[0]
    assert "hardly anything" in text


def test_stages_with_labels_say_their_chance(tmp_path):
    tuned = {"stage": "finetune", "chance": 1.2}
    (text,) = reported(tmp_path / "a", lambda step: 1.19, **tuned)[0]
    assert "1.19, that of an encoder that has learned nothing 1.20" in text
    assert reported(tmp_path / "b", lambda step: 1.1, **tuned)[0] == []
    # A teacher that is unsure leaves a student where it began.
    assert reported(tmp_path / "c", lambda step: 1.19, **tuned | {"stage": "distill"})[0] == []
    for odd in ("1.2", None, True, [1.2]):
        assert reported(tmp_path / "d", lambda step: 1.19, **tuned | {"chance": odd})[1].chance in (
            None,
            True,
        )
