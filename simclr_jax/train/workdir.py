"""A run's directory: who may write to it, which recipe it belongs to, and what it holds."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging
from etils import epath

from simclr_jax import buckets, documents, files, processes, records, segments, validation
from simclr_jax.closing import Closing
from simclr_jax.errors import BadFile, UserError, choose
from simclr_jax.train import manifest, mending, stored
from simclr_jax.train.bucket_checkpoints import open_checkpoints
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.lock import WorkdirLock
from simclr_jax.train.loggers import Loggers
from simclr_jax.train.progress import Console, Silence

RESUME = ("auto", "never", "must")
VISIBLE_SECS = 60.0  # network file systems remember for a while that a file was not there
LENGTH = ("train.epochs: ", "train.steps: ")  # fields that differ, each with its values
CONVERTED = "convert"  # the stage of runs that were not trained here


@dataclasses.dataclass(frozen=True)
class Workdir:
    """An open run: its path, log, checkpoints, the lock that makes it ours, and its loggers.

    `fresh`: no save was begun there, so whatever else lies there is of no run worth continuing.
    `lost`: the newest step that is known to have been saved there and is there no more, or 0.
    """

    path: epath.Path
    fresh: bool
    lost: int
    console: Console
    checkpoints: Checkpoints
    lock: WorkdirLock
    loggers: Loggers


def started(path: epath.PathLike) -> bool:
    """Tell whether a run in the directory `path` has begun a save, whatever became of it."""
    entries = buckets.listing(epath.Path(path) / stored.CHECKPOINTS)
    return any(entry.name[0].isdigit() for entry in entries)


def recipe_before(path: epath.PathLike) -> dict[str, Any] | None:
    """Return the recipe of the run in the directory `path`, or None if there is nothing to resume.

    Raises:
      UserError: if it cannot be used.
    """
    return stored.of_run(path) if started(path) else None


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
      UserError: if the directory cannot be written, is in use, holds the run of another recipe, or
        one whose checkpoints are gone.
    """
    choose("--resume", resume, RESUME)
    if resume == "must" and not (epath.Path(path) / stored.CHECKPOINTS).exists():
        raise UserError(f"--resume=must, but {path} holds no checkpoint to resume from")
    processes.on_first(lambda: os.fspath(files.make_workdir(path)))
    workdir = epath.Path(path)
    with Closing() as stack:
        console = Console(workdir) if processes.rank() == 0 else Silence()
        stack.step(console.close)
        lock = WorkdirLock(workdir, say=console.say)
        checkpoints = open_checkpoints(
            workdir / stored.CHECKPOINTS,
            keep=keep,
            keep_period=keep_period,
            stay=[segment.first_step for segment in segments.of_record(recipe)],
            recipe=recipe,
            sealed=lambda step: documents.write(workdir / stored.SAVED, {"step": step}),
            say=console.say,
        )

        @files.explaining(workdir)
        def claim() -> tuple[bool, int]:
            stack.enter(lock)
            stack.step(checkpoints.close)
            fresh = not started(workdir)
            if resume == "must" and not checkpoints.steps():
                raise UserError(f"--resume=must, but {workdir} holds no checkpoint to resume from")
            check_recipe(workdir, recipe, resume, fresh)
            lost = check_saves(workdir, console.say)
            if not lost and checkpoints.steps():  # of an earlier version, or killed since its save
                documents.write(workdir / stored.SAVED, {"step": checkpoints.steps()[-1]})
            _tidy(workdir, checkpoints, lost)
            if not fresh and not (workdir / stored.NAME).exists():
                console.say(f"{stored.NAME} was gone: it is restored from the checkpoints")
            documents.write(workdir / stored.NAME, recipe)
            return fresh, lost

        fresh, lost = processes.on_first(claim)
        if processes.rank() > 0:
            stack.step(checkpoints.close)
        _check_shared(workdir / stored.NAME, recipe)
        loggers = stack.enter(Loggers(workdir, console.say))
        processes.on_first(lambda: loggers.begin(recipe, fresh))
        yield Workdir(workdir, fresh, lost, console, checkpoints, lock, loggers)


def _tidy(workdir: epath.Path, checkpoints: Checkpoints, lost: int) -> None:
    """Delete what processes that were killed had half written."""
    checkpoints.sweep(lost)
    for directory in (workdir, workdir / "results", workdir / "index"):
        files.sweep(directory)
    for directory in buckets.listing(workdir / "features"):
        files.sweep(directory)


