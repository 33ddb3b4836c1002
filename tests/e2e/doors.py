"""Run the doors as a user would, on a recipe small enough for a test.

A process that imports JAX takes seconds to get anywhere. So most tests fork a server that has
imported everything once (and started no device); what they meet from `errors.run` on, arguments,
streams and exit code included, is what `python -m simclr_jax.main` does.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
MAIN = (sys.executable, "-m", "simclr_jax.main")

# 60 images of 12x12 pixels and 4 classes; 54 to train on: an epoch is 3.4 steps.
TINY = (
    "--config=configs/digits.py",
    "--config.data.source=memory",
    "--config.data.image_size=8",
    "--config.model.width=0.0625",
    "--config.model.stem=cifar",
    "--config.head.dim=8",
    "--config.head.layers=2",
    "--config.train.batch_size=16",
    "--config.train.steps=6",
    "--config.optim.warmup_epochs=0.5",
    "--config.eval.every_epochs=0.0",
    "--config.eval.few_labels=2",
    "--config.eval.knn_k=3",
    "--config.log.every_steps=1",
    "--config.checkpoint.every_steps=3",
)
UNLABELLED = ("--config.eval.probe=False", "--config.eval.knn=False")


def write_images(path: Path, labels: bool = True, side: int = 12) -> Path:
    """Write an archive of random images, each class of another brightness."""
    random = np.random.RandomState(0)
    label = np.arange(60) % 4
    pixels = random.randint(0, 100, (60, side, side, 1)) + 40 * label[:, None, None, None]
    arrays = {"images": pixels.astype(np.uint8)} | ({"labels": label} if labels else {})
    np.savez(path, **arrays)
    return path


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a user sees of a door: its exit code and what it printed."""

    code: int
    out: str
    err: str


class Door:
    """A door that is running."""

    def __init__(self, process: BaseProcess, directory: Path):
        self.process, self._directory = process, directory

    def wait(self) -> Ended:
        self.process.join(120)
        assert self.process.exitcode is not None, "still running after two minutes"
        out, err = ((self._directory / name).read_text() for name in ("out", "err"))
        return Ended(self.process.exitcode, out, err)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something the running door does to become visible."""
        while not condition():
            assert self.process.is_alive(), self.wait()
            time.sleep(0.005)


def _run(arguments: tuple[str, ...], directory: str, environment: dict[str, str]) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = ["simclr_jax/main.py", *arguments]

    from simclr_jax import errors, main

    errors.run(main.main)


def start(tmp_path: Path, *arguments: str, devices: int = 1) -> Door:
    """Start `python -m simclr_jax.main` in the background, on some CPU devices."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simclr_jax.main", "simclr_jax.stages.pretrain", "PIL.Image"])
    process = context.Process(
        target=_run, args=(arguments, os.fspath(tmp_path), {"XLA_FLAGS": flags})
    )
    process.start()
    return Door(process, tmp_path)


def run(tmp_path: Path, *arguments: str, devices: int = 1) -> Ended:
    """Run `python -m simclr_jax.main` to its end."""
    return start(tmp_path, *arguments, devices=devices).wait()


def run_fresh(*command: str, **environment: str) -> Ended:
    """Run a command in an interpreter of its own."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("=8", "=1")} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def metrics(workdir: Path) -> list[dict]:
    """Read `metrics.jsonl`; a line still being written is left out."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
