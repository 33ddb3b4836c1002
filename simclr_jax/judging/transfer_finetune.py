"""How well an encoder transfers when all of it is fine-tuned: a sweep for each data set.

PLACE/NAME-TAG/lr0.01-wd1e-05         a run of the grid, as `stages.run` makes it
PLACE/NAME-TAG/final-lr0.01-wd1e-05   with the rate and decay chosen, also on validation images
PLACE/NAME-TAG/sweep.json             what each run of the grid has scored on validation images

PLACE is RUN/transfer. TAG tells apart what decides the numbers: weights, images, lengths. The
protocol is that of Chen et al. (2020), appendix B.8; what it does not say stands in
docs/evaluation.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import jax
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import documents, files, records, tables
from simclr_jax.data.sources import Opened
from simclr_jax.errors import Diverged, UserError, choose
from simclr_jax.judging import (
    linear_probe,
    naming,
    results,
    shown,
    transfer,
    transfer_sets,
    tuned_runs,
)
from simclr_jax.judging.feature_bank import Say
from simclr_jax.judging.linear_probe import Options
from simclr_jax.judging.shown import Scored
from simclr_jax.judging.solvers import Settings
from simclr_jax.judging.transfer import Target
from simclr_jax.judging.tuned_runs import PAPER, Grid
from simclr_jax.stages import run as runs
from simclr_jax.stages.encoder import Encoder
from simclr_jax.stages.prepare import prepare
from simclr_jax.train import saved, stored

LEDGER = "sweep.json"
CALLED = "fine-tuning"


class Entry(TypedDict):
    """What a run of the grid came to: `score` on validation images, None if it diverged."""

    score: float | None


class Ledger(TypedDict):
    """The content of `LEDGER`: entries by the names of runs."""

    runs: dict[str, Entry]


def run(
    checkpoint: str,
    data_dir: str = "",
    sets: Sequence[str] = transfer_sets.NAMES,
    others: Sequence[str] = (),
    grid: Grid = PAPER,
    place: str = "",
    seed: int = 0,
    max_bad_fraction: float | None = None,
    seen: bool = False,
    say: Say = print,
) -> int:
    """Fine-tune a run on data sets by the grid, write results beside those of `transfer`.

    The same command continues where it was stopped.

    Args:
      checkpoint, data_dir, sets, others, max_bad_fraction, seen: see `transfer.run`.
      grid: what is tried.
      place: where the sweeps lie; "" is `transfer` in the run.
      seed: of the runs, and of the validation images of `others`.
      say: receives each line.

    Returns:
      0 when all is there; otherwise what `stages.run.run` returned when it was stopped.

    Raises:
      UserError: for whatever a user can put right, most of it before anything starts.
    """
    for name in sets:
        choose("--sets", name, transfer_sets.NAMES)
    read = saved.read(checkpoint)
    encoder = Encoder.of(read)
    say(f"run       {read}")
    say(
        f"sweep     {len(grid.pairs)} runs of {grid.steps} steps for each data set, then one of "
        f"the best rate and decay"
    )
    targets, left_out = transfer.open_targets(read, data_dir, sets, others, seen, say)
    root = epath.Path(files.expand_home(place)) if place else read.workdir / "transfer"
    ways: dict[str, Callable[[], Sweep]] = {
        name: functools.partial(
            Sweep.of, name, target, encoder, read, grid, root, seed, max_bad_fraction
        )
        for name, target in targets.items()
    }
    sweeps, unfit = transfer.attempt(ways, say)
    transfer.check_some(sweeps, left_out | unfit)
    found: dict[str, Scored] = {}
    failed: dict[str, str] = {}
    for name, sweep in sweeps.items():
        try:
            if code := sweep.train(say):
                say(f"stopped   {name}; the same command continues")
                return code
            found[name] = _conclude(sweep, read, encoder, checkpoint, seed, say)
        except UserError as error:  # of this data set: the others stand
            failed[name] = str(error)
            say(f"left out  {name}: {error}")
    transfer.check_some(found, failed)
    for line in shown.table([*found.values()]):
        say(line)
    for line in shown.by_chance([*found.values()]):
        say(f"note      {line}")
    targets = {name: sweep.target for name, sweep in sweeps.items()}
    for line in transfer.beside_published(found, targets, CALLED):
        say(line)
    names = ", ".join(f"{one.result['name']}.json" for one in found.values())
    say(f"written   {read.workdir}/results: {names}")
    return 0


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The runs of one data set.

    Attributes:
      name: of the data set, in file names.
      target: the data set; its `data.choose` is there.
      grid: what is tried.
      place: the directory of the runs.
      settled: from rate, decay and whether it is the final run, to the recipe.
    """

    name: str
    target: Target
    grid: Grid
    place: epath.Path
    settled: Callable[[float, float, bool], ConfigDict]

    @classmethod
    def of(
        cls,
        name: str,
        target: Target,
        encoder: Encoder,
        read: saved.Saved,
        grid: Grid,
        root: epath.Path,
        seed: int,
        max_bad_fraction: float | None,
    ) -> Sweep:
        """Plan the runs of a data set, and check that they can be made.

        Raises:
          UserError: if its images do not fit the run, or the grid.
        """
        published = dict(target.published) and transfer_sets.published(
            next(one for one in transfer_sets.SETS if one.name == name), transfer_sets.TUNED
        )
        target = dataclasses.replace(
            target, data=tuned_runs.divided(target.data, seed), published=published
        )
        parts = [
            part.fingerprint()
            for part in (target.data.fit, target.data.choose, target.data.score)
            if part
        ]
        decided = [encoder.fingerprint, parts, grid.steps, grid.batch, seed]
        # Wherever the command is given the next time, it is the same run.
        run = (
            f"{Path(read.workdir).absolute()}@{read.step}"
            if files.is_local(read.workdir)
            else str(read)
        )
        settled = functools.partial(
            tuned_runs.recipe, run, read.config, target, grid, seed, max_bad_fraction
        )
        sweep = cls(name, target, grid, root / f"{name}-{naming.tag(decided)}", settled)
        for rate, decay in (grid.pairs[0], grid.pairs[-1]):
            prepare(settled(rate, decay, False), jax.device_count(), open_all=sweep.opener(False))
        return sweep

    @property
    def metric(self) -> str:
        """Return the score that decides."""
        if self.target.metric:
            return self.target.metric
        return "mAP" if self.target.data.score.multi_label else transfer_sets.TOP_1

    def opener(self, final: bool) -> Callable[..., Opened]:
        """Return what opens the images of a run of the grid, or of the final one."""
        data = self.target.data
        assert data.choose is not None  # `_divided` has seen to it
        if not final:
            return tuned_runs.opener(data.fit, data.choose)
        return tuned_runs.opener(tuned_runs.both(data), data.score)

    def path(self, rate: float, decay: float) -> epath.Path:
        """Return the directory of a run of the grid."""
        return self.place / f"lr{rate:g}-wd{decay:g}"

    def scores(self) -> dict[str, float | None]:
        """Return what the runs of the grid that are done have scored, by name.

        Raises:
          UserError: if the ledger was altered.
        """
        try:
            ledger = documents.read(self.place / LEDGER, Ledger, "remove it, and it is made again")
        except FileNotFoundError:
            return {}
        return {name: entry["score"] for name, entry in ledger["runs"].items()}

    def train(self, say: Say) -> int:
        """Make what is missing of the grid, and the final run; return its exit code."""
        done = self.scores()
        for number, (rate, decay) in enumerate(self.grid.pairs, 1):
            path = self.path(rate, decay)
            which = f"{self.name}  run {number} of {len(self.grid.pairs)}"
            if path.name not in done:
                say(f"sweep     {which}: rate {rate:g}, decay {decay:g}")
                score: float | None = None
                try:
                    if not _thinned(path) and (code := self._run(path, rate, decay)):
                        return code
                    score = self._score(path)
                except Diverged as error:
                    say(f"note      {which}: {error}")
                done = {**done, path.name: score}
                self._write(done)
            _thin(path)
        for line in self._shown(done):
            say(line)
        rate, decay = self.best(done)
        say(f"sweep     {self.name}  final run: rate {rate:g}, decay {decay:g}")
        return self._run(self.final(rate, decay), rate, decay, final=True)

    def _run(self, path: epath.Path, rate: float, decay: float, final: bool = False) -> int:
        """Make a run, or what is left of it; return its exit code."""
        config = self.settled(rate, decay, final)
        if (begun := stored.of_run(path)) is not None:  # before the run it is from was moved
            config.init.run = records.recipe(begun).init.run
        return runs.run(config, str(path), open_all=self.opener(final))

    def final(self, rate: float, decay: float) -> epath.Path:
        """Return the directory of the final run: of a larger grid it may be another one."""
        return self.place / f"final-{self.path(rate, decay).name}"

    def best(self, done: Mapping[str, float | None]) -> tuple[float, float]:
        """Return the rate and the decay that score best, of equal ones the first.

        Raises:
          UserError: if every run has diverged.
        """
        known = {
            pair: score
            for pair in self.grid.pairs
            if (score := done[self.path(*pair).name]) is not None
        }
        if not known:
            raise UserError(
                f"all runs of {self.name} have diverged: give lower rates with --finetune_rates"
            )
        return max(known, key=lambda pair: known[pair])

    def _score(self, path: epath.Path) -> float:
        value = results.read_summary(path)["scores"]["classifier"][self.metric]["accuracy"]
        assert value is not None  # there are labelled images, or there would be no such score
        return float(value)

    def _write(self, done: Mapping[str, float | None]) -> None:
        path = self.place / LEDGER
        with files.explaining(path):
            documents.write(path, {"runs": {name: {"score": s} for name, s in done.items()}})

    def _shown(self, done: Mapping[str, float | None]) -> list[str]:
        """Show the scores of the grid, a row for each rate."""
        cells = {
            pair: "-" if (score := done[self.path(*pair).name]) is None else f"{100 * score:.1f}"
            for pair in self.grid.pairs
        }
        rows = [
            (f"{rate:g}", *(cells[rate, decay] for decay in self.grid.decays))
            for rate in self.grid.rates
        ]
        header = ("rate", *(f"decay {decay:g}" for decay in self.grid.decays))
        found = [f"{self.name}, {self.metric} on validation images, %:", tables.table(header, rows)]
        best = self.best(done)
        edges = [
            f"the largest or smallest {what}"
            for what, value, all_of in (
                ("rate", best[0], self.grid.rates),
                ("decay", best[1], tuple(d for d in self.grid.decays if d)),
            )
            if len(all_of) > 1 and value in (min(all_of), max(all_of))
        ]
        notes = [f"note      {self.name}: the best has {edge} of the grid" for edge in edges]
        return ["", *found, *notes, ""]


