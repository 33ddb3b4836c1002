"""What pretraining on digits is worth, over seeds, numbers of devices and versions of JAX.

    python benchmarks/digits_seeds.py                           the README's table of placed digits
    python benchmarks/digits_seeds.py --name=plain
    python benchmarks/digits_seeds.py --devices=1,2,4 --pythons=.venv/bin/python,OTHER/bin/python

Each is one run of `configs/digits.py` in a process of its own, on so many CPU devices, with a
compilation cache of its own, so that its time is that of a first run. A line says how it ended. A
run that is complete is only read, one that was interrupted goes on: its time is then not known.
In the end stand the promise of `configs/digits.py`, for each version of JAX and number of devices,
and mean and standard error of every score. The standard error of a mean joins the spread over seeds
with the sampling of the held-out images, p(1-p)/images; margins are differences in pooled standard
errors.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from simclr_jax import documents, entry, errors, records
from simclr_jax.tables import table

FLAGS = flags.FLAGS
flags.DEFINE_integer("seeds", 8, "How many.", lower_bound=2)
flags.DEFINE_enum("name", "placed", ("placed", "plain"), "Which digits.")
flags.DEFINE_list("devices", ["1"], "Numbers of CPU devices, with commas.")
flags.DEFINE_list("pythons", [sys.executable], "Interpreters, with commas.")
flags.DEFINE_string("workdir", "runs/digits_seeds", "Where the runs live.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs" / "digits.py"
PIXELS, TRAINED, KNN = "raw pixels", "pretrained encoder", "kNN"

# The promise: every seed this far above raw pixels, seeds this near to one another, so fast.
MARGIN, DEVIATION, SECONDS = 15.0, 2.5, 180.0

# What an interpreter says of itself, without importing JAX.
ABOUT = (
    "import platform, importlib.metadata as m; "
    "print(f\"{m.version('jax')} {platform.python_version()}\")"
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the recipe: its settings, what it ended with, and its seconds, if they are known."""

    where: str  # version of JAX and number of devices
    seed: int
    summary: dict[str, Any]
    seconds: float | None

    def percent(self, thing: str) -> float:
        """Return the kNN accuracy of a row of the run's table, in %."""
        return 100 * self.summary["scores"][thing][KNN]["accuracy"]

    @property
    def margin(self) -> float:
        """Return by how many points the encoder is above raw pixels."""
        return self.percent(TRAINED) - self.percent(PIXELS)

    def __str__(self) -> str:
        took = "continued, time unknown" if self.seconds is None else f"{self.seconds:.0f} s"
        return (
            f"{self.where}, seed {self.seed}: kNN {self.percent(TRAINED):.1f} %, raw pixels "
            f"{self.percent(PIXELS):.1f} %, {self.margin:+.1f} points, {took}"
        )


def main() -> None:
    """Run all that is missing, say how each ended, and print the tables."""
    runs: list[Run] = []
    for python, devices in itertools.product(FLAGS.pythons, FLAGS.devices):
        for seed in range(FLAGS.seeds):
            runs.append(_run(python, _whole(devices), seed))
            print(runs[-1], flush=True)
    by_place = {run.where: [r for r in runs if r.where == run.where] for run in runs}
    header = ("kNN in %", "lowest", "mean", "deviation", "least above raw pixels", "longest")
    print(table((*header, "promise"), [_promise(*place) for place in by_place.items()]))
    for where, some in by_place.items():
        print()
        print(_scores(f"{FLAGS.name} digits, {FLAGS.seeds} seeds, {where}", some))


def _whole(text: str) -> int:
    devices = errors.number("--devices", text)
    if devices != int(devices) or devices < 1:
        raise errors.UserError(f"--devices has {text}: give whole numbers, 1 or more")
    return int(devices)


