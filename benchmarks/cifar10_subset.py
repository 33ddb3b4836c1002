"""A short CIFAR-10 run like one that was made with the official code, scored in the same way.

    python benchmarks/cifar10_subset.py --path=cifar10 --seeds=0,1,2 --placement=device

`path` holds train/CLASS/*.jpg and test/CLASS/*.jpg. The first 1000 images of each class train a
ResNet-18 of width 1/4 for 10 epochs by `configs/cifar10.py`, batch 256, one epoch of warm-up,
TensorFlow 2's resize grid; all test images test it. Scores on h in inference mode: kNN by cosine,
k = 200 weighted by exp(s / 0.1) and k = 10 unweighted, and scikit-learn's logistic regression
(C = 1) on standardised features. A run that is complete is only scored again. On an idle CPU of two
cores a run takes some 20 minutes with XLA_FLAGS=--xla_force_host_platform_device_count=8 (80
images/s) and twice that without (37 images/s).
"""

from __future__ import annotations

import functools
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

from simclr_jax import errors
from simclr_jax.data import sources
from simclr_jax.judging import feature_bank
from simclr_jax.stages.encoder import Encoder
from simclr_jax.tables import table
from simclr_jax.train import saved

FLAGS = flags.FLAGS
flags.DEFINE_string("path", None, "Directory of CIFAR-10 as JPEGs.")
flags.DEFINE_integer("per_class", 1000, "Training images of each class.", lower_bound=1)
flags.DEFINE_list("seeds", ["0"], "Seeds to run, with commas.")
flags.DEFINE_enum("placement", "device", ("device", "host"), "Who makes the views.")
flags.DEFINE_string("workdir", "runs/cifar10_subset", "Where the runs live.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

SETTINGS = {
    "data.source": "folder",
    "data.name": "",
    "augment.grid": "half_pixel",
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
    rows = {seed: _scores(_run(int(seed), subset), subset) for seed in FLAGS.seeds}
    names = list(next(iter(rows.values())))
    shown = [
        (f"seed {seed}", *(f"{100 * row[n]:.1f}" for n in names)) for seed, row in rows.items()
    ]
    if len(rows) > 1:
        columns = [[100 * row[name] for row in rows.values()] for name in names]
        spread = (f"{statistics.mean(c):.1f} ± {statistics.stdev(c):.1f}" for c in columns)
        shown.append(("mean, deviation", *spread))
    print(table((f"placement {FLAGS.placement}", *names), shown))


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


def _run(seed: int, images: Path) -> Path:
    workdir = Path(FLAGS.workdir) / f"{FLAGS.placement}_{seed}"
    command = [sys.executable, "-m", "simclr_jax.main", "--config=configs/cifar10.py"]
    settings = SETTINGS | {
        "seed": seed,
        "data.path": images,
        "augment.placement": FLAGS.placement,
        "data.resident": FLAGS.placement == "device",
    }
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    if subprocess.run([*command, f"--workdir={workdir}"], check=False).returncode:
        raise errors.UserError(f"the run of seed {seed} did not finish: see {workdir}/log.txt")
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
    errors.run(main)
