"""`python -m simclr_jax.convert` as a user meets it."""

from __future__ import annotations

import sys

import doors
import numpy as np
import pytest
from interop import official_files as files

pytestmark = pytest.mark.e2e
pytest.importorskip("tensorflow", reason="official checkpoints are read with TensorFlow")

DOOR = (sys.executable, "-m", "simclr_jax.convert")


def last_line(ended: doors.Ended) -> str:
    """Return the error; what stands before it are TensorFlow's own remarks on missing GPUs."""
    assert ended.code == 1 and "Traceback" not in ended.err, ended
    line = ended.err.splitlines()[-1]
    assert line.startswith("error: "), ended.err
    return line


def converted(tmp_path):
    """Convert a checkpoint through the door; return the run, and what was said."""
    values = files.values(files.shapes(classes=4, layers=2))
    source = files.write_tf1(tmp_path / "model.ckpt-7", values)
    run = tmp_path / "run"
    flags = ("--dataset=none", "--tap=1", f"--workdir={run}")
    ended = doors.run_fresh(*DOOR, f"--source={source}", *flags)
    assert ended.code == 0, ended
    return run, ended


def test_a_checkpoint_becomes_a_run(tmp_path):
    run, ended = converted(tmp_path)
    assert (run / "checkpoints" / "7").is_dir()
    for line in (
        "encoder    ResNet-18, width 0.015625, cifar stem: h has 8 numbers",
        "head       nonlinear, 2 layers: z has 5 numbers",
        "classifier 4 classes on layer 1 of the head; by its size it could read h: --tap",
        "left out   step counters, 1: global_step",
        f"written    {run}/checkpoints/7: start from it by --config.init.run={run}",
    ):
        assert line in ended.out.splitlines(), ended.out


@pytest.mark.slow
def test_training_starts_from_it(tmp_path):
    run, _ = converted(tmp_path)
    random = np.random.RandomState(0)
    images = {"images": random.randint(0, 255, (60, 12, 12, 3), np.uint8)}
    np.savez(tmp_path / "images.npz", labels=np.arange(60) % 4, **images)
    fields = {
        "data.path": tmp_path / "images.npz",
        "init.run": run,
        **{"model.depth": 18, "model.width": 1 / 64, "model.stem": "cifar"},
        **{"head.layers": 2, "head.dim": 5, "train.steps": 1, "optim.warmup_epochs": 0.0},
    }
    arguments = [f"--config.{name}={value}" for name, value in fields.items()]
    started = doors.run(tmp_path, *doors.TINY, f"--workdir={tmp_path / 'next'}", *arguments)
    assert started.code == 0, started
    assert f"start     from encoder,head of {run}@7" in started.out.splitlines(), started.out
    again = doors.run(tmp_path, *doors.TINY, f"--workdir={tmp_path / 'next'}", *arguments)
    assert again.code == 0 and "start     " not in again.out, again.out  # it has its own weights
    resumed = doors.run(tmp_path, *doors.TINY, f"--workdir={run}", *arguments)
    assert resumed.code == 1 and "holds a converted checkpoint" in resumed.err, resumed


def test_mistakes_end_in_one_line(tmp_path):
    assert "--source is missing" in last_line(doors.run_fresh(*DOOR, "--workdir=x"))
    (tmp_path / "photos").mkdir()
    ended = doors.run_fresh(*DOOR, f"--source={tmp_path / 'photos'}", f"--workdir={tmp_path / 'r'}")
    assert "has none (no file *.index)" in last_line(ended)
    assert not (tmp_path / "r").exists()
