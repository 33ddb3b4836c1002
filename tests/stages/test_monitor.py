"""Evaluation during a run: it changes nothing, depends on no device, and says what it must."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from stages.test_monitor_scores import TEST, TRAIN, compared, evaluated, recipe, stage, state

from simclr_jax import parallel
from simclr_jax.stages import pretrain
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import timetable as timetables

SCORES = ["kNN", "probe, 4 labels a class", "probe, all labels"]


def test_encoder_is_the_same_after_evaluation_which_repeats_itself():
    before = jax.tree.map(lambda leaf: np.array(leaf).tobytes(), state())
    want = evaluated()
    assert stage()[0].evaluate(state()) == want
    assert compared()
    assert jax.tree.map(lambda leaf: np.array(leaf).tobytes(), state()) == before


def test_evaluation_does_not_depend_on_the_number_of_devices():
    c, mesh = recipe(), parallel.make_mesh(1)
    made = pretrain.make_stage(c, timetables.make(c, len(TRAIN)), Inputs(c, TRAIN, TEST), mesh)
    one = made.evaluate(parallel.replicate(mesh, jax.device_get(state())))
    assert one == pytest.approx(evaluated(), rel=1e-4)


def test_evaluation_says_what_the_log_shows():
    held_out = {name for name in stage()[0].formats if name.split("_")[0] in ("knn", "probe")}
    assert held_out <= evaluated().keys()


def test_final_comparison_has_every_score_of_every_row():
    rows = ["the commonest class", "raw pixels", "untrained encoder", "pretrained encoder"]
    assert list(compared()) == rows
    assert all(list(scores) == SCORES for scores in compared().values())
    measured = compared()["pretrained encoder"]["kNN"]["accuracy"]
    assert measured == evaluated()["knn_accuracy"]


def test_what_stands_beside_the_trained_encoder_does_not_depend_on_it():
    made, mesh = stage()
    other = made.compare(parallel.replicate(mesh, made.init()))
    assert other["pretrained encoder"] == other["untrained encoder"]
    assert other["untrained encoder"] == compared()["untrained encoder"]
    assert other["raw pixels"] == compared()["raw pixels"]
    assert compared()["pretrained encoder"] != compared()["untrained encoder"]
