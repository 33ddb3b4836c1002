"""Logistic regression here and in scikit-learn: the same loss, the same predictions, which time?

    python benchmarks/logistic_speed.py --shapes=10000x512x10,50000x512x100

Features are Gaussian clouds that overlap, one for each class; the penalty is `1 / C = 1`, both stop
at a gradient of 1e-4 (scikit-learn: its largest component, here: its norm, which is stricter) and
compute in float32. Times are medians of `--repeats` alternating fits after one that compiles;
`path` is the probe as evaluations run it: all 45 penalties, warm-started, and the last fit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from clouds import clouds, fits

from simclr_jax import entry
from simclr_jax.evaluate import linear_probe, logistic
from simclr_jax.tables import table

FLAGS = flags.FLAGS
flags.DEFINE_list("shapes", ["10000x512x10", "20000x1024x50"], "Rows x numbers x classes.")
flags.DEFINE_integer("repeats", 3, "Fits of each.", lower_bound=1)
flags.DEFINE_boolean("path", True, "Time the choice among 45 penalties as well.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def main() -> None:
    """Time each shape and print a row for it."""
    names = ("loss here - there", "same predictions", "here, s", "scikit-learn, s", "ratio")
    rows = [(shape, *_row(*map(int, shape.split("x")))) for shape in FLAGS.shapes]
    print(f"{len(jax.devices())} x {jax.devices()[0].device_kind}")
    print(table(("shape", *names, "path of 45, s"), rows))


def _row(count: int, dim: int, classes: int) -> tuple[str, ...]:
    (x, test), (y, _) = clouds(count, dim, classes)
    here, there = fits(x, y, classes)
    ours, peer = here(), there()
    times: dict[Callable[[], Any], list[float]] = {here: [], there: []}
    for _ in range(FLAGS.repeats):
        for fit, taken in times.items():
            start = time.perf_counter()
            fit()
            taken.append(time.perf_counter() - start)
    seconds = [statistics.median(taken) for taken in times.values()]
    theirs = logistic.Weights(peer.coef_.T, peer.intercept_)
    difference = _loss(ours, x, y) - _loss(theirs, x, y)
    same = np.mean(np.asarray(logistic.logits(ours, test)).argmax(1) == peer.predict(test))
    shown = (f"{difference:+.1e}", f"{same:.2%}", *(f"{s:.2f}" for s in seconds))
    return (*shown, f"{seconds[1] / seconds[0]:.2f}", _path(x, y, classes))


def _path(x: np.ndarray, y: np.ndarray, classes: int) -> str:
    if not FLAGS.path:
        return "-"
    start = time.perf_counter()
    splits = linear_probe.splits(y, seed=0)
    found = linear_probe.fit(x, y, classes, splits, linear_probe.accuracy)
    jax.block_until_ready(found.weights)
    return f"{time.perf_counter() - start:.1f}"


def _loss(weights: logistic.Weights, x: np.ndarray, y: np.ndarray) -> float:
    """Return the penalised mean loss in float64."""
    outputs = x.astype(np.float64) @ np.asarray(weights.kernel, np.float64)
    outputs += np.asarray(weights.bias, np.float64)
    outputs -= outputs.max(1, keepdims=True)
    losses = np.log(np.exp(outputs).sum(1)) - outputs[np.arange(len(y)), y]
    return float(losses.mean() + 0.5 / len(x) * np.sum(np.square(weights.kernel, dtype=np.float64)))


if __name__ == "__main__":
    entry.run(main)