def check_saves(workdir: epath.PathLike, say: Callable[[str], None] = logging.warning) -> int:
    """Return the newest step that was saved in a workdir if it is there no more, else 0.

    Raises:
      UserError: if steps were saved and nothing at all is left of them: a run that started anew
        there would write over what the other has left.
    """
    workdir = epath.Path(workdir)
    place = workdir / stored.CHECKPOINTS
    try:
        known = documents.read(
            workdir / stored.SAVED, stored.Newest, "the next save writes it anew"
        )["step"]
    except FileNotFoundError:
        known = -1 if _saved_before(workdir) else 0
    except BadFile as error:  # a save has written it, whatever it says now
        known = -1
        say(str(error))
    there = _sealed(place)
    if known and not there:
        step = f"step {known}" if known > 0 else "steps"
        whole = f", each with its {manifest.NAME}" if started(workdir) else ""
        raise UserError(
            f"{workdir} holds a run that had saved {step}, and no checkpoint of it any more: bring "
            f"{place} back{whole}, or give another --workdir; to start anew in this one, move "
            f"{stored.SAVED}, metrics.jsonl and results away"
        )
    return 0 if known in there else max(known, 0)


def _sealed(checkpoints: epath.Path) -> set[int]:
    """Return the steps that have a manifest, those that were set aside since too."""
    found = set()
    with buckets.reaching(checkpoints):
        for entry in buckets.listing(checkpoints):
            name = re.fullmatch(r"([0-9]{1,18})(\.damaged.*)?", entry.name)
            if name and (entry / manifest.NAME).exists():
                found.add(int(name[1]))
    return found


def check_nothing_was_saved(workdir: Workdir) -> None:
    """Raise `UserError` if a run would begin anew over what is left of one that had saved."""
    if damaged := workdir.checkpoints.damaged():
        raise UserError(
            f"no checkpoint in {workdir.path} is whole any more ({', '.join(damaged)}): "
            "to start again, give another --workdir"
        )
    check_saves(workdir.path, workdir.console.say)


def _saved_before(workdir: epath.Path) -> bool:
    """Tell whether a run by a version that kept no account of its saves had finished one.

    A save waits for the one before: what is logged after the second tells of the first.
    """
    if (workdir / "results" / "summary.json").exists():
        return True
    try:
        every = validation.stored(stored.in_config(workdir)).checkpoint.every_steps
        content = documents.content(workdir / "metrics.jsonl")
    except (FileNotFoundError, BadFile):
        return False
    lines = [mending.parsed(line) for line in content.decode(errors="replace").split("\n")]
    return max((line.step for line in lines if line), default=0) > 2 * every


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
    try:
        found = documents.read(path, dict[str, Any])
    except FileNotFoundError:
        return False
    return found == documents.parse(documents.line(recipe), dict[str, Any])


def check_recipe(workdir: epath.Path, recipe: dict[str, Any], resume: str, fresh: bool) -> None:
    """Raise `UserError` if a directory holds the run of another recipe; see `open_workdir`."""
    there = (workdir / stored.NAME).exists()
    if resume == "never" and (there or not fresh):
        raise UserError(f"{workdir} holds a run already: give another --workdir, or --resume=auto")
    if fresh:
        return
    if (before := stored.of_run(workdir)) is None:
        raise UserError(f"{workdir} holds checkpoints but no {stored.NAME}: give another --workdir")
    if before.get("stage") == CONVERTED and recipe.get("stage") != CONVERTED:
        raise UserError(
            f"{workdir} holds a converted checkpoint, which cannot be continued: start from it "
            f"by --config.init.run={workdir} in another --workdir"
        )
    if differing := records.changed(before, recipe):
        remedy = "give another --workdir, or the recipe of that run"
        if all(field.startswith(LENGTH) for field in differing):
            remedy = (
                "to train that run on after its end, leave its length as it is and give "
                "--extend_to=EPOCHS; else give another --workdir"
            )
        raise UserError(
            f"{workdir} holds a run of another recipe ({stored.listed(differing)}): {remedy}"
        )
    for step, sealed in stored.in_checkpoints(workdir).items():
        stored.check_same(sealed, recipe, f"checkpoint {workdir / stored.CHECKPOINTS / str(step)}")
