"""Supervised contrastive learning: by hand, on eight devices as on one, labels, chance, recipes."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smallest
from frame import toys
from jax.sharding import PartitionSpec as P
from losses import brute_force
from recipes.freeze import resolved
from train import tiny

from simclr_jax import declaration, documents, parallel, recipes, validation
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.frame.keys import Keys
from simclr_jax.reporting import findings, record
from simclr_jax.stages import pretrain
from simclr_jax.train import timetable as timetables
from simclr_jax.train.step import make_step

x64 = pytest.mark.x64
T, NONE = 0.3, -1


def recipe(**fields):
    return toys.recipe(
        "supcon", **{"train__dtype": "float64", "loss__temperature": T, "bn__groups": 1} | fields
    )


# Values -------------------------------------------------------------------------------------------

VIEWS = 3
LABELS = np.array([0, 1, 2, NONE, 0, 1, NONE, 3, 0, 1, 2, 2, 0, 5, 1, 0])  # one 3, one 5
RECIPES = {
    "as the program": {},
    "other base": {"supcon__base_temperature": 0.5},
    "first views": {"supcon__anchors": "one", "supcon__base_temperature": T},
}


def embeddings():
    return {
        "any": np.random.default_rng(0).normal(size=(tiny.BATCH, VIEWS, 4)),
        "equal": np.broadcast_to(np.arange(1.0, 5), (tiny.BATCH, VIEWS, 4)),
    }


def three_views(**fields):
    c = recipe(**fields)
    c.augment.views.first.copies = VIEWS - 1
    return c


@functools.cache
def measured():
    """Return loss and metrics by recipe and encoder, on eight devices, from one program."""
    setting = smallest.setting(10**6, 6, tiny.BATCH)
    module = declaration.module("supcon")
    made = {name: module.make(three_views(**f), setting) for name, f in RECIPES.items()}

    def local(of_encoders, label):
        found = {
            (name, encoder): method.loss({"z": z, "label": label}, {}, Keys(0, 0), parallel.AXIS)
            for name, method in made.items()
            for encoder, z in of_encoders.items()
        }
        return jax.tree.map(lambda x: jax.lax.psum(x, parallel.AXIS), found)

    sharded = jax.shard_map(
        local,
        mesh=parallel.make_mesh(8),
        in_specs=(P(parallel.AXIS), P(parallel.AXIS)),
        out_specs=P(),
    )
    z = jax.tree.map(jnp.asarray, embeddings())
    return jax.tree.map(float, jax.jit(sharded)(z, jnp.asarray(LABELS)))


def is_positive(i, j):
    return i == j or LABELS[i] == LABELS[j] != NONE


@x64
@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_is_that_of_its_definition(name):
    """With anchors and base_temperature of the recipe; -1 is a class of one image."""
    loss, told = measured()[name, "any"]
    z = brute_force.unit(np.moveaxis(embeddings()["any"], 1, 0))
    c = recipe(**RECIPES[name]).supcon
    want = brute_force.supervised_contrastive(z, is_positive, T, c.base_temperature, c.anchors)
    assert loss == pytest.approx(want, rel=1e-12)
    # Not what a report takes for a task that is too easy.
    assert set(told) == {"class_accuracy"}
    rows, image = z.reshape(-1, 4), np.tile(np.arange(tiny.BATCH), VIEWS)
    nearest = np.argmax(rows @ rows.T - 9 * np.eye(len(rows)), axis=1)
    found = [is_positive(i, j) for i, j in zip(image, image[nearest], strict=True)]
    of = found[: tiny.BATCH] if c.anchors == "one" else found
    assert told["class_accuracy"] == pytest.approx(np.mean(of), rel=1e-6)


@x64
@pytest.mark.parametrize("name", RECIPES)
def test_chance_is_the_loss_of_embeddings_that_are_all_equal(name):
    said = declaration.find("supcon")
    want = said.chance(three_views(**RECIPES[name]))
    assert measured()[name, "equal"][0] == pytest.approx(want, rel=1e-12)
    assert said.floor(recipe()) is None


# Training -----------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


@x64
@pytest.mark.usefixtures("small")
def test_eight_devices_do_what_one_does_and_labels_teach():
    """Other labels move the encoder elsewhere; there is no probe to do so."""
    c = recipe(eval__probe=False, head__hidden=7)
    found = {}
    for devices in (8, 1):
        stage, mesh = tiny.make_stage(c, devices)
        step = make_step(stage, mesh)
        for labels in ("own", "other"):
            state = stage.init()
            for _, batch in stage.batches(0, 2):
                label = np.asarray(batch["label"])  # [1, n]
                other = np.where(label == 1, NONE, 1).astype(label.dtype)
                given = {"label": label if labels == "own" else other}
                state, metrics = step(state, batch | parallel.shard(mesh, given, axis=1))
            found[devices, labels] = jax.tree.map(np.asarray, (state, metrics))
    for labels in ("own", "other"):
        pairs = zip(*(jax.tree.leaves(found[devices, labels]) for devices in (8, 1)), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(np.abs(b).max(initial=0), 1))
    own, other = (found[1, labels][0] for labels in ("own", "other"))
    assert own.extra == {} and set(own.params) == {"encoder", "head"}
    kernels = [state.params["encoder"]["conv"]["kernel"] for state in (own, other)]
    assert np.abs(np.subtract(*kernels)).max() > 1e-6


# Mistakes -----------------------------------------------------------------------------------------


def test_without_labels_it_is_refused():
    c, images = recipe(train__dtype="float32"), tiny.sorted_images()
    for without in (
        dataclasses.replace(images, labels=None, classes=0),
        dataclasses.replace(images, labels=np.full_like(images.labels, NONE)),
    ):
        with pytest.raises(UserError, match=r"no labels, from which method supcon .*data.labels"):
            pretrain.check(c, tiny.timetable(c), without)
    pretrain.check(c, tiny.timetable(c), images)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"supcon__base_temperature": 0.0}, "base_temperature is 0.0: it must be a number, 1e-6"),
        ({"supcon__anchors": "first"}, "anchors is first: it must be one of all, one"),
        ({"loss__scale": "mean"}, "loss.scale is mean, but method supcon does not read it"),
        ({"memory__size": 64}, "memory.size is 64, but method supcon does not read it"),
    ],
)
def test_what_it_cannot_do_is_said_in_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        validation.validate(recipe(train__dtype="float32", **fields), 1)


def test_one_view_is_too_few_and_three_are_not_too_many():
    c = recipe(train__dtype="float32")
    c.augment.views.second.copies = 2
    validation.validate(c, 1)
    with c.unlocked():
        del c.augment.views["second"]
    with pytest.raises(UserError, match=r"has 1 view.* method supcon looks at 2 or more"):
        validation.validate(c, 1)


# What a report says -------------------------------------------------------------------------------


def said(folder, method, loss, **metrics):
    """Return what is said of a run of 100 steps that logged the same numbers all along."""
    config = toys.recipe(method, train__steps=100, log__every_steps=10).to_dict()
    folder.mkdir()
    documents.write(folder / "config.json", json.loads(json.dumps(config)))
    lines = [{"step": s, "epoch": s / 10, "loss": loss, **metrics} for s in range(10, 101, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = findings.findings(record.read(str(folder)))
    return [finding.text for finding in found if "stopped" not in finding.text]


def test_two_classes_that_are_told_apart_are_no_problem_of_a_run(tmp_path):
    """The loss is then near that of equal embeddings, and h fills no more than two dimensions."""
    numbers = {"class_accuracy": 1.0, "effective_rank_h": 1.8, "effective_rank_z": 1.1}
    loss = 0.99 * declaration.find("supcon").chance(toys.recipe("supcon"))
    assert said(tmp_path / "a", "supcon", loss, **numbers) == []
    text = " ".join(said(tmp_path / "b", "simclr", 1.0, **numbers))
    assert "h has collapsed" in text and "z has collapsed" in text


# Recipes ------------------------------------------------------------------------------------------

# From the README and `main_supcon.py`.
PUBLISHED = {
    "model.depth": 50,
    "head.kind": "mlp",
    "head.layers": 2,
    "head.hidden": 0,
    "head.dim": 128,
    "head.bias": "all",
    "head.norm": "none",
    "loss.temperature": 0.1,
    "supcon.base_temperature": 0.07,
    "supcon.anchors": "all",
    "optim.name": "sgd",
    "optim.nesterov": False,
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4,
    "optim.decayed": "all",
    "optim.warmup_epochs": 10.0,
    "train.batch_size": 1024,
    "train.epochs": 1000.0,
}


def test_the_preset_is_that_published():
    c = resolved("supcon", "cifar10")
    validation.validate(c, 8)
    for name, value in PUBLISHED.items():
        assert recipes.get(c, name) == value, name
    for view in c.augment.views.values():
        strengths = [view[n] for n in ("brightness", "contrast", "saturation", "hue")]
        assert (view.strength, strengths) == (1.0, [0.4, 0.4, 0.4, 0.1])
        found = (view.area_min, view.jitter, view.grayscale, view.flip, view.blur)
        assert found == (0.2, 0.8, 0.2, 0.5, 0.0)
    assert timetables.make(c, 50_000).peak_rate == pytest.approx(0.5)
    validation.validate(resolved("supcon"), 8)
