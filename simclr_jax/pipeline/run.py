"""Several runs from one recipe, and one table of what came of them.

WORKDIR/NAME                    a run, as `stages.run` makes it
WORKDIR/NAME/results            its own results, and those of probes of it
WORKDIR/results/pipeline.json   the table
WORKDIR/log.txt                 what was printed
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import documents, fields, files, processes, recipes, records, validation
from simclr_jax.closing import Closing
from simclr_jax.errors import UserError, nearest
from simclr_jax.evaluate import chance
from simclr_jax.judging import linear_probe, results
from simclr_jax.judging.datasets import Wanted
from simclr_jax.judging.solvers import Settings
from simclr_jax.pipeline import recipe
from simclr_jax.pipeline import table as pipeline_table
from simclr_jax.pipeline.place import SOLVER, Place, Settle
from simclr_jax.pipeline.table import Cost, Entry
from simclr_jax.stages import run as runs
from simclr_jax.stages import warm_start
from simclr_jax.stages.encoder import check_tap
from simclr_jax.stages.inherit import inherit
from simclr_jax.train import saved
from simclr_jax.train.lock import WorkdirLock
from simclr_jax.train.progress import Console


def begun(config: ConfigDict, workdir: str) -> dict[str, Any] | None:
    """Return the record of a run of the pipeline that is there, or None."""
    place = epath.Path(files.expand_home(workdir))
    there = (runs.begun(config, str(place / name)) for name in config.get("runs", {}))
    return next((record for record in there if record is not None), None)


def run(config: ConfigDict, workdir: str, resume: str = "auto", profile_steps: str = "") -> int:
    """Make all runs and probes that are not there yet, then the table.

    Args:
      config: the recipe of a pipeline, see `pipeline.recipe`.
      workdir: of the pipeline, whose runs live in it.
      resume: "auto" makes what is missing, "never" refuses a directory that holds a run, "must" one
        that holds none.
      profile_steps: `a:b` writes a trace of these steps of each run that is made.

    Returns:
      0 when all is there; otherwise what `stages.run.run` returned when it was stopped.

    Raises:
      UserError: for whatever a user can put right; most of it before anything starts.
    """
    if processes.count() > 1:
        raise UserError(
            "a pipeline runs in one process so far: leave --distributed away, or run its recipes "
            "one after the other"
        )
    place = Place(config, workdir)
    place.check_resume(resume)
    settle(config, jax.device_count(), place.settler(profile_steps))
    place.check_done()
    files.make_workdir(place.path)
    with Closing() as stack:
        console = Console(place.path)
        stack.step(console.close)
        stack.enter(WorkdirLock(place.path, say=console.say))
        for number, name in enumerate(config.order, 1):
            which = f"{name}  run {number} of {len(config.order)}"
            if place.done(name):
                console.say(f"done      {which}")
            else:
                console.say(f"pipeline  {which}")
                place.check_start(name)
                code = runs.run(place.recipe(name), str(place.of(name)), "auto", profile_steps)
                if code:
                    console.say(f"stopped   {which}; the same command continues")
                    return code
            for probe in (p for p in config.probes if config.probes[p].run == name):
                _probe(config, place, probe, console)
        _conclude(config, place, console)
    return 0


def validate(config: ConfigDict, devices: int) -> None:
    """Check a pipeline's recipe as far as can be known without looking at images or directories.

    Raises:
      UserError: naming the first field found wrong, its value and what would be right.
    """
    settle(config, devices, lambda name, c, before: inherit(c, before)[0])


def settle(config: ConfigDict, devices: int, finish: Settle) -> dict[str, ConfigDict]:
    """Check the recipes of a pipeline in their order, and return them with what they inherit.

    Args:
      config: the recipe of a pipeline.
      devices: over which batches are spread.
      finish: fills what a recipe leaves open.

    Raises:
      UserError: naming the first field found wrong, its value and what would be right.
    """
    recipe.check(config)
    known: dict[str, ConfigDict] = {}
    for name in config.order:
        c = recipes.copied(config.runs[name])
        with _of_run(name):
            for pointer in recipe.POINTERS:
                if (to := recipes.get(c, pointer)) and to not in known:
                    _check_workdir(pointer, to, known)
            origin = known.get(c.init.run or c.distill.teacher)
            c = finish(name, c, origin.to_dict() if origin else None)
            validation.validate(c, devices)
            _check_fit(c, known)
        known[name] = c
    for name, probe in config.probes.items():
        check_tap(f"probes.{name}.tap", probe.tap, known[probe.run])
    return known


def _check_workdir(field: str, to: str, known: Mapping[str, ConfigDict]) -> None:
    """Check that what `init.run` or `distill.teacher` names outside the pipeline is there."""
    workdir, _ = saved.split(to)
    if not (epath.Path(files.expand_home(workdir)) / "checkpoints").is_dir():
        raise UserError(
            f'{field} is "{to}"{nearest(to, known)}: name an earlier run of this pipeline, or the '
            "workdir of a run"
        )


def _check_fit(c: ConfigDict, known: Mapping[str, ConfigDict]) -> None:
    """Check that a run fits the earlier runs it names, which may be not there yet."""
    if (start := known.get(c.init.run)) is not None:
        for part, group in (("encoder", "model"), ("head", "head")):
            differing = records.differences(start[group].to_dict(), c[group].to_dict())
            if part in warm_start.wanted(c) and differing:
                raise UserError(
                    f"{group}.{differing[0]} from init.run={c.init.run} to here: set both alike, "
                    f"or leave {part} out of init.parts"
                )
    if (teacher := known.get(c.distill.teacher)) is not None:
        if teacher.stage not in fields.LABELLED and teacher.eval.probe is False:
            raise UserError(
                f"distill.teacher is {c.distill.teacher}, which has no classifier: name a run of "
                "stage finetune or distill"
            )
        here, there = c.data.image_size, teacher.data.image_size
        if here != there:
            raise UserError(
                f"data.image_size is {here}, but distill.teacher={c.distill.teacher} has {there}: "
                "set both alike"
            )


@contextlib.contextmanager
def _of_run(name: str) -> Iterator[None]:
    """Say of which run of the pipeline an error is."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("--config.", f"--config.runs.{name}.")
        raise UserError(f"runs.{name}: {text}") from error


