"""The race to a target: its clocks, calls, end and log; on images that stay on the device."""

import itertools
import json
import os
import shutil
import signal
import sys

import doors
import numpy as np
import pytest
import raced

from simclr_jax import documents

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STEPS, EVERY = 11, 6  # the last chunk is shorter, and compiled apart
SETTINGS = (
    *doors.TINY,
    f"--config.train.steps={STEPS}",
    "--config.train.steps_per_call=2",
    "--config.log.every_steps=2",
    "--config.checkpoint.every_steps=4",
    "--config.data.resident=True",
    "--config.eval.every_epochs=1.78",  # of 3.375 steps
    "--config.eval.probe=False",
    "--config.eval.compare=False",
)


@pytest.fixture(scope="module")
def race(images):
    """Return a function that runs the benchmark in a directory, as `raced.py` says."""

    def race(workdir, how="plain", target=100.1, *more):
        path = os.pathsep.join(map(str, (doors.ROOT, doors.ROOT / "tests")))
        return doors.run_fresh(
            *(sys.executable, "tests/e2e/raced.py", how, *SETTINGS, f"--config.data.path={images}"),
            *(f"--workdir={workdir}", f"--target={target}", *more),
            PYTHONPATH=path,
        )

    return race


@pytest.fixture(scope="module")
def straight(race, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    ended = race(workdir, "counted")
    assert ended.code == 0, ended
    return workdir


def kept(workdir):
    return documents.read(workdir / "seed_0" / "speedrun.json", dict)


def steps(workdir):
    return [point["step"] for point in kept(workdir)["curve"]]


def log(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def row(ended):
    (found,) = [line.split() for line in ended.out.splitlines() if line.startswith("0 ")]
    return found


def test_training_is_counted_and_neither_compilation_nor_evaluation(straight):
    found = kept(straight)
    # The devices are waited for at each evaluation, and before the last chunk is compiled.
    assert [point["training"] for point in found["curve"]] == [0, 1, 3]
    assert found["compiling"] == 2 * raced.COMPILING
    walls = [point["wall"] for point in found["curve"]]
    assert walls == sorted(walls) and walls[0] > 0


def test_a_curve_has_the_accuracies_of_the_run(straight):
    lines = [line for line in doors.metrics(straight / "seed_0") if "knn_accuracy" in line]
    want = [(line["step"], line["knn_accuracy"]) for line in lines]
    curve = kept(straight)["curve"]
    assert [(point["step"], point["knn"]) for point in curve] == want
    assert [step for step, _ in want] == [0, EVERY, STEPS]
    assert [point["epoch"] for point in curve] == [step * 16 / 54 for step in (0, EVERY, STEPS)]


def test_the_log_says_what_another_needs_to_judge_it(straight, images):
    (line,) = log(straight)
    assert not line["reached"] and line["step"] == STEPS and line["seed"] == 0
    assert line["device_seconds"] == line["training"] == 3 and line["calls"] == 1
    assert line["devices"] == "1 x cpu" and line["versions"]["jax"]
    assert line["config"] == "tests/e2e/tiny.py"
    assert line["changed"]["data.path"] == str(images) and line["changed"]["train.steps"] == "11"
    assert "model.depth: 50 -> 10" in line["beside_the_defaults"]
    assert line["images"][0].startswith("54 images")
    assert line["curve"] == [[p["training"], p["epoch"], p["knn"]] for p in kept(straight)["curve"]]


def test_stopped_and_killed_and_out_of_budget_it_is_the_same_run(race, straight, tmp_path):
    """Four calls: told to stop between two evaluations; out of time; killed; to the end."""
    ended = race(tmp_path, "SIGTERM:2:")
    assert ended.code == 75 and row(ended)[1] == "not", ended
    assert steps(tmp_path) == [0, 4] and kept(tmp_path)["curve"][1]["knn"] is None

    ended = race(tmp_path, "plain", 100.1, "--budget=0.01")
    assert ended.code == 75 and "not done: the same command goes on from here" in ended.out, ended
    assert steps(tmp_path) == [0, 4, EVERY]

    # The third is killed as well, and began before that evaluation: its checkpoint is damaged.
    saved = tmp_path / "seed_0" / "checkpoints" / str(EVERY) / "manifest.json"
    saved.unlink()
    ended = race(tmp_path, f"SIGKILL:8:{saved}")
    assert ended.code == -signal.SIGKILL and "resumed at step 4" in ended.out, ended
    assert steps(tmp_path) == [0, 4, EVERY] and not (tmp_path / "log.jsonl").exists()
    before = kept(tmp_path)["curve"]

    ended = race(tmp_path)
    assert ended.code == 0 and row(ended)[1] == "no", ended
    found = kept(tmp_path)
    assert found["calls"] == 4 and found["curve"][:-1] == before and steps(tmp_path)[-1] == STEPS
    clocks = [(point["training"], point["wall"]) for point in found["curve"]]
    assert all(a < c and b < d for (a, b), (c, d) in itertools.pairwise(clocks))
    assert clocks[-1][0] + found["compiling"] < clocks[-1][1]

    expected = doors.leaves(straight / "seed_0", STEPS)
    for name, leaf in doors.leaves(tmp_path / "seed_0", STEPS).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


def test_it_ends_at_the_first_evaluation_that_reaches_the_target(race, straight, tmp_path):
    first, second, third = (100 * point["knn"] for point in kept(straight)["curve"])
    assert first < second <= third, "or the target is none"
    ended = race(tmp_path, "plain", second)
    assert ended.code == 0, ended
    assert steps(tmp_path) == [0, EVERY]
    assert row(ended)[1:3] == ["yes", f"{second:.1f}"]
    (line,) = log(tmp_path)
    assert line["reached"] and line["step"] == EVERY

    # The same of a run that went further, without training; a line for each target, once.
    done = shutil.copytree(straight, tmp_path / "done")
    for _ in range(2):
        ended = race(done, "plain", second)
        assert ended.code == 0 and row(ended)[1:3] == ["yes", f"{second:.1f}"], ended
    assert [(line["target"] < 1, line["step"]) for line in log(done)] == [
        (False, STEPS),
        (True, EVERY),
    ]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--config.eval.knn=False"], "eval.knn is False, but kNN accuracy is what"),
        (["--seeds=0,1.5"], "--seeds has 1.5: give whole numbers, 0 or more"),
        (
            ["--config.optim.base_lr=0.2"],
            "holds a run of another recipe (optim.base_lr: 0.1 -> 0.2",
        ),
    ],
)
def test_mistakes_are_one_line(race, straight, arguments, said):
    ended = race(straight, "plain", 100.1, *arguments)
    assert ended.code == 1 and ended.err.startswith("error: "), ended
    assert said in ended.err and ended.err.count("\n") == 1


def test_clocks_that_are_gone_are_not_made_up(race, straight, tmp_path):
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    (tmp_path / "seed_0" / "speedrun.json").unlink()
    ended = race(tmp_path)
    assert ended.code == 1 and "does not know how long the 11 steps took" in ended.err, ended
