"""A method is one file and one recipe: a toy that nobody else knows goes through every door."""

from __future__ import annotations

import json
import signal

import doors
import numpy as np
import pytest

pytestmark = pytest.mark.e2e

TOY = ("--config=tests/e2e/toy_recipe.py",)


@pytest.fixture(scope="module")
def toy(tmp_path_factory, images):
    directory = tmp_path_factory.mktemp("toy")
    arguments = (*TOY, f"--config.data.path={images}", f"--workdir={directory / 'run'}")
    ended = doors.run(directory, *arguments)
    assert ended.code == 0, ended
    return directory / "run", ended


@pytest.mark.slow
def test_it_trains_and_says_what_it_does(toy):
    workdir, ended = toy
    assert (
        "batch     16 images (48 views)" in ended.out
    )  # two of the first policy, one of the other
    assert "slow " in ended.out and "kNN" in ended.out and "probe, all labels" in ended.out
    assert "guess " in ended.out  # in the table of parameters
    recipe = json.loads((workdir / "config.json").read_text())
    assert recipe["method"] == "tests.e2e.toy_method"
    assert recipe["toy_method"] == {"weight": 1.0, "momentum": 0.9}
    losses = [line["loss"] for line in doors.metrics(workdir) if "loss" in line]
    assert len(losses) == 3
    seen = [line["seen"] for line in doors.metrics(workdir) if "loss" in line]
    assert 0 < seen[0] < seen[-1]  # 54 images, 16 a step: a new epoch begins in the fifth


@pytest.mark.slow
@pytest.mark.parametrize("every", [3, 4])
def test_a_killed_run_continues_to_the_same_bits(toy, images, tmp_path, every):
    """Inside an epoch, and just where the hook before the second epoch is due."""
    toy_run = toy[0]
    if every == 4:
        toy_run = tmp_path / "straight"
        straight = (*TOY, f"--config.data.path={images}", f"--workdir={toy_run}")
        ended = doors.run(tmp_path, *straight, f"--config.checkpoint.every_steps={every}")
        assert ended.code == 0, ended
    arguments = (*TOY, f"--config.data.path={images}", f"--workdir={tmp_path / 'run'}")
    arguments = (*arguments, f"--config.checkpoint.every_steps={every}")
    saved = tmp_path / "run" / "checkpoints" / str(every) / "manifest.json"
    blow = doors.Blow(signal.SIGKILL, 6, saved)
    assert doors.run(tmp_path, *arguments, blow=blow).code == -signal.SIGKILL
    ended = doors.run(tmp_path, *arguments)
    assert ended.code == 0 and f"resumed at step {every} of 6" in ended.out, ended
    assert doors.metrics(tmp_path / "run") == doors.metrics(toy_run)
    found, want = doors.leaves(tmp_path / "run", 6), doors.leaves(toy_run, 6)
    assert found.keys() == want.keys() and any("slow" in name for name in want)
    assert all(np.array_equal(found[name], want[name]) for name in want)


@pytest.mark.slow
def test_plan_probe_and_report_know_it(toy, images, tmp_path):
    workdir, _ = toy
    data = f"--config.data.path={images}"
    ended = doors.run(tmp_path, *TOY, data, "--device=a100", "--devices=2", door="plan")
    assert ended.code == 0 and "8 (24 views) on a device" in ended.out, ended
    assert "averages, queues" in ended.out
    ended = doors.run(
        tmp_path, f"--checkpoint={workdir}", "--solver=knn,lbfgs", door="linear_probe"
    )
    assert ended.code == 0 and "knn" in ended.out, ended
    page = tmp_path / "report.html"
    ended = doors.run(tmp_path, f"--checkpoint={workdir}", f"--out={page}", door="report")
    assert ended.code == 0, ended
    text = page.read_text()
    for words in (
        "Brightness pretraining of a ResNet-10",
        "Error of the average",
        "nothing learned",
    ):
        assert words in text


@pytest.mark.slow
def test_its_weights_start_another_run(toy, images, tmp_path):
    workdir, _ = toy
    start = (f"--config.init.run={workdir}", "--config.init.parts=encoder,guess")
    run = (*TOY, f"--config.data.path={images}", f"--workdir={tmp_path / 'run'}")
    ended = doors.run(tmp_path, *run, *start, "--config.seed=1", "--config.optim.base_lr=1e-9")
    assert ended.code == 0, ended
    (kernel,) = [
        name
        for name in doors.leaves(workdir, 6)
        if "params'" in name
        and "guess" in name
        and "kernel" in name
        and "extra" not in name
        and "opt_state" not in name
    ]
    before, after = doors.leaves(workdir, 6)[kernel], doors.leaves(tmp_path / "run", 6)[kernel]
    np.testing.assert_allclose(before, after, atol=1e-6)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--config.toy_method.weight=0.0",), ["toy_method.weight is 0.0", "greater than 0"]),
        (("--config.toy_method.wieght=2.0",), ["wieght", "weight"]),
        (("--config.head.kind=linear",), ["head.kind is linear", "does not read it", "none"]),
        (("--config.loss.temperature=0.5",), ["loss.temperature is 0.5", "leave it at 0.1"]),
        (("--config.method=smclr",), ["smclr", "simclr"]),
        (("--config.method=no.such",), ["no module no", "PYTHONPATH"]),
        (("--config.method=json.decoder",), ["json.decoder", "no DECLARATION"]),
        (("--config.augment.views.first.group=odd",), ["group odd", "it knows views"]),
    ],
)
def test_what_is_wrong_with_it_is_one_line(images, tmp_path, arguments, words):
    run = (*TOY, f"--config.data.path={images}", f"--workdir={tmp_path / 'run'}")
    ended = doors.run(tmp_path, *run, *arguments)
    assert ended.code == 1 and len(ended.err.strip().splitlines()) == 1, ended
    assert all(word in ended.err for word in words), ended.err
    assert not (tmp_path / "run").exists()
