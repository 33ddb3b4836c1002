"""Disks of a few megabytes, and what others do to them while a run is at work."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIZE = "24m"

# Instants of a run: a function that is about to be called, and before which of its calls.
MOMENTS = {
    "before anything is compiled": ("simclr_jax.parallel:make_mesh", 0),
    "the lock is taken": ("simclr_jax.train.lock:WorkdirLock.__enter__", 0),
    "the recipe is written": ("simclr_jax.train.workdir:check_recipe", 0),
    "the first line of the log": ("simclr_jax.stages.summary:announce", 0),
    "views.png": ("simclr_jax.stages.views:draw", 0),
    "the first evaluation": ("simclr_jax.train.log:Log.evaluation", 0),
    "the first save": ("simclr_jax.train.checkpoints:Checkpoints._begin", 0),
    "the seal of the first save": ("simclr_jax.train.manifest:write", 0),
    "a later save": ("simclr_jax.train.checkpoints:Checkpoints._begin", 1),
    "the seal of a later save": ("simclr_jax.train.manifest:write", 1),
    "metrics are flushed": ("simclr_jax.train.metrics:MetricsWriter.flush", 3),
    "a later evaluation": ("simclr_jax.train.log:Log.evaluation", 3),
    "results are written": ("simclr_jax.stages.summary:conclude", 0),
    "metrics are closed": ("simclr_jax.train.metrics:MetricsWriter.close", 0),
}


@contextlib.contextmanager
def mounted(path: Path) -> Iterator[Path]:
    """Mount a small file system in memory."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def filling(disk: Path) -> str:
    """Return a command that writes until nothing is left."""
    return f"cat /dev/zero >> '{disk}/ballast'"


def fill(disk: Path) -> None:
    """Leave nothing; `empty` frees it again."""
    subprocess.run(["sh", "-c", filling(disk)], stderr=subprocess.DEVNULL, check=False)
    assert os.statvfs(disk).f_bavail == 0


def empty(disk: Path) -> None:
    """Free what was filled."""
    (disk / "ballast").unlink()


def sealing(disk: Path) -> str:
    """Return a command that makes a disk read-only; `unseal` takes it back.

    A mount above it, for one with files open for writing refuses. They can still be written, as
    on a disk whose errors have made it read-only while its cache lives.
    """
    return f"mount --bind '{disk}' '{disk}' && mount -o remount,bind,ro '{disk}'"


def unseal(disk: Path) -> None:
    """Make a disk writable again."""
    subprocess.run(["umount", disk], check=True)


@dataclasses.dataclass(frozen=True)
class When:
    """What another process does just before a function of the package is called.

    Attributes:
      place: `MODULE:NAME` of the function.
      call: before which call, from 0.
      command: of a shell; `PID` is that of the run.
    """

    place: str
    call: int
    command: str

    def arm(self) -> None:
        """Wrap the function."""
        module, _, names = self.place.partition(":")
        owner = importlib.import_module(module)
        *parents, name = names.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        function, calls = getattr(owner, name), []

        def struck(*args: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) == self.call + 1:
                command = self.command.replace("PID", str(os.getpid()))
                subprocess.run(["sh", "-c", command], stderr=subprocess.DEVNULL, check=False)
            return function(*args, **options)

        setattr(owner, name, struck)


@dataclasses.dataclass(frozen=True)
class Both:
    """Two things that happen to a run."""

    first: When
    second: When

    def arm(self) -> None:
        """Arm both."""
        self.first.arm()
        self.second.arm()
