"""Two processes with four devices each are one run: the numbers of one process, one end."""

import dataclasses
import json
import os
import re
import signal
import sys

import doors
import numpy as np
import pytest
from doors import TINY
from PIL import Image

from simclr_jax.train.checkpoints import Checkpoints

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STEPS = 12
LOCAL = (sys.executable, "launch/local", "-n", "2", "--devices_each=4")
STRUCK = (sys.executable, "tests/e2e/struck.py")
RECIPE = (
    *TINY,
    "--config.data.source=folder",
    "--config.data.max_bad_fraction=0.1",
    "--config.augment.placement=split",
    "--config.augment.grid=opencv",
    "--config.optim.warmup_epochs=0.0",
    "--config.train.dtype=float64",
    f"--config.train.steps={STEPS}",
    "--config.checkpoint.every_steps=3",
    "--config.checkpoint.keep=9",
    "--config.eval.every_epochs=1.0",
    "--config.eval.compare=False",
)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Name images of four classes of different brightness, of which five cannot be read."""
    directory, random = tmp_path_factory.mktemp("images"), np.random.RandomState(0)
    for i in range(60):
        path = directory / f"class{i % 4}" / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = random.randint(0, 100, (*random.randint(8, 30, 2), 3)) + 40 * (i % 4)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        if i % 11 == 5:
            path.write_bytes(path.read_bytes()[:-60])
    return (*RECIPE, f"--config.data.path={directory}")


def train(workdir, *command, devices=1):
    """Run a command in float64 and return how it ended."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    return doors.run_fresh(*command, f"--workdir={workdir}", JAX_ENABLE_X64="1", XLA_FLAGS=flags)


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A run of two processes, one of which got SIGTERM after step 4."""

    workdir: doors.Path
    ended: doors.Ended
    step: int


@pytest.fixture(scope="module")
def stopped(arguments, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two") / "run"
    strike = ("1", "4", str(int(signal.SIGTERM)))
    ended = train(workdir, *LOCAL, "--", *STRUCK, *strike, *arguments)
    assert ended.code == 75, ended
    return Stopped(workdir, ended, int(re.findall(r"stopped at step (\d+)", ended.out)[0]))


@pytest.fixture(scope="module")
def alone(arguments, tmp_path_factory):
    """Return the same run in one process with one device, and with eight."""
    workdirs = {devices: tmp_path_factory.mktemp("one") / "run" for devices in (1, 8)}
    for devices, workdir in workdirs.items():
        ended = train(workdir, *doors.MAIN, *arguments, devices=devices)
        assert ended.code == 0, ended
    return workdirs


@pytest.mark.parametrize("devices", [1, 8])
def test_two_processes_compute_what_one_does(stopped, alone, devices):
    expected, found = (
        Checkpoints(workdir / "checkpoints", read_only=True).leaves(3)[1]
        for workdir in (alone[devices], stopped.workdir)
    )
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        assert leaf.dtype in (np.float64, np.int32), name
        np.testing.assert_allclose(found[name], leaf, rtol=0, atol=1e-10, err_msg=name)
    # Evaluations, to which each process brings the images that it could read, are here too.
    there = [line for line in doors.metrics(alone[devices]) if line["step"] <= 3]
    here = [line for line in doors.metrics(stopped.workdir) if line["step"] <= 3]
    assert any("knn_accuracy" in line for line in there)
    for line, same in zip(there, here, strict=True):
        assert line == pytest.approx(same, rel=1e-6, abs=1e-9)


def test_both_stop_after_the_same_step_when_one_is_asked_to(stopped):
    assert 4 <= stopped.step < STEPS
    saved = sorted(int(path.name) for path in (stopped.workdir / "checkpoints").iterdir())
    assert saved == sorted({3, *range(3, stopped.step + 1, 3), stopped.step})
    assert list(doors.losses(stopped.workdir)) == list(range(1, stopped.step + 1))
    assert stopped.ended.out.count("the same command continues from there") == 1
    assert "[1] step" not in stopped.ended.out, "the second process says nothing"
    assert len(list((stopped.workdir / "tensorboard").iterdir())) == 1, "nor does it write"


def test_each_process_lists_what_it_could_not_read(stopped, alone):
    def listed(workdir):
        files = sorted(workdir.glob("unreadable_*.jsonl"))
        lines = [line for file in files for line in file.read_text().splitlines()]
        return {json.loads(line)["image"] for line in lines}, [file.name for file in files]

    images, names = listed(stopped.workdir)
    assert images == listed(alone[8])[0] and len(images) == 5
    assert all(re.fullmatch(r"unreadable_(train|held_out)\.[01]\.jsonl", name) for name in names)


def test_one_process_continues_what_two_began(stopped, alone, arguments):
    ended = train(stopped.workdir, *doors.MAIN, *arguments, "--resume=must", devices=8)
    assert ended.code == 0, ended
    assert f"resumed at step {stopped.step} of {STEPS}" in ended.out
    expected, found = doors.losses(alone[8]), doors.losses(stopped.workdir)
    assert list(found) == list(range(1, STEPS + 1))
    np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-7)