def _probe(config: ConfigDict, place: Place, name: str, console: Console) -> None:
    """Make a probe unless it is there."""
    probe = config.probes[name]
    if place.result(name).exists():
        console.say(f"done      {name}  probe of {probe.run}")
        return
    place.check_whole(probe.run)
    options = linear_probe.Options(
        solvers=(SOLVER,),
        taps=(probe.tap,),
        labels=probe.labels,
        settings=Settings(seed=probe.seed),
        name=name,
    )
    console.say(f"pipeline  {name}  probe of {probe.run}")
    linear_probe.run([str(place.of(probe.run))], Wanted(), options, console.say)


def _conclude(config: ConfigDict, place: Place, console: Console) -> None:
    """Write and print the table, from the files of runs and probes."""

    @functools.cache
    def cost(name: str) -> Cost:
        return pipeline_table.cost(place.of(name), lambda line: console.say(f"note      {line}"))

    entries = []
    for row, column, name in config.table:
        accuracy, level = _scored(config, place, name)
        spent, draw = None if name in config.probes else cost(name), recipe.draw(config, name)
        entries.append(Entry(row, column, name, draw, accuracy, spent, level))
    others = {name: cost(name) for name in config.order if name not in {e.name for e in entries}}
    summary = pipeline_table.summarise(entries, config.differences, others)
    path = place.path / "results" / "pipeline.json"
    with files.explaining(path):
        path.parent.mkdir(exist_ok=True)
        documents.write(path, {"seed": config.seed, **summary})
    for line in pipeline_table.lines(summary):
        console.say(line)
    console.say(f"written   {path}")


def _scored(config: ConfigDict, place: Place, name: str) -> tuple[float, float | None]:
    """Return the accuracy of a run or a probe, and that of always guessing the commonest class.

    Raises:
      UserError: if they cannot be read, or say nothing of it.
    """
    if name in config.probes:
        result = results.read(place.result(name))
        found, level = result["scores"], result.get("level", {}).get("scores", {})
    else:
        summary = results.read_summary(place.of(name))["scores"]
        found, level = summary.get("classifier", {}), summary.get(chance.COMMONEST, {})
    tops = [scores.get("top-1", {}) for scores in (found, level)]
    # The value has one name in results and another in summaries.
    values = [top.get("value", top.get("accuracy")) for top in tops]
    if values[0] is None:
        raise UserError(
            f"what {place.path} holds of {name} has no accuracy, which the table needs: remove the "
            "results of that run, and the same command makes them again"
        )
    return values[0], values[1]
