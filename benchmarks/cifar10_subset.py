"""A short CIFAR-10 run like one that was made with the official code, scored in the same way.

    python benchmarks/cifar10_subset.py --path=cifar10 --seeds=0,1,2 --placement=device
    python benchmarks/cifar10_subset.py --path=cifar10 --set=model.depth=10 --set=train.epochs=5 \
        --recipe=configs/cifar10.py --recipe=configs/moco.py:cifar10

`path` holds train/CLASS/*.jpg and test/CLASS/*.jpg. The first 1000 images of each class train a
ResNet-18 of width 1/4 for 10 epochs by `configs/cifar10.py`, batch 256, one epoch of warm-up,
TensorFlow 2's resize grid; all test images test it. `--recipe` gives others, with the same encoder,
batch and length, and what else they say of themselves; `--set` changes fields of all. Scores on h
in inference mode: kNN by cosine, k = 200 weighted by exp(s / 0.1) and k = 10 unweighted, and
scikit-learn's logistic regression (C = 1) on standardised features. A run that is complete is only
scored again. On an idle CPU of two cores a run of the first kind takes some 20 minutes with
XLA_FLAGS=--xla_force_host_platform_device_count=8 (80 images/s), twice that without (37 images/s).
"""

from __future__ import annotations

import functools
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from simclr_jax import entry, errors
from simclr_jax.data import sources
from simclr_jax.judging import feature_bank
from simclr_jax.stages.encoder import Encoder
from simclr_jax.tables import table
from simclr_jax.train import saved

FLAGS = flags.FLAGS
flags.DEFINE_string("path", None, "Directory of CIFAR-10 as JPEGs.")
flags.DEFINE_integer("per_class", 1000, "Training images of each class.", lower_bound=1)
flags.DEFINE_list("seeds", ["0"], "Seeds to run, with commas.")
flags.DEFINE_multi_string("recipe", ["configs/cifar10.py"], "A recipe to run; may be repeated.")
flags.DEFINE_multi_string("set", [], "FIELD=VALUE for all of them; may be repeated.")
flags.DEFINE_enum("placement", "device", ("device", "host"), "Who makes the views.")
flags.DEFINE_string("workdir", "runs/cifar10_subset", "Where the runs live.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

SETTINGS = {
    "data.source": "folder",
    "data.name": "",
    "augment.grid": "half_pixel",
    "model.depth": 18,
    "model.width": 0.25,
    "train.batch_size": 256,
    "train.epochs": 10.0,
    "optim.warmup_epochs": 1.0,
    "eval.every_epochs": 0.0,
    "eval.compare": False,
    "log.every_steps": 10,
    "checkpoint.every_steps": 39,
}


def main() -> None:
    """Run the seeds and print their scores, mean and deviation."""
    if not FLAGS.path:
        raise errors.UserError("no images: give --path=DIRECTORY")
    subset = _subset(Path(FLAGS.path), Path(FLAGS.workdir) / "images", FLAGS.per_class)
    scores = {}
    for recipe in FLAGS.recipe:
        scores[recipe] = [_scores(_run(recipe, int(seed), subset), subset) for seed in FLAGS.seeds]
        print(f"{recipe}: {_shown(scores[recipe])}", flush=True)
    names = list(next(iter(scores.values()))[0])
    print(table((f"placement {FLAGS.placement}", *names), _rows(scores, names)))


def _rows(scores: dict[str, list[dict[str, float]]], names: list[str]) -> list[tuple[str, ...]]:
    rows = []
    for recipe, found in scores.items():
        for seed, row in zip(FLAGS.seeds, found, strict=True):
            rows.append((f"{recipe} seed {seed}", *(f"{100 * row[n]:.1f}" for n in names)))
        if len(found) > 1:
            columns = [[100 * row[name] for row in found] for name in names]
            spread = (f"{statistics.mean(c):.1f} ± {statistics.stdev(c):.1f}" for c in columns)
            rows.append((f"{recipe} mean, deviation", *spread))
    return rows


def _shown(found: list[dict[str, float]]) -> str:
    return "; ".join(
        ", ".join(f"{name} {100 * value:.1f} %" for name, value in row.items()) for row in found
    )


def _subset(path: Path, images: Path, per_class: int) -> Path:
    """Link the first images of each training class, and all test images, into a directory."""
    for directory in sorted((path / "train").iterdir()):
        chosen = images / "train" / directory.name
        chosen.mkdir(parents=True, exist_ok=True)
        for file in sorted(directory.iterdir())[:per_class]:
            if not (chosen / file.name).is_symlink():
                (chosen / file.name).symlink_to(file.resolve())
    if not (images / "test").is_symlink():
        (images / "test").symlink_to((path / "test").resolve())
    return images


def _run(recipe: str, seed: int, images: Path) -> Path:
    kind = re.sub(r"\W+", "_", recipe.removeprefix("configs/"))
    workdir = Path(FLAGS.workdir) / f"{kind}_{FLAGS.placement}_{seed}"
    command = [sys.executable, "-m", "simclr_jax.main", f"--config={recipe}"]
    settings = SETTINGS | {
        "seed": seed,
        "data.path": images,
        "augment.placement": FLAGS.placement,
        "data.resident": FLAGS.placement == "device",
    }
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    command += [f"--config.{setting}" for setting in FLAGS.set]
    if subprocess.run([*command, f"--workdir={workdir}"], check=False).returncode:
        raise errors.UserError(f"{recipe}, seed {seed}, did not finish: see {workdir}/log.txt")
    return workdir


def _scores(workdir: Path, images: Path) -> dict[str, float]:
    """Score the last checkpoint of a run."""
    run = saved.read(str(workdir))
    data = run.config.data
    data.source, data.path = "folder", str(images)
    splits = sources.open_splits(data)
    (train, train_labels), (test, labels) = (_features(run, split) for split in splits)

    def accuracy(model: Any, scale: bool = False) -> float:
        known, asked = train, test
        if scale:
            scaler = StandardScaler().fit(train)
            known, asked = scaler.transform(train), scaler.transform(test)
        return float(model.fit(known, train_labels).score(asked, labels))

    neighbours = functools.partial(KNeighborsClassifier, metric="cosine", algorithm="brute")
    return {
        "kNN-200": accuracy(neighbours(200, weights=lambda distance: np.exp((1 - distance) / 0.1))),
        "kNN-10": accuracy(neighbours(10)),
        "logistic regression": accuracy(LogisticRegression(C=1.0, max_iter=500), scale=True),
    }


def _features(run: saved.Saved, source: sources.Source) -> tuple[np.ndarray, np.ndarray]:
    found = feature_bank.extract(Encoder.of(run), source, ("h",), cache=None)["h"]
    return found.x, found.known


if __name__ == "__main__":
    entry.run(main)
