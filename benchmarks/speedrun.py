"""Train a recipe until its kNN accuracy reaches a target, and say in how many device-seconds.

    python benchmarks/speedrun.py --config=configs/speedrun_cifar10.py --seeds=0,1,2 --budget=540

Two clocks: *training* counts the seconds from the start of the first step after an evaluation to
the moment at which the devices are done with the last one before the next; waiting for input is in
it, compilation, evaluations and saving are not. Times the number of devices these are
device-seconds. *Wall* counts all of a call, from its start on.

The run is that of `simclr_jax.main` (same loop, same step, same checkpoints), but that it saves
after each evaluation, and ends at the first one that reaches the target. To look at held-out images
to see when to stop flatters the result a little, as it does every record of this kind. With
`--budget` a call ends, with exit code 75, where the next evaluation would come too late: the same
command goes on from there, and so do the clocks. A call that is killed loses what came after its
last evaluation.

Every seed that is done, at the target or at the end of its schedule without, is a line in `--log`:
versions, devices, what differs from the recipe as shipped, images, and the curve of training
seconds, epoch and accuracy. In the end stands the table of all seeds.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from simclr_jax import documents, entry, errors, files, flag_kinds, parallel, recipes, records
from simclr_jax.stages import adapt, run
from simclr_jax.stages.summary import DEVICES
from simclr_jax.tables import table
from simclr_jax.train import loop, stored
from simclr_jax.train.profile import Profiler
from simclr_jax.train.stage import Batch, Extra, Stage, TrainState
from simclr_jax.train.step import Step, make_step
from simclr_jax.train.timetable import Timetable
from simclr_jax.train.workdir import Workdir

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", "configs/speedrun_cifar10.py", "Recipe.")
flags.DEFINE_list("seeds", ["0"], "Seeds to run, with commas.")
flags.DEFINE_float("target", 84.7, "kNN accuracy to reach, in %; 100.1 runs to the end.")
flags.DEFINE_float(
    "budget", 0.0, "Wall seconds of this call; 0: as many as it takes.", lower_bound=0.0
)
flags.DEFINE(flag_kinds.Path(), "workdir", "runs/speedrun", "Where the runs live.")
flags.DEFINE(flag_kinds.Path(), "log", None, "File that grows by a line a seed; WORKDIR/log.jsonl.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

STARTED = time.monotonic()
NAME = "speedrun.json"  # the clocks and the curve of a run, in its workdir
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "simclr-jax")


class Point(TypedDict):
    """An evaluation, or where a run was stopped between two: then without an accuracy."""

    step: int
    epoch: float
    knn: float | None  # a fraction
    training: float  # seconds so far
    wall: float  # likewise, over all calls


class Kept(TypedDict):
    """The content of `NAME`."""

    total_steps: int
    devices: int
    calls: int
    compiling: float  # seconds, over all calls
    curve: list[Point]
    logged: list[float]  # targets for which the log has a line


class Clock:
    """Seconds in which devices train: it runs from a step on until the devices are waited for."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Run, if it does not."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self, state: TrainState) -> None:
        """Stand still as soon as the devices have made a state."""
        jax.block_until_ready(state)
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None


class Timed:
    """A step that starts the clock, and stops it while it is compiled."""

    def __init__(self, step: Any, clock: Clock):
        self._step, self._clock = step, clock
        self._compiled: dict[int, Step] = {}
        self.compiling = 0.0

    def __call__(self, state: TrainState, batches: Batch, frozen: Extra):
        """Take a chunk of steps; see `train.step.make_step`."""
        steps = len(jax.tree.leaves(batches)[0])
        if steps not in self._compiled:
            self._clock.stop(state)
            before = time.perf_counter()
            self._compiled[steps] = self._step.lower(state, batches, frozen).compile()
            self.compiling += time.perf_counter() - before
        self._clock.start()
        return self._compiled[steps](state, batches, frozen)


