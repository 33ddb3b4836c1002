"""The directory of a pipeline: which of its runs are there, and whether they are the recipe's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import files, recipes, records, segments
from simclr_jax.data import sources
from simclr_jax.data.sources import Opened, Trained, Unseen
from simclr_jax.errors import UserError, choose
from simclr_jax.judging import datasets, naming, results
from simclr_jax.judging.datasets import Wanted
from simclr_jax.pipeline import recipe
from simclr_jax.stages import heritage
from simclr_jax.stages import labels as label_choice
from simclr_jax.stages.adapt import as_before
from simclr_jax.stages.inherit import inherit
from simclr_jax.stages.prepare import Prepared, prepare
from simclr_jax.stages.run import BESIDE
from simclr_jax.train import saved, stored
from simclr_jax.train.profile import Profiler
from simclr_jax.train.workdir import RESUME, check_recipe, check_saves, started
from simclr_jax.unlabelled import counted

SOLVER = "lbfgs"  # of all probes

# From a name, its recipe and that of the run it takes open fields from, to the whole recipe.
Settle = Callable[[str, ConfigDict, Mapping[str, Any] | None], ConfigDict]


class Place:
    """The directory of a pipeline: what is there, and what it says of itself."""

    def __init__(self, config: ConfigDict, workdir: str):
        self._config, self.path = config, epath.Path(files.expand_home(workdir))

    def of(self, name: str) -> epath.Path:
        """Return the workdir of a run."""
        return self.path / name

    def done(self, name: str) -> bool:
        """Tell whether a run is complete."""
        there = (self.of(name) / "results" / results.SUMMARY, self.of(name) / "config.json")
        return all(path.exists() for path in there)

    def begun(self, name: str) -> bool:
        """Tell whether there is anything of a run that may be continued or is complete."""
        return self.done(name) or started(self.of(name))

    def recipe(self, name: str) -> ConfigDict:
        """Return the recipe of a run, with workdirs in place of names."""
        c = recipes.copied(self._config.runs[name])
        for pointer in recipe.POINTERS:
            if (to := recipes.get(c, pointer)) in self._config.runs:
                recipes.put(c, pointer, str(self.of(to)))
        return c

    def result(self, probe: str) -> epath.Path:
        """Return the file of what a probe finds, see `judging.linear_probe`."""
        p = self._config.probes[probe]
        name = naming.name(probe, SOLVER, p.tap, labels=p.labels, seed=p.seed)
        return self.of(p.run) / "results" / f"{name}.json"

    def check_resume(self, resume: str) -> None:
        """Raise `UserError` if the directory does not hold what `--resume` says."""
        choose("--resume", resume, RESUME)
        there = [name for name in self._config.runs if self.begun(name)]
        if resume == "never" and there:
            raise UserError(
                f"{self.path} holds runs already, such as {there[0]}: give another --workdir, or "
                "--resume=auto"
            )
        if resume == "must" and not there:
            raise UserError(f"--resume=must, but {self.path} holds no run of this pipeline")

    def check_done(self) -> None:
        """Raise `UserError` if a complete run does not say what it has found.

        The table would say so at its end, after days of training the others.
        """
        for name in self._config.runs:
            if self.done(name):
                results.read_summary(self.of(name))

    def check_start(self, name: str) -> None:
        """Check the runs of this pipeline that a run starts from or learns from.

        One that has begun knows by which of their checkpoints.
        """
        for pointer in recipe.POINTERS:
            source = recipes.get(self._config.runs[name], pointer)
            if source in self._config.runs and not self.begun(name):
                self.check_whole(source)

    def check_whole(self, name: str) -> None:
        """Raise `UserError` unless the newest checkpoint of a run can be read.

        What is made with it would be taken from an older one, and the table would not say so.
        """
        run, known = self.of(name), stored.newest_saved(self.of(name))
        if (step := saved.describe(str(run), f"runs.{name}").step) < known:
            raise UserError(
                f"{run} had saved step {known}, and step {step} is the newest that is whole: "
                f"restore {run / stored.CHECKPOINTS / str(known)}, or remove "
                f"{run / 'results' / results.SUMMARY}, and the same command trains it to its end"
            )

    def settler(self, profile_steps: str) -> Settle:
        """Return how a recipe's open fields are filled: by what its run has, or by the images."""
        opened: dict[Any, Opened] = {}  # images of all runs that have the same
        trained: dict[str, list[Trained]] = {}  # what runs have trained on that are to be made

        def open_all(data: ConfigDict, kept: Any, unseen: Unseen) -> Opened:
            key = data.to_json(), tuple(unseen.trained), unseen.allowed
            opened[key] = opened.get(key) or sources.open_all(data, kept, unseen)
            return opened[key]

        def read(run: str, flag: str) -> list[Trained]:
            if run in trained:
                return trained[run]
            if run in self._config.runs:  # it is there
                return heritage.of_workdir(self.of(run), self._config.runs[run])
            return heritage.of_run(run, flag)

        def finish(name: str, c: ConfigDict, before: Mapping[str, Any] | None) -> ConfigDict:
            if self.begun(name):
                return self._as_begun(name, c)
            check_saves(self.of(name))
            c, _ = inherit(c, before)
            ready = prepare(c, jax.device_count(), open_all=open_all, read=read)
            trained[name] = heritage.named(ready.trained_on, str(self.of(name)))
            Profiler(profile_steps, self.of(name), ready.timetable.total_steps)
            if not ready.test.classes and name in {entry[2] for entry in self._config.table}:
                raise UserError("the held-out images have no labels, which the table needs")
            self._check_probes(name, ready, ready.trained_on[0].held_out)
            return ready.config

        return finish

    def _check_probes(self, name: str, ready: Prepared, held_out: int | None) -> None:
        """Check that the images of a run have the labels that the probes of it need.

        Raises:
          UserError: naming the probe, and what it lacks.
        """
        probes = {probe: p for probe, p in self._config.probes.items() if p.run == name}
        if not probes:
            return
        fit, score = ready.images, ready.test
        if not ready.config.data.labels:  # of which the run itself reads none
            data = datasets.recipe_data(ready.config, Wanted())
            opened = sources.open_all(data, held_out=held_out)
            fit, score = opened.train, opened.test
        rows = counted(fit.labels)
        for probe, p in probes.items():
            for source in (fit, score):
                datasets.check_one_label(source, f"probes.{probe}")
            assert fit.labels is not None  # it has been looked at
            try:
                label_choice.allowed(p.labels, fit.labels[rows], rows, fit, p.seed)
            except UserError as error:
                raise UserError(f"probes.{probe}: {error}") from error

    def _as_begun(self, name: str, c: ConfigDict) -> ConfigDict:
        """Return the recipe of a run that is there, which must be that of the pipeline.

        Raises:
          UserError: naming the fields that differ, or the run it was made from if that is gone.
        """
        path = self.of(name)
        if (record := stored.of_run(path)) is None:
            raise UserError(f"{path} has no {stored.NAME}: restore it, or remove that directory")
        if added := segments.of_record(record):
            raise UserError(
                f"{path} was extended at step {added[0].first_step} since this pipeline made it, "
                "and its table would hold another run than the recipe says: give another "
                "--workdir; the table that was made before is in "
                f"{self.path / 'results' / 'pipeline.json'}"
            )
        c, _ = inherit(c, record)
        c = as_before(c, record)
        same = recipes.copied(c)
        for pointer in recipe.POINTERS:
            source = recipes.get(c, pointer)
            if source not in self._config.runs:
                continue
            if not self.begun(source):
                raise UserError(
                    f"{path} was made with {self.of(source)}, which is not there: remove {path}"
                )
            # Where a pipeline lies, and from where it is called, may change.
            before = recipes.get(records.recipe(record), pointer)
            as_it_was = epath.Path(saved.split(before)[0]).name == source
            recipes.put(same, pointer, before if as_it_was else str(self.of(source)))
        beside = {key: record[key] for key in ("images", *BESIDE) if key in record}
        check_recipe(path, same.to_dict() | beside, "auto", fresh=False)
        return c
