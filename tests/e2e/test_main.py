"""The main program on a tiny recipe: what it writes and what it says."""

import json
import re

import doors
import numpy as np
import pytest
from doors import MAIN, TINY, UNLABELLED
from PIL import Image

pytestmark = pytest.mark.e2e

STEP_KEYS = {
    "loss",
    "loss_mean",
    "contrast_accuracy",
    "contrast_entropy",
    "lr",
    "epoch",
    "gradient_norm",
    "parameter_norm",
    "update_norm",
}
PROBE_KEYS = {"probe_loss", "train_probe_accuracy"}
LABEL_KEYS = {"knn_accuracy", "probe_accuracy"}
GEOMETRY_KEYS = {f"{m}_{s}" for m in ("alignment", "uniformity", "effective_rank") for s in "hz"}


def test_without_tensorflow_a_run_writes_what_is_documented(finished):
    workdir = finished.workdir
    expected = {"config.json", "metrics.jsonl", "views.png", "log.txt", "checkpoints"}
    expected |= {"devices.json", "saved.json"}
    names = {path.name for path in workdir.iterdir() if not path.name.startswith(".")}
    assert names == expected | {"tensorboard", "results"}
    saved = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert saved == [7, 14, 20]
    recipe = json.loads((workdir / "config.json").read_text())
    assert recipe["train"]["batch_size"] == 16 and recipe["augment"]["views"]["first"]["crop"]
    sizes = sorted(path.stat().st_size for path in (workdir / "tensorboard").iterdir())
    assert len(sizes) == 2 and sizes[1] > 1000  # the table at the end has a file of its own
    with Image.open(workdir / "views.png") as sheet:
        assert sheet.format == "PNG"
        columns, rows = 12, 3  # an image above its two views
        assert sheet.width / columns == pytest.approx(sheet.height / rows, rel=0.1)
        assert len(np.unique(np.asarray(sheet))) > 50


def test_a_run_says_what_it_does_and_what_it_learned(finished):
    out = finished.ended.out
    for words in (
        f"run       {finished.workdir}",
        "devices   1 x cpu, computing in float32",
        "batch     16 images (32 views)",
        "length    20 steps = 5.9 epochs of 54 images; learning-rate warm-up until step 1",
        "optimiser lars, peak rate 0.00625",
        "checkpoint " + str(finished.workdir / "checkpoints" / "20"),
    ):
        assert words in out
    assert finished.ended.err == ""
    log = (finished.workdir / "log.txt").read_text()
    assert all(line in log for line in out.splitlines() if not line.startswith("step "))

    results = json.loads((finished.workdir / "results" / "summary.json").read_text())
    assert results["protocol"]["step"] == 20
    assert results["protocol"]["knn"] == {"k": 3, "temperature": 0.1}
    rows = ["the commonest class", "raw pixels", "untrained encoder", "pretrained encoder"]
    assert list(results["scores"]) == rows
    lines = out.splitlines()
    for name in rows:
        scores = results["scores"][name]
        assert list(scores) == ["kNN", "probe, 2 labels a class", "probe, all labels"]
        shown = next(line for line in lines if line.startswith(name))
        for score in scores.values():
            assert 0 <= score["low"] <= score["accuracy"] <= score["high"] <= 1
            assert f"{100 * score['accuracy']:.1f} (" in shown


def test_metrics_have_the_documented_names(finished):
    lines = doors.metrics(finished.workdir)
    trained = [line for line in lines if "loss" in line]
    measured = [line for line in lines if "loss" not in line]
    assert [line["step"] for line in trained] == list(range(1, 21))
    # An epoch is 3.375 steps, of which the nearest whole number is the interval.
    assert [line["step"] for line in measured] == [0, 3, 6, 9, 12, 15, 18, 20]
    assert all(line.keys() == {"step"} | STEP_KEYS | PROBE_KEYS for line in trained)
    assert all(line.keys() == {"step"} | LABEL_KEYS | GEOMETRY_KEYS for line in measured)
    np.testing.assert_allclose([line["epoch"] for line in trained], np.arange(1, 21) * 16 / 54)
    rates = [line["lr"] for line in trained]
    assert rates[0] == 0 and rates[1] == pytest.approx(0.1 * 16 / 256)
    assert rates[1:] == sorted(rates[1:], reverse=True)