class Race:
    """One run, over as many calls as it takes.

    Args:
      workdir: of the run.
      target: the accuracy to reach, a fraction.
      since: of `time.monotonic`, from when on this call works at it.
      until: likewise, when this call must have ended; None: whenever it is done.
    """

    def __init__(self, workdir: Path, target: float, since: float, until: float | None):
        self.workdir, self._path, self._target = workdir, workdir / NAME, target
        self._since, self._until = since, until
        self.kept = Kept(total_steps=0, devices=0, calls=0, compiling=0.0, curve=[], logged=[])
        if self._path.exists():
            self.kept = documents.read(self._path, Kept)
        self._clock, self._over, self._longest = Clock(), False, 0.0
        self._wall = 0.0  # of calls before, as far as they went
        self._noted, self._compiled = 0.0, 0.0  # at the last evaluation of this call

    @property
    def reached(self) -> Point | None:
        """Return the first evaluation at the target, if there is one."""
        least = self._target - 1e-9  # an accuracy is reached by itself, however it was rounded
        return next((p for p in self.kept["curve"] if (p["knn"] or 0) >= least), None)

    @property
    def done(self) -> bool:
        """Tell whether there is nothing more to train."""
        return self.reached is not None or self.last["step"] == self.kept["total_steps"] > 0

    @property
    def last(self) -> Point:
        """Return the last evaluation."""
        measured = [point for point in self.kept["curve"] if point["knn"] is not None]
        nothing = Point(step=0, epoch=0.0, knn=None, training=0.0, wall=0.0)
        return measured[-1] if measured else nothing

    def keep(self) -> None:
        """Write clocks and curve."""
        documents.write(self._path, self.kept)

    def train(
        self, stage: Stage, timetable: Timetable, mesh: Mesh, workdir: Workdir, profiler: Profiler
    ) -> loop.Result:
        """Train as `train.loop.train` does, with an eye on clocks, target and budget."""
        timetable = dataclasses.replace(timetable, save_every=timetable.evaluate_every)
        self.kept["total_steps"], self.kept["devices"] = timetable.total_steps, mesh.size
        self.kept["calls"] += 1
        self.keep()
        timed, before = Timed(make_step(stage, mesh), self._clock), self.kept["compiling"]

        def note(step: int, knn: float | None) -> None:
            self._forget(step)
            wall = self._wall + time.monotonic() - self._since
            epoch = step * timetable.batch_size / timetable.examples
            point = Point(step=step, epoch=epoch, knn=knn, training=self._clock.seconds, wall=wall)
            self.kept["curve"].append(point)
            self.kept["compiling"] = before + timed.compiling
            self.keep()

        def evaluate(state: TrainState) -> dict[str, float]:
            self._clock.stop(state)
            found = stage.evaluate(state)
            note(int(state.step), found["knn_accuracy"])
            self._over = self.reached is not None or self._too_late(timed.compiling)
            return found

        def batches(first: int, total: int) -> Iterator[tuple[range, Batch]]:
            if first:  # the first of all are made while step 0 is evaluated
                self._resume(first)
            self._noted = time.monotonic()
            source = stage.batches(first, total)
            try:
                while not self._over and (chunk := next(source, None)) is not None:
                    yield chunk
            finally:
                source.close()  # type: ignore[attr-defined]  # a generator: it has threads

        measured = dataclasses.replace(stage, evaluate=evaluate, batches=batches)
        result = loop.train(measured, timetable, mesh, workdir, profiler, lambda *_: timed)
        step = int(result.state.step)
        if step != self.kept["curve"][-1]["step"]:  # asked to stop between two evaluations
            self._clock.stop(result.state)
            note(step, None)
        # A run that has not come to its end has no results.
        early = step < timetable.total_steps
        return dataclasses.replace(result, stopped_by=signal.SIGTERM) if early else result

    def _resume(self, step: int) -> None:
        """Set the clocks to what they were at a step, and forget what came after it."""
        self._forget(step + 1)
        curve = self.kept["curve"]
        if not curve or curve[-1]["step"] != step:
            raise errors.UserError(
                f"{self._path} does not know how long the {step} steps took that are saved beside "
                "it: restore it, or give another --workdir"
            )
        self._clock.seconds = curve[-1]["training"]
        self._wall = curve[-1]["wall"]

    def _forget(self, step: int) -> None:
        """Forget a step and all that came after it."""
        self.kept["curve"] = [point for point in self.kept["curve"] if point["step"] < step]

    def _too_late(self, compiling: float) -> bool:
        """Tell whether the next evaluation would come after the end of this call."""
        if not self._noted:  # before the first step: a call goes to the next evaluation at least
            return False
        now = time.monotonic()
        took = now - self._noted - (compiling - self._compiled)
        self._longest = max(self._longest, took)
        self._noted, self._compiled = now, compiling
        return self._until is not None and now + self._longest > self._until


