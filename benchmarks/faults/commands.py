"""The commands that `kills.py` and `environment.py` strike, and what must come of them.

Each works in a directory of its own, by relative paths: its outputs are the same wherever it lies.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import runs

ROOT = Path(__file__).parents[2]
RECIPES = Path(__file__).with_name("tiny.py")
LONGEST = 1800.0  # seconds of a command
# In JSON, what depends on the clock, and the checksum that covers it.
CLOCK = {*runs.CLOCK, "crc32", "minutes", "images_per_second", "host", "started"}
# What embeddings say of where things lie, and what covers that.
PLACES = {"checkpoint", "data", "directory", "mark", "crc32"}
# These have times, or depend on when a run was saved.
UNLIKE = (
    "log.txt",
    "log_window.jsonl",
    "lock.json",
    *(f".{s}.{i}" for s in ("out", "err") for i in range(9)),
)
TEMPORARY = (".tmp", ".orbax-checkpoint-tmp", ".pruned")


def _main(kind: str, *more: str) -> tuple[str, ...]:
    images = "--config.data.path=../images.npz" if kind not in ("pipeline", "folder") else ""
    if kind == "pipeline":
        images = "--config.runs.first.data.path=../images.npz"
    found = ("-m", "simclr_jax.main", f"--config={RECIPES}:{kind}", "--workdir=run", images, *more)
    return tuple(part for part in found if part)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line after the interpreter.

    Attributes:
      arguments: of Python.
      needs: the command whose finished directory is copied to `source` first.
      launcher: what the interpreter is started by.
    """

    arguments: tuple[str, ...]
    needs: str = ""
    launcher: tuple[str, ...] = ()

    def line(self) -> list[str]:
        """Return the whole command line."""
        return [*self.launcher, sys.executable, *self.arguments]


COMMANDS = {
    "pretrain": Command(_main("pretrain")),
    "negatives": Command(_main("negatives")),
    "byol": Command(_main("byol")),
    "moco": Command(_main("moco")),
    "finetune": Command(_main("finetune", "--config.init.run=source/run"), needs="pretrain"),
    "pipeline": Command(_main("pipeline")),
    "embed": Command(
        ("-m", "simclr_jax.embed", "--checkpoint=source/run", "--out=embedded.npz"),
        needs="pretrain",
    ),
    "linear_probe": Command(
        ("-m", "simclr_jax.linear_probe", "--checkpoint=source/run", "--knn=3"), needs="pretrain"
    ),
    "local -n 2": Command(
        _main("pretrain", f"--heartbeat_secs={runs.HEARTBEAT_SECS}"),
        launcher=(sys.executable, os.fspath(ROOT / "launch" / "local"), "-n", "2", "--"),
    ),
}
FOLDER = Command(_main("folder", "--config.data.path=../pictures"))


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float
    peak: float = 0.0  # megabytes of memory

    @property
    def lines(self) -> list[str]:
        """Return what it told the user to put right."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def one_line(self) -> bool:
        """Tell whether it ended by one such line, and nothing else."""
        return self.code in (1, 75) and len(self.lines) == 1 and "Traceback" not in self.err


def prepare(directory: Path, command: Command, references: Path) -> Path:
    """Make the directory of a command, with what it needs."""
    directory.mkdir(parents=True)
    if command.needs:
        shutil.copytree(references / command.needs, directory / "source")
    return directory


def start(line: list[str], directory: Path, number: int, notes: Path) -> subprocess.Popen:
    """Start a command line in a directory; what it prints goes to files in `notes`."""
    with (
        (notes / f".out.{number}").open("wb") as out,
        (notes / f".err.{number}").open("wb") as err,
    ):
        environment = os.environ | {"PYTHONPATH": os.fspath(ROOT)}
        return subprocess.Popen(
            line, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )


def wait(process: subprocess.Popen, notes: Path, number: int, began: float) -> Ended:
    """Wait for a command; one that does not end is killed and ends with 124."""
    peak = 0.0
    while process.poll() is None:
        if time.monotonic() > began + LONGEST:
            process.kill()
            process.wait()
            code = 124
            break
        peak = max(peak, _memory(process.pid))
        time.sleep(0.02)
    else:
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    out, err = ((notes / f".{n}.{number}").read_text(errors="replace") for n in ("out", "err"))
    return Ended(code, out, err, time.monotonic() - began, peak)


def run(line: list[str], directory: Path, number: int = 0, notes: Path | None = None) -> Ended:
    """Run a command line to its end."""
    notes = notes or directory
    return wait(start(line, directory, number, notes), notes, number, time.monotonic())


def _memory(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(found[0]) / 1024 if found else 0.0


# What came of it


def outputs(directory: Path) -> dict[str, Any]:
    """Return all that a command has made and that must be the same each time, by name."""
    found: dict[str, Any] = {}
    for path in sorted(directory.rglob("*")):
        name = os.fspath(path.relative_to(directory))
        if path.name == "checkpoints" and path.is_dir():
            newest = runs.leaves(path.parent)
            last = max(newest, default=None)
            found[name] = {} if last is None else {n: _array(a) for n, a in newest[last].items()}
            found[f"{name} newest"] = last
        elif path.is_file() and (content := _content(path)) is not None:
            found[name] = content
    return found


def _content(path: Path) -> Any:
    if {"checkpoints", "tensorboard"} & {*path.parts} or path.name in UNLIKE:
        return None
    if path.suffix == ".npz":
        with np.load(path) as archive:
            arrays: dict[str, Any] = {n: _array(archive[n]) for n in archive.files}
            if "about" in archive.files:  # of embeddings: it names directories, and bears a mark
                about = json.loads(str(archive["about"]))
                arrays["about"] = {n: v for n, v in about.items() if n not in PLACES}
            return arrays
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _array(array: np.ndarray) -> tuple:
    array = np.asarray(array)
    return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(held) for name, held in value.items() if name not in CLOCK}
    return [_timeless(held) for held in value] if isinstance(value, list) else value


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return the names of outputs that differ, are missing or too many."""
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if found.get(name) != expected.get(name)]


def left_behind(directory: Path) -> list[str]:
    """Return what should not be there when nothing runs."""
    return [
        os.fspath(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.name.endswith(TEMPORARY) or path.name.startswith("lock.")
    ]
