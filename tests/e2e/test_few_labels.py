"""Pretrained, fine-tuned on few labels, distilled: three commands, each from the run before."""

from __future__ import annotations

import json
import signal

import doors
import numpy as np
import pytest
from doors import Blow

import simclr_jax
from simclr_jax.data.sources import open_splits
from simclr_jax.train import saved

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def tuned(finished, tmp_path_factory):
    """The finished run, fine-tuned from the first layer of its head on half of the labels."""
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    ended = doors.run(
        workdir.parent,
        "--config=configs/finetune.py:tap=1",
        f"--config.init.run={finished.workdir}",
        "--config.labels.use=50%",
        "--config.train.steps=3",
        "--config.optim.base_lr=0.1",
        f"--workdir={workdir}",
    )
    assert ended.code == 0, ended
    assert "27 to learn from, 6 held out, 4 classes" in ended.out
    assert f"inherited data, bn, head, model, augment: as in {finished.workdir}@20" in ended.out
    return workdir


def test_the_accuracy_logged_is_that_of_the_saved_network(tuned):
    """The Python API gives the vectors, the data set its labels, NumPy the rest."""
    run = saved.read(str(tuned))
    _, test = open_splits(run.config.data)
    kernel, bias = (run.leaves[f"params/classifier/dense/{name}"] for name in ("kernel", "bias"))
    x = simclr_jax.load(str(tuned))(test.pixels, tap="head1").astype(np.float64)
    logits = x @ kernel + bias
    right = np.argmax(logits, axis=1) == test.labels
    losses = np.log(np.sum(np.exp(logits), 1)) - logits[np.arange(len(test)), test.labels]

    first, *_, last = [line for line in doors.metrics(tuned) if "accuracy" in line]
    assert (first["step"], last["step"]) == (0, 3)
    assert first["held_out_loss"] == pytest.approx(np.log(4), rel=1e-6)  # the classifier was zero
    assert last["accuracy"] == pytest.approx(np.mean(right))
    assert last["held_out_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert abs(last["held_out_loss"] - first["held_out_loss"]) > 1e-3
    summary = json.loads((tuned / "results" / "summary.json").read_text())
    assert summary["scores"]["classifier"]["top-1"]["accuracy"] == pytest.approx(np.mean(right))
    assert summary["protocol"]["labelled"] == "50% of train, draw 0"
    assert summary["protocol"]["labels in all"] == "27"


@pytest.mark.slow
def test_images_that_an_earlier_run_trained_on_are_not_scored(finished, tmp_path):
    """Pretraining held out 6 of 60; 18 are asked for here, of which it has seen 12."""
    ended = doors.run(
        tmp_path,
        "--config=configs/finetune.py",
        f"--config.init.run={finished.workdir}",
        "--config.data.holdout_fraction=0.3",
        "--config.train.steps=1",
        f"--workdir={tmp_path / 'run'}",
    )
    assert ended.code == 0, ended
    assert "54 to learn from, 6 held out" in ended.out
    assert f"6 images are held out in place of 18: {finished.workdir} trained on" in ended.out
    ended = doors.run(
        tmp_path,
        f"--checkpoint={tmp_path / 'run'}",
        "--solver=knn",
        "--knn=3",
        "--labels=3",
        door="linear_probe",
    )
    assert ended.code == 0, ended
    (path,) = (tmp_path / "run" / "results").glob("knn*.json")
    result = json.loads(path.read_text())
    assert result["data"]["test"]["images"] == 6
    assert result["protocol"]["labels of the encoder"] == 54


@pytest.mark.slow
def test_killed_and_resumed_distillation_is_the_same_run_to_the_bit(tuned, tmp_path):
    arguments = (
        "--config=configs/distill.py",
        f"--config.distill.teacher={tuned}",
        "--config.distill.alpha=0.5",
        "--config.finetune.train_from_block=4",
        "--config.labels.use=25%",
        "--config.optim.warmup_epochs=0.0",
        "--config.train.batch_size=16",
        "--config.train.steps=5",
        "--config.checkpoint.every_steps=3",
        "--config.log.every_steps=1",
    )
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    ended = doors.run(tmp_path, *arguments, f"--workdir={straight}")
    assert ended.code == 0, ended
    blow = Blow(signal.SIGKILL, 5, broken / "checkpoints" / "3" / "manifest.json")
    ended = doors.run(tmp_path, *arguments, f"--workdir={broken}", blow=blow)
    assert ended.code == -signal.SIGKILL, ended
    ended = doors.run(tmp_path, *arguments, f"--workdir={broken}")
    assert ended.code == 0 and "resumed at step 3 of 5" in ended.out, ended

    assert doors.metrics(broken) == doors.metrics(straight)
    want, found = doors.leaves(straight, 5), doors.leaves(broken, 5)
    assert found.keys() == want.keys()
    for name, leaf in want.items():
        assert leaf.tobytes() == found[name].tobytes(), name
    assert not any("teacher" in name for name in want), "a teacher is no part of checkpoints"
    summary = json.loads((straight / "results" / "summary.json").read_text())
    assert summary["protocol"]["teacher"] == f"{tuned}@3"
    tuned_summary = json.loads((tuned / "results" / "summary.json").read_text())
    assert summary["scores"]["teacher"] == tuned_summary["scores"]["classifier"]
