"""A run's directory: who may write to it, which recipe it belongs to, and what it holds."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from simclr_jax import buckets, files, processes, recipes
from simclr_jax.closing import Closing
from simclr_jax.errors import UserError, choose
from simclr_jax.train.bucket_checkpoints import open_checkpoints
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.lock import WorkdirLock
from simclr_jax.train.progress import Console, Silence

RESUME = ("auto", "never", "must")
MOST_SHOWN = 8  # differing fields in an error
VISIBLE_SECS = 60.0  # network file systems remember for a while that a file was not there
CONVERTED = "convert"  # the stage of runs that were not trained here


@dataclasses.dataclass(frozen=True)
class Workdir:
    """An open run: its path, its log, its checkpoints, and the lock that makes it ours.

    `fresh`: it has no checkpoint, so whatever else lies there is of no run worth continuing.
    """

    path: epath.Path
    fresh: bool
    console: Console
    checkpoints: Checkpoints
    lock: WorkdirLock


def started(path: epath.PathLike) -> bool:
    """Tell whether a run in the directory `path` has saved anything, damaged since or not."""
    entries = buckets.listing(epath.Path(path) / "checkpoints")
    return any(entry.name[0].isdigit() for entry in entries)


def recipe_before(path: epath.PathLike) -> dict[str, Any] | None:
    """Return the recipe of the run in the directory `path`, or None if there is nothing to resume.

    Raises:
      UserError: if it is not JSON.
    """
    file = epath.Path(path) / "config.json"
    return files.read_json(file) if started(path) and file.exists() else None


@contextlib.contextmanager
def open_workdir(
    path: str,
    recipe: dict[str, Any],
    resume: str,
    *,
    keep: int,
    keep_period: int | None,
) -> Iterator[Workdir]:
    """Create or reopen the directory of a run, and hold its lock meanwhile.

    Args:
      path: the workdir.
      recipe: the resolved recipe and whatever else a resumed run must agree on; kept in
        `config.json`.
      resume: "auto" continues what is there or starts anew, "never" refuses a directory that
        holds a run, "must" refuses one that has no checkpoint.
      keep: newest checkpoints to keep.
      keep_period: keep checkpoints at multiples of this step as well.

    Raises:
      UserError: if the directory cannot be written, is in use, or holds the run of another recipe.
    """
    choose("--resume", resume, RESUME)
    if resume == "must" and not (epath.Path(path) / "checkpoints").exists():
        raise UserError(f"--resume=must, but {path} holds no checkpoint to resume from")
    processes.on_first(lambda: os.fspath(files.make_workdir(path)))
    workdir = epath.Path(path)
    with Closing() as stack:
        console = Console(workdir) if processes.rank() == 0 else Silence()
        stack.step(console.close)
        lock = WorkdirLock(workdir, say=console.say)
        checkpoints = open_checkpoints(
            workdir / "checkpoints", keep=keep, keep_period=keep_period, say=console.say
        )

        @files.explaining(workdir)
        def claim() -> bool:
            stack.enter(lock)
            stack.step(checkpoints.close)
            fresh = not started(workdir)
            check_recipe(workdir, recipe, resume, fresh)
            if checkpoints.steps() and not (workdir / "config.json").exists():
                raise UserError(
                    f"{workdir} holds checkpoints but no config.json: give another --workdir"
                )
            if resume == "must" and not checkpoints.steps():
                raise UserError(f"--resume=must, but {workdir} holds no checkpoint to resume from")
            files.write_json(workdir / "config.json", recipe)
            return fresh

        fresh = processes.on_first(claim)
        if processes.rank() > 0:
            stack.step(checkpoints.close)
        _check_shared(workdir / "config.json", recipe)
        yield Workdir(workdir, fresh, console, checkpoints, lock)


def _check_shared(path: epath.Path, recipe: dict[str, Any]) -> None:
    """Raise `UserError` unless every process finds what the first has just written."""
    deadline = time.monotonic() + VISIBLE_SECS
    while not (seen := _holds(path, recipe)) and time.monotonic() < deadline:
        time.sleep(0.5)
    for rank, found in enumerate(processes.everyone(seen)):
        if not found:
            raise UserError(
                f"process {rank} does not find {path} as process 0 wrote it: give a --workdir "
                "that all hosts share"
            )


def _holds(path: epath.Path, recipe: dict[str, Any]) -> bool:
    return path.exists() and files.read_json(path) == json.loads(json.dumps(recipe))


def check_recipe(workdir: epath.Path, recipe: dict[str, Any], resume: str, fresh: bool) -> None:
    """Raise `UserError` if a directory holds the run of another recipe; see `open_workdir`."""
    path = workdir / "config.json"
    if not path.exists():
        return
    if resume == "never":
        raise UserError(f"{workdir} holds a run already: give another --workdir, or --resume=auto")
    if fresh:
        return
    before = files.read_json(path)
    if before.get("stage") == CONVERTED and recipe.get("stage") != CONVERTED:
        raise UserError(
            f"{workdir} holds a converted checkpoint, which cannot be continued: start from it "
            f"by --config.init.run={workdir} in another --workdir"
        )
    # Fields that came after the run have defaults which leave it as it was.
    before = before | recipes.of_record(before).to_dict()
    differing = recipes.differences(before, recipe)
    if differing:
        shown = "; ".join(differing[:MOST_SHOWN])
        more = f"; and {len(differing) - MOST_SHOWN} more" if len(differing) > MOST_SHOWN else ""
        raise UserError(
            f"{workdir} holds a run of another recipe ({shown}{more}): "
            "give another --workdir, or the recipe of that run"
        )
