"""Evaluation during a run: it changes nothing, depends on no device, and says what it must."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest
from train import tiny

from simclr_jax import parallel

SCORES = {"kNN", "probe, 2 labels a class", "probe, all labels"}


@functools.cache
def monitored(devices):
    """Return a stage and a state that no initialisation gives, statistics included."""
    stage, mesh = tiny.make_stage(tiny.recipe(), devices)
    state = tiny.perturbed(stage.init())
    stats = jax.tree.map(lambda leaf: np.abs(leaf + 0.2), state.batch_stats)
    return stage, parallel.replicate(mesh, state._replace(batch_stats=stats))


@functools.cache
def evaluated(devices):
    stage, state = monitored(devices)
    return stage.evaluate(state)


@functools.cache
def compared():
    stage, state = monitored(8)
    return stage.compare(state)


def test_encoder_is_the_same_after_evaluation():
    stage, state = monitored(8)
    before = jax.tree.map(lambda leaf: np.array(leaf).tobytes(), state)
    stage.evaluate(state)
    stage.compare(state)
    assert jax.tree.map(lambda leaf: np.array(leaf).tobytes(), state) == before


def test_evaluation_repeats_itself():
    stage, state = monitored(8)
    assert stage.evaluate(state) == evaluated(8)


def test_evaluation_does_not_depend_on_the_number_of_devices():
    one, eight = evaluated(1), evaluated(8)
    assert one == pytest.approx(eight, rel=1e-4)


def test_evaluation_says_what_the_log_shows():
    stage, _ = monitored(8)
    metrics = evaluated(8)
    assert all(math.isfinite(value) for value in metrics.values())
    held_out = {name for name in stage.formats if name.split("_")[0] in ("knn", "probe")}
    assert held_out <= metrics.keys()
    for name in ("h", "z"):
        assert 0 < metrics[f"alignment_{name}"] <= 4  # squared distance on the sphere
        assert metrics[f"uniformity_{name}"] < 0
        assert 1 <= metrics[f"effective_rank_{name}"] <= {"h": 32, "z": 5}[name]


def test_final_comparison_measures_what_the_log_measured():
    assert compared()["pretrained encoder"]["kNN"]["accuracy"] == evaluated(8)["knn_accuracy"]


def test_final_comparison_has_every_score_of_every_row():
    assert list(compared()) == ["raw pixels", "untrained encoder", "pretrained encoder"]
    for scores in compared().values():
        assert scores.keys() == SCORES
        for score in scores.values():
            assert 0 <= score["low"] <= score["accuracy"] <= score["high"] <= 1


def test_what_stands_beside_the_trained_encoder_does_not_depend_on_it():
    stage, _ = monitored(8)
    other = stage.compare(parallel.replicate(parallel.make_mesh(8), stage.init()))
    assert other["pretrained encoder"] == other["untrained encoder"]
    assert other["untrained encoder"] == compared()["untrained encoder"]
    assert other["raw pixels"] == compared()["raw pixels"]
