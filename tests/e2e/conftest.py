"""Tiny images, and a finished run that many tests look at and none may change."""

import dataclasses
from pathlib import Path

import doors
import pytest


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return doors.write_images(tmp_path_factory.mktemp("images") / "images.npz")


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory):
    return doors.write_images(tmp_path_factory.mktemp("images") / "pixels.npz", labels=False)


@dataclasses.dataclass(frozen=True)
class Finished:
    """A complete run: the arguments but for `--workdir`, where it lives, what it said."""

    arguments: tuple[str, ...]
    workdir: Path
    ended: doors.Ended


@pytest.fixture(scope="session")
def finished(tmp_path_factory, images):
    """Train 20 steps, 5.9 epochs, in a fresh interpreter that cannot import TensorFlow.

    With a memory of negatives, so that all there can be in a state is there.
    """
    directory = tmp_path_factory.mktemp("finished")
    arguments = (
        *doors.TINY,
        f"--config.data.path={images}",
        "--config.train.steps=20",
        "--config.eval.every_epochs=1.0",
        "--config.checkpoint.every_steps=7",
        "--config.memory.size=40",
    )
    blocked = doors.block(directory, "tensorflow", "tensorflow_datasets", "tensorboard")
    workdir = directory / "run"
    ended = doors.run_fresh(*doors.MAIN, *arguments, f"--workdir={workdir}", **blocked)
    assert ended.code == 0, ended
    return Finished(arguments, workdir, ended)
