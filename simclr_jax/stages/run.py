"""One run of any stage, from a recipe to a result."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import files, parallel, processes, validation
from simclr_jax.data import sources
from simclr_jax.data.sources import Source
from simclr_jax.stages import (
    build,
    distill,
    finetune,
    pretrain,
    summary,
    teacher,
    views,
    warm_start,
)
from simclr_jax.stages import labels as label_choice
from simclr_jax.stages.adapt import adapt
from simclr_jax.stages.inherit import inherit, pin
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import loop
from simclr_jax.train import timetable as timetables
from simclr_jax.train.profile import Profiler
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


def run(config: ConfigDict, workdir: str, resume: str = "auto", profile_steps: str = "") -> int:
    """Train by a recipe, then say what was learned.

    Args:
      config: a recipe.
      workdir: directory of the run.
      resume: see `train.workdir.open_workdir`.
      profile_steps: `a:b` writes a trace of these steps to `workdir/profile`.

    Returns:
      0 when the run is complete; 75 (ask me again) when SIGTERM stopped it, 130 when Ctrl-C did.

    Raises:
      UserError: for whatever a user can put right.
    """
    mesh = parallel.make_mesh()
    workdir = files.expand_home(workdir)
    kept, before = epath.Path(workdir) / "index", recipe_before(workdir)
    ready = prepare(config, mesh.size, kept if before else None, before)
    config, timetable, train, test = ready.config, ready.timetable, ready.train, ready.test
    pin(config, before)
    if config.stage == "distill":
        teacher.check(config, train, test)

    record = config.to_dict() | {"images": [train.fingerprint(), test.fingerprint()]}
    processes.check_same("recipe or images", record)
    keep, keep_period = config.checkpoint.keep, config.checkpoint.keep_period
    profiler = Profiler(profile_steps, epath.Path(workdir) / "profile", timetable.total_steps)
    with open_workdir(workdir, record, resume, keep=keep, keep_period=keep_period) as opened:
        if opened.fresh and processes.rank() == 0:
            sources.remember(ready.images, kept)
        inputs = Inputs(config, train, test, opened)
        stage = STAGES[config.stage](config, timetable, inputs, mesh)
        start = [f"start     from {config.init.parts} of {config.init.run}"] * opened.fresh
        start = start if config.init.run and config.init.parts != warm_start.NOTHING else []
        about = [*_about(train, test), *ready.chosen, *start]
        summary.announce(opened, config, timetable, stage, mesh, about)
        if processes.rank() == 0:
            views.draw(config, inputs, opened)
        result = loop.train(stage, timetable, mesh, opened, profiler)
        if result.stopped_by:
            return EXIT_CODES[result.stopped_by]
        summary.conclude(opened, timetable, stage, result.state)
    return 0


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A recipe with every field set, and its images.

    Attributes:
      config: the recipe.
      images: all of the training split.
      train: those of them to learn from, without labels that may not be used.
      test: held-out images.
      timetable: the run in numbers.
      chosen: lines about fields that the recipe left open.
    """

    config: ConfigDict
    images: Source
    train: Source
    test: Source
    timetable: Timetable
    chosen: list[str]


def prepare(
    config: ConfigDict,
    devices: int,
    kept: epath.Path | None = None,
    before: Mapping[str, Any] | None = None,
    open_splits: Callable[..., tuple[Source, Source]] = sources.open_splits,
) -> Prepared:
    """Check everything that can be known before a model is built.

    That a run to start from, or a teacher, fits is checked later: a pipeline has yet to train them.

    Args:
      config: a recipe.
      devices: over which a batch is spread.
      kept: where a run that is resumed keeps its index of images.
      before: the recipe of that run.
      open_splits: see `data.sources.open_splits`.

    Raises:
      UserError: for whatever a user can put right.
    """
    validation.check_fields(config)
    config, inherited = inherit(config, before)
    validation.validate(config, devices)
    images, test = open_splits(config.data, kept)
    train = images
    if config.stage in validation.LABELLED:
        if config.stage == "finetune" or test.classes:
            label_choice.check(config, test, "held-out")
        train = label_choice.restrict(config, images)
    config, chosen = adapt(config, train, test, before)
    validation.validate(config, devices)
    build.check_images(config, train, test)
    timetable = timetables.make(config, len(train))
    return Prepared(config, images, train, test, timetable, [*inherited, *chosen])


def _about(train: Source, test: Source) -> list[str]:
    """Say what a user should know about the images before waiting for a run."""
    labels = f"{train.classes} classes" if train.classes else "no labels"
    counts = f"images    {len(train)} to learn from, {len(test)} held out, {labels}"
    notes = dict.fromkeys((*sources.notes(train), *sources.notes(test)))
    return [counts, *(f"note      {note}" for note in notes)]
