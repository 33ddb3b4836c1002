"""What pretraining on digits is worth, over seeds: the table of the README.

    python benchmarks/digits_seeds.py --seeds=3 --name=placed --workdir=runs/digits_seeds

Each seed is one run of `configs/digits.py` (a run that is complete already is only scored again).
The standard error of a mean joins the spread over seeds with the sampling of the held-out images,
p(1-p)/images; margins are differences in pooled standard errors.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
from pathlib import Path

from absl import flags

from simclr_jax import errors, files
from simclr_jax.tables import table

FLAGS = flags.FLAGS
flags.DEFINE_integer("seeds", 3, "How many.", lower_bound=2)
flags.DEFINE_enum("name", "placed", ("placed", "plain"), "Which digits.")
flags.DEFINE_string("workdir", "runs/digits_seeds", "Where the runs live.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

TRAINED = "pretrained encoder"


def main() -> None:
    """Run all seeds, print mean and standard error of each score, and the margins."""
    results = [_result(seed) for seed in range(FLAGS.seeds)]
    found = [result["scores"] for result in results]
    held_out = results[0]["protocol"]["held_out_images"]
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
    print(table((f"{FLAGS.name} digits, {FLAGS.seeds} seeds", *names), rows))


def _result(seed: int) -> dict:
    workdir = Path(FLAGS.workdir) / f"{FLAGS.name}_{seed}"
    command = [sys.executable, "-m", "simclr_jax.main", "--config=configs/digits.py"]
    command += [f"--workdir={workdir}", f"--config.seed={seed}", f"--config.data.name={FLAGS.name}"]
    if subprocess.run(command, check=False).returncode:
        raise errors.UserError(f"the run of seed {seed} did not finish: see {workdir}/log.txt")
    return files.read_json(workdir / "results" / "summary.json")


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
    errors.run(main)