# At the rate of the recipe so small a network doubles a rounding error many times a step.
SLOW = "--config.optim.base_lr=0.01"


@pytest.fixture(scope="module")
def plain(tmp_path_factory, unlabelled):
    """Six steps on images without labels, the second and third of them traced."""
    directory = tmp_path_factory.mktemp("plain")
    arguments = (*TINY, *UNLABELLED, f"--config.data.path={unlabelled}", SLOW)
    ended = doors.run(
        directory, *arguments, f"--workdir={directory / 'run'}", "--profile_steps=1:2"
    )
    assert ended.code == 0, ended
    return directory / "run", ended


def test_images_without_labels(plain):
    workdir, ended = plain
    names = {name for line in doors.metrics(workdir) for name in line}
    assert names == {"step"} | STEP_KEYS | GEOMETRY_KEYS
    assert "accuracy" not in ended.out and not (workdir / "results").exists()
    assert "also in" in ended.out


def test_profile_writes_a_trace(plain):
    traces = [*(plain[0] / "profile").rglob("*.xplane.pb")]
    assert len(traces) == 1 and traces[0].stat().st_size > 1000


@pytest.mark.slow
def test_steps_scanned_on_the_device_are_the_same_steps(plain, unlabelled, tmp_path):
    ended = doors.run(
        tmp_path,
        *TINY,
        *UNLABELLED,
        f"--config.data.path={unlabelled}",
        f"--workdir={tmp_path / 'run'}",
        SLOW,
        "--config.train.steps_per_call=2",
        "--config.log.every_steps=2",
        "--config.checkpoint.every_steps=2",
    )
    assert ended.code == 0, ended
    single, scanned = doors.losses(plain[0]), doors.losses(tmp_path / "run")
    assert list(scanned) == [2, 4, 6]
    means = [(single[k - 1] + single[k]) / 2 for k in scanned]  # a line has the mean of its steps
    np.testing.assert_allclose([*scanned.values()], means, rtol=1e-4)


def test_loss_that_is_not_finite_stops_the_run(unlabelled, tmp_path):
    workdir = tmp_path / "run"
    ended = doors.run(
        tmp_path,
        *TINY,
        *UNLABELLED,
        f"--config.data.path={unlabelled}",
        f"--workdir={workdir}",
        "--config.optim.name=sgd",
        "--config.optim.base_lr=1e36",
        "--config.log.every_steps=1",
        "--config.checkpoint.every_steps=1",
    )
    assert ended.code == 1, ended
    assert ended.err.startswith("error: the loss is not finite in steps ")
    assert ended.err.count("\n") == 1 and "optim.base_lr" in ended.err
    failed, good = (
        int(re.search(pattern, ended.err)[1])
        for pattern in (r"in steps (\d+) to", r"last good checkpoint is step (\d+)")
    )
    assert good < failed and failed - 1 == max(doors.losses(workdir))
    assert (workdir / "checkpoints" / str(good) / "manifest.json").exists()
    assert doors.leaves(workdir, good)


def test_help_answers_without_jax(tmp_path):
    ended = doors.run_fresh(*MAIN, "--help", **doors.block(tmp_path, "jax", "flax", "optax"))
    for flag in ("--config", "--workdir", "--resume", "--profile_steps", "--[no]debug"):
        assert flag in ended.out
    assert ended.err == "" and "Traceback" not in ended.out


def test_mistakes_in_flags_answer_without_jax(tmp_path):
    blocked = doors.block(tmp_path, "jax", "flax", "optax")
    ended = doors.run_fresh(*MAIN, *TINY, "--config.train.batchsize=8", **blocked)
    assert ended.code == 1 and ended.err.startswith("error: ") and ended.err.count("\n") == 1
