"""Fields that a whole run shows: when it logs, evaluates and saves, and what it is scored by."""

from __future__ import annotations

import functools
import json

import jax
import numpy as np
import pytest
from frame import toys
from train import tiny

from simclr_jax import parallel
from simclr_jax.data.sources import Images
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.stages import build, pretrain, run
from simclr_jax.stages.encoder import embedder
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train.stage import TrainState

# One run in which nothing is at its default -------------------------------------------------------

STEPS = 8
FIELDS = {
    "train__steps": STEPS,
    "log__every_steps": 4,
    "checkpoint__every_steps": 2,
    "checkpoint__keep": 1,
    "checkpoint__keep_period": 6,
    "eval__every_epochs": 2.0,  # of 3 steps
    "eval__probe": False,
    "eval__knn": True,
    "eval__compare": False,
    "optim__weight_decay": 0.03,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    root, random = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    pixels = random.integers(0, 256, (48, 10, 10, 3)).astype(np.uint8)
    arrays = {"images": pixels, "labels": np.arange(48) % 3}
    np.savez(root / "images.npz", **arrays, test_images=pixels[:9], test_labels=np.arange(9) % 3)
    data = {"data__source": "memory", "data__path": str(root / "images.npz")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))
        assert run.run(tiny.recipe(**FIELDS, **data), str(root / "run")) == 0
    return root / "run"


@pytest.fixture(scope="module")
def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_it_logs_as_often_as_asked(lines):
    assert [line["step"] for line in lines if "loss" in line] == [4, 8]


def test_it_evaluates_as_often_and_as_much_as_asked(lines):
    assert [line["step"] for line in lines if "knn_accuracy" in line] == [0, 6, 8]
    assert not any(name.endswith("probe_accuracy") for line in lines for name in line)


def test_it_keeps_the_newest_checkpoints_and_each_of_a_period(workdir):
    steps = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}
    assert steps == {6, 8}


def test_it_is_compared_with_nothing_where_that_is_off(workdir):
    assert not (workdir / "results").exists()
    assert "raw pixels" not in (workdir / "log.txt").read_text()


def test_it_says_what_decides_the_result(workdir):
    said = (workdir / "log.txt").read_text()
    assert "8 steps = 2.7 epochs of 48 images; no warm-up" in said
    assert "optimiser lars, peak rate 0.3, weight decay 0.03" in said
    assert "batch     16 images (32 views)" in said


# What it is scored by -----------------------------------------------------------------------------


def images(count, seed):
    """Return images of which brightness tells a little, among noise."""
    random = np.random.default_rng(seed)
    label = np.arange(count) % tiny.CLASSES
    shade = random.integers(0, 90, (count, 1, 1, 3)) + 25 * label[:, None, None, None]
    noise = random.integers(0, 60, (count, 8, 8, 3))
    return Images((shade + noise).astype(np.uint8), label.astype(np.int32), tiny.CLASSES)


BANK, QUERIES = images(80, 0), images(60, 1)


@functools.cache
def state():
    """Return random parameters and statistics, the same for each recipe below."""
    random = np.random.default_rng(2)

    def draw(path, leaf):
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 10
        centre = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return (centre + random.uniform(-1, 1, leaf.shape) * (3 / fan_in) ** 0.5).astype(np.float32)

    made = jax.eval_shape(staged()[0].init)
    params, stats = (
        jax.tree_util.tree_map_with_path(draw, tree) for tree in (made.params, made.batch_stats)
    )
    return TrainState(np.int32(0), params, stats, {})


def staged(**fields):
    c, mesh = tiny.recipe(**fields), parallel.make_mesh(1)
    inputs = Inputs(c, BANK, QUERIES)
    return pretrain.make_stage(c, tiny.timetable(c), inputs, mesh), mesh


@functools.cache
def evaluated(**fields):
    stage, mesh = staged(**fields)
    return stage.evaluate(parallel.replicate(mesh, state()))


@functools.cache
def representations():
    embed = embedder(tiny.recipe(), ("h", "head1"))
    variables = {"params": state().params, "batch_stats": state().batch_stats}
    encode = jax.jit(lambda images: embed(variables, images))
    return [encode(np.float32(source.pixels / 255)) for source in (BANK, QUERIES)]


def nearest(k, temperature):
    bank, queries = (np.asarray(found["h"]).astype(float) for found in representations())
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
    right = []
    for similarity, label in zip(queries @ bank.T, QUERIES.labels, strict=True):
        near = np.argsort(-similarity, kind="stable")[:k]
        weights = np.exp((similarity[near] - 1) / temperature)
        votes = np.bincount(BANK.labels[near], weights, minlength=tiny.CLASSES)
        right.append(votes.argmax() == label)
    return np.mean(right)


KNN = [(5, 0.1), (79, 0.1), (79, 0.001)]


@pytest.mark.parametrize("k, temperature", KNN)
def test_neighbours_are_as_many_and_vote_as_asked(k, temperature):
    found = evaluated(eval__knn_k=k, eval__knn_temperature=temperature, eval__probe=False)
    assert found["knn_accuracy"] == pytest.approx(nearest(k, temperature))
    assert len({nearest(*pair) for pair in KNN}) == len(KNN)
    assert "probe_accuracy" not in found


@pytest.mark.parametrize("tap, name", [(0, "h"), (1, "head1")])
def test_the_probe_reads_its_tap(tap, name):
    found = evaluated(eval__probe_tap=tap, eval__knn=False)
    _, queries = representations()
    dense = state().params["probe"]["dense"]
    guess = (queries[name] @ dense["kernel"] + dense["bias"]).argmax(1)
    assert found["probe_accuracy"] == pytest.approx(np.mean(guess == QUERIES.labels))
    assert "knn_accuracy" not in found


def test_few_labels_are_as_many_as_asked():
    """How the two probes of a comparison score is in tests/stages/test_monitor_scores.py."""
    stage, _ = staged(eval__few_labels=7)
    assert stage.protocol()["probe"]["few_labels_per_class"] == 7
    build.check_images(tiny.recipe(eval__few_labels=20), BANK, QUERIES)
    with pytest.raises(UserError, match="few_labels is 21, but a class has only 20 training"):
        build.check_images(tiny.recipe(eval__few_labels=21), BANK, QUERIES)


def test_nothing_is_compared_where_that_is_off():
    stage, mesh = staged(eval__compare=False)
    assert stage.compare(parallel.replicate(mesh, state())) == {}