def _thinned(path: epath.Path) -> bool:
    """Tell whether a run was done, and its ledger has been removed since."""
    scored = path / "results" / results.SUMMARY
    return scored.exists() and not (path / stored.CHECKPOINTS).exists()


def _thin(path: epath.Path) -> None:
    """Remove the checkpoints of a run of the grid whose score is in the ledger."""
    with files.explaining(path, "removed"):
        if (checkpoints := path / stored.CHECKPOINTS).exists():
            checkpoints.rmtree()


def _conclude(
    sweep: Sweep, read: saved.Saved, encoder: Encoder, checkpoint: str, seed: int, say: Say
) -> Scored:
    """Score the final run on test images, once, and write the result into the run it came from."""
    target, data = sweep.target, sweep.target.data
    done = sweep.scores()
    rate, decay = sweep.best(done)
    tuned = Encoder.of(saved.read(str(sweep.final(rate, decay))))
    splits = data.splits | {"fit": f"{data.splits['fit']} + {data.splits['choose']}", "choose": ""}
    judged = dataclasses.replace(data, fit=tuned_runs.both(data), choose=None, splits=splits)
    options = Options(("classifier",), settings=Settings(seed=seed), metric=sweep.metric)
    tasks = linear_probe.make_tasks(tuned, judged, options, None, say)
    (one,) = linear_probe.judge(tuned, judged, tasks, options)
    about = {
        "solver": CALLED,
        "fine-tuned from": str(read),
        "chosen": {
            "rate": rate,
            "decay": decay,
            f"{sweep.metric} on validation": done[sweep.path(rate, decay).name],
        },
        "grid": {"rates": list(sweep.grid.rates), "decays": list(sweep.grid.decays)},
        "runs that diverged": [
            name
            for name in (sweep.path(*pair).name for pair in sweep.grid.pairs)
            if name in done and done[name] is None
        ],
        "training": f"{sweep.grid.steps} steps, SGD (Nesterov, 0.9), cosine, crops and flips",
        "learned from": f"{len(tuned_runs.both(data))} images: {splits['fit']}",
        "labels used": f"all, of {splits['fit']}",
    }
    tail = f"step{read.step}" if checkpoint.endswith(f"@{read.step}") else ""
    beyond = {} if sweep.grid == PAPER else dataclasses.asdict(sweep.grid)
    result = one.result | {
        "name": naming.name(f"transfer-finetune-{sweep.name}", seed=seed, beyond=beyond, tail=tail),
        "solver": CALLED,
        "variant": CALLED,
        "checkpoint": {"run": encoder.run, "step": read.step, "weights": encoder.fingerprint},
        "protocol": one.result["protocol"] | about,
        "metric": sweep.metric,
        "published": dict(target.published),
        "notes": [*target.notes, *one.result.get("notes", ())],
    }
    for line in naming.set_aside(read.workdir, result):
        say(f"note      {line}")
    results.write(read.workdir, result, one.arrays)
    return dataclasses.replace(one, encoder=encoder, result=result)
