"""One run of any stage, from a recipe to a result."""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import cpu_devices, fields, files, parallel, processes, segments
from simclr_jax.data import placements, sources
from simclr_jax.data.sources import Opened, Source
from simclr_jax.segments import Extension
from simclr_jax.stages import (
    distill,
    extend,
    finetune,
    heritage,
    pretrain,
    summary,
    teacher,
    views,
    warm_start,
)
from simclr_jax.stages.inherit import pin
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.prepare import Prepared, prepare
from simclr_jax.train import loggers, loop
from simclr_jax.train import timetable as timetables
from simclr_jax.train.interrupt import Asked, AtOnce
from simclr_jax.train.profile import Profiler
from simclr_jax.train.progress import Console
from simclr_jax.train.stage import Stage
from simclr_jax.train.timetable import Timetable
from simclr_jax.train.workdir import open_workdir, recipe_before

# Launch scripts start a run again on EX_TEMPFAIL; a person who pressed Ctrl-C does not want that.
EXIT_CODES: dict[int, int] = {signal.SIGTERM: 75, signal.SIGINT: 130}

# What `config.stage` may name (besides a pipeline of such runs: `pipeline.run`).
STAGES: dict[str, Callable[[ConfigDict, Timetable, Inputs, Mesh], Stage]] = {
    "pretrain": pretrain.make_stage,
    "finetune": finetune.make_stage,
    "distill": distill.make_stage,
}

# The metric `loss` of each that learns nothing, where labels decide it. Methods declare theirs.
CHANCES: dict[str, Callable[[ConfigDict, Source], float]] = {
    "finetune": finetune.chance,
    "distill": distill.chance,
}
# In `config.json`, where there is anything to say and the run is not too old for it.
BESIDE = (heritage.KEY, heritage.NOTES, "chance", teacher.SEVERAL)


def said_beside(ready: Prepared, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a run says of itself in `config.json` beside its recipe and its images.

    That of a run that is resumed stands: its images, or the runs it comes from, may have moved.
    """
    if before is not None:
        return {name: before[name] for name in BESIDE if name in before}
    found: dict[str, Any] = {heritage.KEY: msgspec.to_builtins(ready.trained_on)}
    if ready.notes:
        found[heritage.NOTES] = list(ready.notes)
    if ready.config.stage == "finetune" and ready.train.multi_label:
        found[teacher.SEVERAL] = True
    chance = CHANCES.get(ready.config.stage)
    return found | ({"chance": chance(ready.config, ready.train)} if chance else {})


def begun(config: ConfigDict, workdir: str) -> dict[str, Any] | None:
    """Return the record of the run in a workdir that would be continued, or None."""
    return recipe_before(files.expand_home(workdir))


def _segments(timetable: Timetable) -> dict[str, Any]:
    """Return what `config.json` says of the segments of a run, nothing where it has none."""
    return segments.kept(timetable.segments)


def run(
    config: ConfigDict,
    workdir: str,
    resume: str = "auto",
    profile_steps: str = "",
    by: Callable[..., loop.Result] | None = None,
    extension: Extension | None = None,
    open_all: Callable[..., Opened] = sources.open_all,
) -> int:
    """Train by a recipe, then say what was learned.

    Args:
      config: a recipe.
      workdir: directory of the run.
      resume: see `train.workdir.open_workdir`.
      profile_steps: `a:b` writes a trace of these steps to `workdir/profile`.
      by: what trains in the place of `train.loop.train`, to measure it.
      extension: trains a finished run on; the same once more adds nothing.
      open_all: what opens the images, where they are not all of the splits that the recipe names.

    Returns:
      0 when the run is complete; 75 (ask me again) when SIGTERM stopped it, 130 when Ctrl-C did.

    Raises:
      UserError: for whatever a user can put right.
    """
    fields.known(config)
    warm_start.wanted(config)
    loggers.check(config.log.to)
    try:
        with AtOnce():
            train_by = by or loop.train
            return _run(config, workdir, resume, profile_steps, train_by, extension, open_all)
    except Asked:
        return EXIT_CODES[signal.SIGTERM]


@contextlib.contextmanager
def _telling(console: Console) -> Iterator[None]:
    """Say of a run that is stopped at once that it can go on."""
    try:
        yield
    except Asked:
        console.say("stopped, with nothing to be saved; the same command continues")
        raise


def _run(
    config: ConfigDict,
    workdir: str,
    resume: str,
    profile_steps: str,
    train_by: Callable[..., loop.Result],
    extension: Extension | None,
    open_all: Callable[..., Opened],
) -> int:
    mesh = parallel.make_mesh()
    workdir = files.expand_home(workdir)
    kept = epath.Path(workdir) / "index"
    before = processes.on_first(lambda: recipe_before(workdir))  # what all see, sooner or later
    ready = prepare(config, mesh.size, kept if before else None, before, open_all)
    config, timetable, train, test = ready.config, ready.timetable, ready.train, ready.test
    pin(config, before)
    if before is None:
        processes.on_first(lambda: warm_start.check(config))
    if config.stage == "distill":
        teacher.check(config, train, test)

    record = config.to_dict() | {"images": [train.fingerprint(), test.fingerprint()]}
    record |= processes.on_first(lambda: said_beside(ready, before))
    record |= cpu_devices.record(mesh, before)
    if extension:
        asked = extension, config, timetable, workdir, record | _segments(timetable), before
        added = processes.on_first(lambda: extend.decided(*asked))
        longer = segments.of_record({segments.KEY: added})
        timetable = timetables.make(config, len(train), longer)
    record |= _segments(timetable)
    processes.check_same("recipe or images", record)
    keep, keep_period = config.checkpoint.keep, config.checkpoint.keep_period
    placements.check_libraries(config.augment.placement, config.augment.jpeg_scaling)
    profiler = Profiler(profile_steps, epath.Path(workdir) / "profile", timetable.total_steps)
    open_one = open_workdir(workdir, record, resume, keep=keep, keep_period=keep_period)
    with open_one as opened, _telling(opened.console):
        if opened.fresh and processes.rank() == 0:
            sources.remember(kept, ready.images, ready.test)
        inputs = Inputs(config, train, test, opened)
        stage = STAGES[config.stage](config, timetable, inputs, mesh)
        about = [*ready.about(), *ready.chosen, *extend.lines(timetable)]
        about += cpu_devices.notes(mesh, before)
        # A run that is resumed has weights of its own.
        if opened.fresh and warm_start.wanted(config):
            about.append(f"start     from {config.init.parts} of {config.init.run}")
            about += warm_start.unlike(config)
        summary.announce(opened, config, timetable, stage, mesh, about)
        if processes.rank() == 0:
            draw = functools.partial(views.draw, inputs, opened, stage.look, stage.show)
            opened.console.during("drawing views.png", draw)
        stage = views.painted(stage, inputs, opened)
        result = train_by(stage, timetable, mesh, opened, profiler)
        for line in inputs.scaled_down():
            opened.console.say(line)
        if result.stopped_by:
            return EXIT_CODES[result.stopped_by]
        summary.conclude(opened, timetable, stage, result.state, ready.protocol)
    return 0
