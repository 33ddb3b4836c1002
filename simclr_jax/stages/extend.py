"""A run that is trained on after its end, by a segment with a learning rate of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from simclr_jax import files, records, segments
from simclr_jax.errors import UserError
from simclr_jax.optim import schedules
from simclr_jax.segments import Extension, Segment
from simclr_jax.train import saved, stored
from simclr_jax.train.timetable import Timetable
from simclr_jax.train.workdir import CONVERTED, check_recipe

TABLE = epath.Path("results") / "pipeline.json"
SHARE = 10  # a warm-up takes at most one of so many parts of a segment
WHERE = "--extend_to"


def recipe_of(workdir: str) -> ConfigDict:
    """Return the recipe of the run to extend, for those who give none.

    Raises:
      UserError: if there is no such run, or none that can be extended.
    """
    path = epath.Path(files.expand_home(workdir))
    if (before := stored.of_run(path)) is None:
        raise UserError(f"--workdir={workdir} holds no run to extend: give the workdir of one")
    _check_trained_here(before, workdir)
    return records.recipe(before)


def decided(
    asked: Extension,
    config: ConfigDict,
    timetable: Timetable,
    workdir: str,
    record: Mapping[str, Any],
    before: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """Return the segments of a run with the one that is asked for, as JSON.

    The same question again adds nothing: the segment is there, complete or under way.

    Args:
      asked: how long, and at which rate.
      config: the recipe.
      timetable: of the run as it is.
      workdir: of the run.
      record: what it is to agree with, see `workdir.open_workdir`.
      before: what it says of itself; None: there is no run.

    Raises:
      UserError: if there is no finished run to extend, it is made of another recipe or is part of a
        pipeline, or what is asked for is not longer than what is there.
    """
    to = segments.length(asked.to)
    if before is None:
        raise UserError(
            f"{WHERE}={asked.to}, but {workdir} holds no run: leave it out, and train one first"
        )
    _check_trained_here(before, workdir)
    check_recipe(epath.Path(workdir), dict(record), "auto", fresh=False)
    one = _segment(asked, to, config, timetable)
    known = list(timetable.segments)
    if known and known[-1].total_steps == one.total_steps:
        _check_same(asked, one, known[-1])
    else:
        _check_finished(workdir, timetable, asked.to)
        _check_longer(one, timetable, asked.to)
        _check_no_pipeline(epath.Path(workdir))
        known.append(one)
    return segments.kept(known)[segments.KEY]


def lines(timetable: Timetable) -> list[str]:
    """Return what a run says of its segments before it begins."""
    said = []
    for segment in timetable.segments:
        first, last = (
            step * timetable.batch_size / timetable.examples
            for step in (segment.first_step, segment.total_steps)
        )
        rise = segment.first_step + segment.warmup_steps
        rising = f"warm-up until step {rise}" if segment.warmup_steps else "no warm-up"
        said.append(
            f"extended  by steps {segment.first_step} to {segment.total_steps} (epochs {first:.1f} "
            f"to {last:.1f}): {rising}, peak rate {segment.peak_rate:g}"
        )
    if said:
        said.append(
            "note      an extended run is another than one planned as long: its rate had fallen "
            f"by step {timetable.planned_steps}, and rose again"
        )
    return said


def last_rate(timetable: Timetable) -> float:
    """Return the rate that steps of a run end with where rates drop and stay."""
    if timetable.segments:
        return timetable.segments[-1].peak_rate
    return timetable.peak_rate * timetable.drop_factor ** len(timetable.drops)


def _segment(
    asked: Extension, to: tuple[float, int], config: ConfigDict, timetable: Timetable
) -> Segment:
    """Return the segment that is asked for, behind the last that is there or is the same."""
    t, (epochs, steps) = timetable, to
    total = steps or schedules.total_steps(epochs, t.examples, t.batch_size)
    earlier = [end for end in (*t.borders, t.total_steps) if end < total]
    first = earlier[-1] if earlier else total
    if asked.base_lr is not None:
        peak = schedules.peak_rate(asked.base_lr, config.optim.lr_scaling, t.batch_size)
    else:
        peak = last_rate(t) if t.drops else t.peak_rate
    if asked.warmup_epochs is not None:
        rises = schedules.warmup_steps(asked.warmup_epochs, t.examples, t.batch_size)
    else:
        rises = 0 if t.drops else min(t.warmup_steps, (total - first) // SHARE)
    if first < total <= first + rises:
        raise UserError(
            f"--extend_warmup={asked.warmup_epochs:g} is {rises} steps, no less than the "
            f"{total - first} that {WHERE}={asked.to} adds: shorten it, or train for longer"
        )
    return Segment(first, total, rises, peak)


def _check_trained_here(before: Mapping[str, Any], workdir: str) -> None:
    if before.get("stage") == CONVERTED:
        raise UserError(
            f"{workdir} holds a converted checkpoint, which has no steps to add to: start from it "
            f"by --config.init.run={workdir} in another --workdir"
        )


def _check_finished(workdir: str, timetable: Timetable, to: str) -> None:
    step = saved.describe(workdir, "--workdir").step
    if step < timetable.total_steps:
        raise UserError(
            f"{WHERE}={to}, but {workdir} is at step {step} of {timetable.total_steps}: finish it "
            "first, by the command without that flag"
        )


def _check_longer(one: Segment, timetable: Timetable, to: str) -> None:
    if one.total_steps <= timetable.total_steps:
        raise UserError(
            f"{WHERE}={to} is {one.total_steps} steps in all, and the run has "
            f"{timetable.total_steps} ({timetable.epochs:.4g} epochs): name a longer one"
        )


def _check_same(asked: Extension, one: Segment, known: Segment) -> None:
    """Raise `UserError` if the segment that is there has another rate than is asked for."""
    rates = ("--extend_lr", asked.base_lr, "a peak rate of", one.peak_rate, known.peak_rate)
    rises = ("--extend_warmup", asked.warmup_epochs, "steps of warm-up:")
    for flag, given, what, wanted, there in (
        rates,
        (*rises, one.warmup_steps, known.warmup_steps),
    ):
        if given is not None and wanted != there:
            raise UserError(
                f"{flag}={given:g} is {what} {wanted:g}, but the run was extended to step "
                f"{known.total_steps} with {there:g}: leave it out"
            )


def _check_no_pipeline(workdir: epath.Path) -> None:
    """Raise `UserError` if the table of a pipeline was made with the run as it is."""
    if (workdir.parent / TABLE).exists():
        raise UserError(
            f"{workdir} is a run of the pipeline in {workdir.parent}, whose later runs and table "
            "were made with it as it is: copy its directory to another place, and extend the copy"
        )
