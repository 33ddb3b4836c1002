"""The settings of `configs/digits.py` beside others, without a look at the test images.

    python benchmarks/digits_choice.py
    python benchmarks/digits_choice.py --seeds=0,1,2 --only="as it is,smaller crops"

A fifth of the 1437 training images is held out, the rest is trained on for as many steps as the
recipe has on all of them; the test images take no part. One line per run, kNN accuracy on what was
held out, and a table at the end. A run that is complete is only read, one that was interrupted goes
on.
"""

from __future__ import annotations

import os
import runpy
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from simclr_jax import documents, entry, errors, recipes, records
from simclr_jax.data import sources
from simclr_jax.tables import table
from simclr_jax.train import timetable

FLAGS = flags.FLAGS
flags.DEFINE_list("seeds", ["0", "1"], "Seeds to run, with commas.")
flags.DEFINE_list("only", [], "Names of candidates, with commas; empty: all.")
flags.DEFINE_string("workdir", "runs/digits_choice", "Where the runs live.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs" / "digits.py"
PIXELS, TRAINED, KNN = "raw pixels", "pretrained encoder", "kNN"


def both(**fields: Any) -> dict[str, Any]:
    """Return fields of both views."""
    views = ("first", "second")
    return {f"augment.views.{v}.{name}": value for v in views for name, value in fields.items()}


# By name: the fields in which a candidate differs from the recipe as it stands.
CANDIDATES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "5/3 of the rate": {"optim.base_lr": 20.0},
    "2/3 of the steps": {"train.epochs": 45.0},
    "2/3 of the steps, half the rate": {"train.epochs": 45.0, "optim.base_lr": 6.0},
    "2/3 of the steps, quarter of the rate": {"train.epochs": 45.0, "optim.base_lr": 3.0},
    "smaller crops": both(area_min=0.3),
    "larger crops": both(area_min=0.7),
    "no colours": both(jitter=0.0),
    "temperature 0.05": {"loss.temperature": 0.05},
    "temperature 0.2": {"loss.temperature": 0.2},
    "half the batch": {"train.batch_size": 128},
    "no head": {"head.kind": "none"},
    "nonlinear head": {"head.kind": "nonlinear", "head.layers": 2},
    "plain shortcuts": {"model.sk_ratio": 0.0},
    "as it was": {
        "head.kind": "nonlinear",
        "model.sk_ratio": 0.0,
        "loss.temperature": 0.2,
        "optim.base_lr": 3.0,
        "train.epochs": 80.0,
    },
}


def main() -> None:
    """Run every candidate with every seed and print what each is worth."""
    names = FLAGS.only or list(CANDIDATES)
    for name in names:
        errors.choose("--only", name, CANDIDATES)
    archive = Path(FLAGS.workdir).resolve() / "held_out.npz"
    examples = _hold_out(archive)
    rows = []
    for name in names:
        found = []
        for seed in FLAGS.seeds:
            scores = _run(name, int(errors.number("--seeds", seed)), archive, examples)
            pixels, ours = (100 * scores[thing][KNN]["accuracy"] for thing in (PIXELS, TRAINED))
            found.append(ours)
            print(f"{name}, seed {seed}: kNN {ours:.1f} %, raw pixels {pixels:.1f} %", flush=True)
        each = "  ".join(f"{accuracy:.1f}" for accuracy in found)
        rows.append((name, f"{statistics.mean(found):.1f}", f"{min(found):.1f}", each))
    print(table(("kNN in %, a fifth of the training images", "mean", "lowest", "each"), rows))


def _hold_out(archive: Path) -> int:
    """Write the training images in two parts, unless they are there; return how many there are."""
    train = next(iter(sources.open_splits(_recipe().data)))
    assert isinstance(train, sources.Images)
    if not archive.exists():
        shuffled = np.random.RandomState(1).permutation(len(train))  # a stream that is frozen
        held_out = len(train) - _kept(len(train))
        parts = {"test": shuffled[:held_out], "train": shuffled[held_out:]}
        archive.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {}
        for split, rows in parts.items():
            part = train.take(rows)
            arrays |= {f"{split}_images": part.pixels, f"{split}_labels": part.labels}
        np.savez(archive, **arrays)
    return len(train)


def _recipe() -> Any:
    return runpy.run_path(str(RECIPE))["get_config"]()


def _run(name: str, seed: int, archive: Path, examples: int) -> dict[str, Any]:
    """Train a candidate unless that is done; return the scores at the end."""
    workdir = archive.parent / f"{name.replace(' ', '_')}_{seed}"
    config = _recipe()
    for field, value in CANDIDATES[name].items():
        recipes.put(config, field, value)
    plan = timetable.make(config, examples)
    settings = CANDIDATES[name] | {
        "seed": seed,
        "data.source": "memory",
        "data.name": "",
        "data.path": os.fspath(archive),
        "train.steps": plan.total_steps,
        # As many steps of warm-up too, though an epoch is shorter here.
        "optim.warmup_epochs": (plan.warmup_steps + 0.5) * plan.batch_size / _kept(examples),
        "eval.every_epochs": 0.0,
    }
    for field, value in settings.items():
        recipes.put(config, field, value)
    summary = workdir / "results" / "summary.json"
    if not summary.exists():
        command = [sys.executable, "-m", "simclr_jax.main", f"--config={RECIPE}"]
        command += [f"--config.{field}={value}" for field, value in settings.items()]
        command += [f"--workdir={workdir}"]
        if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode:
            raise errors.UserError(f"{name}, seed {seed} did not finish: see {workdir}/log.txt")
    made = records.recipe(documents.read(workdir / "config.json", dict[str, Any]))
    if found := records.differences(made.to_dict(), config.to_dict()):
        raise errors.UserError(
            f"{workdir} holds a run of another recipe ({found[0]}): give another --workdir"
        )
    return documents.read(summary, dict[str, Any])["scores"]


def _kept(examples: int) -> int:
    """Return how many of so many training images are trained on."""
    return examples - examples // 5


if __name__ == "__main__":
    entry.run(main)
