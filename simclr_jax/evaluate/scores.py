"""Scores of predictions and how sure they are, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from simclr_jax.errors import UserError


def top_k_accuracy(scores: Any, labels: Any, k: int = 1) -> float:
    """Return the fraction of examples, 0 to 1, whose label is among the `k` highest scores.

    Of equal scores the lower class ranks higher, as in `argmax`: a classifier that scores all
    classes alike does not pass. A label whose score is not a number is a miss.

    Args:
        scores: `[M, C]`, higher is likelier.
        labels: integers `[M]` from 0 to C - 1.
        k: 1 to C.

    Raises:
        UserError: `k` is out of its range.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    classes = scores.shape[1]
    if not 1 <= k <= classes:
        raise UserError(f"k is {k} but there are {classes} classes: choose 1 to {classes}")
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = ~(scores <= own)  # also where either is not a number
    before |= (scores == own) & (np.arange(classes) < labels[:, None])
    return float(np.mean(before.sum(axis=1) < k))


def per_class_accuracy(predictions: Any, labels: Any, classes: int) -> np.ndarray:
    """Return the accuracy within each true class `[C]`, NaN for a class without examples.

    Args:
        predictions, labels: integers `[M]` from 0 to `classes - 1`.
        classes: number of classes.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    examples = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels[predictions == labels], minlength=classes)
    return np.divide(hits, examples, out=np.full(classes, np.nan), where=examples > 0)


def bootstrap_interval(
    values: Any, seed: int, level: float = 0.95, resamples: int = 1000
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values` (Efron 1979).

    Examples are drawn with replacement: the interval speaks of other test examples, not of
    other trainings.

    Args:
        values: `[M]`, one number per example, such as 1 for right and 0 for wrong.
        seed: the same seed gives the same interval.
        level: coverage aimed at, between 0 and 1.
        resamples: number of bootstrap samples.

    Raises:
        UserError: there are no values, or `level` is out of its range.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        raise UserError("there are no values to bootstrap: give at least one")
    if not 0 < level < 1:
        raise UserError(f"level is {level}: choose a number between 0 and 1, such as 0.95")
    generator = np.random.Generator(np.random.Philox(seed))
    means = [
        values[generator.integers(values.size, size=values.size)].mean() for _ in range(resamples)
    ]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