def _run(python: str, devices: int, seed: int) -> Run:
    """Run a seed, unless that is done, and return how it ended."""
    try:
        said = subprocess.run([python, "-c", ABOUT], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise errors.UserError(
            f"--pythons has {python}, which does not run or has no JAX ({error})"
        ) from error
    jax, version = said.stdout.split()
    workdir = Path(FLAGS.workdir).resolve() / f"{FLAGS.name}_jax{jax}_{devices}_{seed}"
    summary, clock = workdir / "results" / "summary.json", workdir / "seconds.json"
    fresh = not workdir.exists()
    if not summary.exists():
        start = time.perf_counter()
        _train(python, devices, seed, workdir)
        if fresh:
            documents.write(clock, {"seconds": time.perf_counter() - start})
    _check_recipe(workdir, seed)
    where = f"JAX {jax}, Python {version.rpartition('.')[0]}, {devices} device(s)"
    seconds = documents.read(clock, dict[str, float])["seconds"] if clock.exists() else None
    return Run(where, seed, documents.read(summary, dict[str, Any]), seconds)


def _train(python: str, devices: int, seed: int, workdir: Path) -> None:
    command = [python, "-m", "simclr_jax.main", f"--config={RECIPE}", f"--workdir={workdir}"]
    command += [f"--config.seed={seed}", f"--config.data.name={FLAGS.name}"]
    flag = f"--xla_force_host_platform_device_count={devices}"  # the last one counts
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}",
            "JAX_COMPILATION_CACHE_DIR": cache,
        }
        said = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False
        )
    if said.returncode:
        raise errors.UserError(f"the run of seed {seed} did not finish: see {workdir}/log.txt")


def _check_recipe(workdir: Path, seed: int) -> None:
    """Check that a run is of the recipe as it stands, whenever it was made."""
    made = records.recipe(documents.read(workdir / "config.json", dict[str, Any]))
    wanted = runpy.run_path(str(RECIPE))["get_config"]()
    wanted.seed, wanted.data.name = seed, FLAGS.name
    if found := records.differences(made.to_dict(), wanted.to_dict()):
        raise errors.UserError(
            f"{workdir} holds a run of another recipe ({found[0]}): give another --workdir"
        )


def _promise(where: str, runs: list[Run]) -> tuple[str, ...]:
    """Return a row that says whether the runs at a place keep the promise."""
    found, least = [run.percent(TRAINED) for run in runs], min(run.margin for run in runs)
    deviation = statistics.stdev(found)
    known = [run.seconds for run in runs if run.seconds is not None]
    kept = least >= MARGIN and deviation <= DEVIATION and max(known, default=0) <= SECONDS
    return (
        where,
        f"{min(found):.1f}",
        f"{statistics.mean(found):.1f}",
        f"{deviation:.1f}",
        f"{least:+.1f}",
        f"{max(known):.0f} s" if len(known) == len(runs) else "unknown",
        ("kept" if len(known) == len(runs) else "kept, but for time") if kept else "broken",
    )


def _scores(title: str, runs: list[Run]) -> str:
    """Return the table of mean and standard error of every score, and the margins."""
    found = [run.summary["scores"] for run in runs]
    held_out = runs[0].summary["protocol"]["held_out_images"]
    things, names = list(found[0]), list(found[0][TRAINED])
    means = {
        (thing, name): _mean([scores[thing][name]["accuracy"] for scores in found], held_out)
        for thing in things
        for name in names
    }
    rows = [(thing, *(_percent(means[thing, name]) for name in names)) for thing in things]
    rows += [
        (f"above {thing}", *(_margin(means[TRAINED, n], means[thing, n]) for n in names))
        for thing in things
        if thing != TRAINED
    ]
    return table((title, *names), rows)


def _mean(values: list[float], held_out: int) -> tuple[float, float]:
    """Return mean and its standard error."""
    mean = statistics.mean(values)
    error = statistics.variance(values) / len(values) + mean * (1 - mean) / held_out
    return mean, math.sqrt(error)


def _percent(value: tuple[float, float]) -> str:
    return f"{100 * value[0]:.1f} ± {100 * value[1]:.1f}"


def _margin(ours: tuple[float, float], theirs: tuple[float, float]) -> str:
    return f"{(ours[0] - theirs[0]) / math.hypot(ours[1], theirs[1]):+.1f} SE"


if __name__ == "__main__":
    entry.run(main)