def main() -> int:
    """Run the seeds as far as the budget goes, and print their table; return the exit code."""
    target, config = FLAGS.target / 100, FLAGS.config
    _check(config)
    seeds = [_whole(text) for text in FLAGS.seeds]
    parallel.use_compilation_cache()
    until, since = STARTED + FLAGS.budget if FLAGS.budget else None, STARTED
    races, code = {}, 0
    for seed in seeds:
        race = Race(Path(FLAGS.workdir) / f"seed_{seed}", target, since, until)
        races[seed] = race
        since = time.monotonic()
        if race.done:
            _check_recipe(race, config)
        if race.done or code:
            continue
        one = recipes.copied(config)
        one.seed = seed
        said = run.run(one.lock(), os.fspath(race.workdir), by=race.train)
        code = 0 if race.done else said
        since = time.monotonic()
    for seed, race in races.items():
        if race.done and target not in race.kept["logged"]:
            _log(race, seed)
    print()
    print(_report(races))
    if code:
        print("not done: the same command goes on from here")
    return code


def _check(config: ConfigDict) -> None:
    if config.get("stage") != "pretrain":
        raise errors.UserError(f"stage is {config.get('stage')}: this is a race of stage pretrain")
    if not config.eval.knn:
        raise errors.UserError(
            f"eval.knn is {config.eval.knn}, but kNN accuracy is what is to be reached: set "
            "--config.eval.knn=True"
        )


def _check_recipe(race: Race, config: ConfigDict) -> None:
    """Check that a run that is done is of the recipe that is asked for, but for its seed."""
    own = documents.read(race.workdir / stored.NAME, dict[str, Any])
    wanted = adapt.as_before(recipes.copied(config), own).to_dict()
    made = records.recipe(own).to_dict()
    if found := records.differences(made | {"seed": wanted["seed"]}, wanted):
        raise errors.UserError(
            f"{race.workdir} holds a run of another recipe ({found[0]}): give another --workdir"
        )


def _whole(text: str) -> int:
    seed = errors.number("--seeds", text)
    if seed != int(seed) or seed < 0:
        raise errors.UserError(f"--seeds has {text}: give whole numbers, 0 or more")
    return int(seed)


def _log(race: Race, seed: int) -> None:
    """Add the line of a seed that is done."""
    kept, end = race.kept, race.reached or race.last
    own = documents.read(race.workdir / stored.NAME, dict[str, Any])
    line = {
        "when": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "config": config_flags.get_config_filename(FLAGS["config"]),
        "changed": {
            k: str(v) for k, v in config_flags.get_override_values(FLAGS["config"]).items()
        },
        "beside_the_defaults": records.differences(
            recipes.base().to_dict(), records.recipe(own).to_dict()
        ),
        "images": own["images"],
        "seed": seed,
        "target": FLAGS.target / 100,
        "reached": race.reached is not None,
        **end,
        "device_seconds": end["training"] * kept["devices"],
        "compiling": kept["compiling"],
        "calls": kept["calls"],
        "devices": documents.read(race.workdir / DEVICES, dict[str, str])["devices"],
        "versions": _versions(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "curve": [[p["training"], p["epoch"], p["knn"]] for p in kept["curve"]],
    }
    path = Path(FLAGS.log or Path(FLAGS.workdir) / "log.jsonl")
    with files.explaining(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(documents.line(line))
    kept["logged"].append(FLAGS.target / 100)
    race.keep()


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return found | {"python": platform.python_version()}


def _report(races: dict[int, Race]) -> str:
    header = ("seed", "reached", "kNN %", "epochs", "training s", "device-s", "wall s", "calls")
    rows, won = [], []
    for seed, race in races.items():
        end = race.reached or race.last
        device = end["training"] * race.kept["devices"]
        numbers = (100 * (end["knn"] or 0), end["epoch"], end["training"], device, end["wall"])
        shown = (f"{number:.1f}" for number in numbers)
        reached = "yes" if race.reached else "no" if race.done else "not yet"
        rows.append((str(seed), reached, *shown, str(race.kept["calls"])))
        won += [numbers] if race.reached else []
    if len(won) > 1:
        spread = (
            f"{statistics.mean(c):.1f} ± {statistics.stdev(c):.1f}" for c in zip(*won, strict=True)
        )
        rows.append(("mean, deviation", f"{len(won)} of {len(races)}", *spread, ""))
    return table((f"to kNN {FLAGS.target:g} %", *header[1:]), rows)


if __name__ == "__main__":
    entry.run(main)
