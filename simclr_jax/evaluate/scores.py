"""Scores of predictions and how sure they are, in NumPy.

Labels are integers `[m]`, or int8 `[m, C]` where an image may show several classes: 1 it does,
0 it does not, -1 not counted for that class (the "difficult" objects of VOC). All scores are
fractions. Every statistic takes a weight per example, by default 1: a bootstrap resample is a
vector of counts, so that nothing is ranked again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from simclr_jax.errors import UserError, choose

Statistic = Callable[[np.ndarray], float]  # of weights [m]


def summary(
    labels: Any, outputs: Any, seed: int = 0, names: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Score the outputs of a classifier, each score with its 95 % bootstrap interval.

    "top-1", "mean per class" and, of scores of more than 5 classes, "top-5" where an example has
    one label; "mAP" and "11-point mAP" where it may have several.

    Args:
        labels: `[m]` or `[m, C]`, see the module.
        outputs: predicted classes `[m]`, or scores `[m, C]`, higher is likelier.
        seed: of the resamples.
        names: which scores, by default all there are.

    Returns:
        For each name `{"value", "low", "high"}`.

    Raises:
        UserError: a name cannot be computed of these outputs, or the shapes do not match.
    """
    known = statistics(labels, outputs)
    for name in names:
        choose("score", name, known)
    return intervals({name: known[name] for name in names or known}, len(labels), seed)


def statistics(labels: Any, outputs: Any) -> dict[str, Statistic]:
    """Return the scores of `summary` as functions of weights `[m]`."""
    labels, outputs = np.asarray(labels), np.asarray(outputs)
    return _multi_label(labels, outputs) if labels.ndim == 2 else _single(labels, outputs)


def top_k_hits(outputs: Any, labels: Any, k: int = 1) -> np.ndarray:
    """Return for each example whether its label is among the `k` likeliest classes, bool `[m]`.

    Of equal scores the lower class ranks higher, as in `argmax`: a classifier that scores all
    classes alike does not pass. A label whose score is not a number is a miss.

    Args:
        outputs: scores `[m, C]`, higher is likelier, or with `k` = 1 predicted classes `[m]`.
        labels: integers `[m]` from 0 to C - 1.
        k: 1 to C.

    Raises:
        UserError: `k` is out of its range, or the numbers of examples differ.
    """
    outputs, labels = np.asarray(outputs), np.asarray(labels)
    if labels.shape != outputs.shape[:1]:
        raise UserError(f"{len(outputs)} outputs but labels of shape {labels.shape}: match them")
    classes = outputs.shape[1] if outputs.ndim == 2 else 1
    if not 1 <= k <= classes:
        raise UserError(f"k is {k} but there are {classes} classes: choose 1 to {classes}")
    if outputs.ndim == 1:
        return outputs == labels
    own = np.take_along_axis(outputs, labels[:, None], axis=1)
    before = ~(outputs <= own)  # also where either is not a number
    before |= (outputs == own) & (np.arange(classes) < labels[:, None])
    return before.sum(axis=1) < k


def per_class_accuracy(
    predictions: Any, labels: Any, classes: int, weights: Any = None
) -> np.ndarray:
    """Return the accuracy within each true class `[C]`, NaN for a class without examples.

    Args:
        predictions, labels: integers `[m]` from 0 to `classes - 1`.
        classes: number of classes.
        weights: `[m]`, at least 0.
    """
    labels = np.asarray(labels)
    right = np.asarray(predictions) == labels
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    examples = np.bincount(labels, weights, minlength=classes)
    hits = np.bincount(labels, weights * right, minlength=classes)
    return np.divide(hits, examples, out=np.full(classes, np.nan), where=examples > 0)


def mean_per_class_accuracy(predictions: Any, labels: Any, weights: Any = None) -> float:
    """Return the mean over the classes that have examples of the accuracy within each."""
    classes = int(np.max(labels)) + 1
    return _mean_of_numbers(per_class_accuracy(predictions, labels, classes, weights))


class Ranking:
    """The examples of one class in the order of their scores, sorted once for any weights.

    Equal scores are one step of the curve of precision and recall, so that the order of the
    examples does not matter. A score that is not a number ranks last.
    """

    def __init__(self, scores: Any, labels: Any):
        """Sort by `scores` `[m]`; `labels` `[m]` are 1, 0 or -1 (not counted)."""
        scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
        scores = np.where(np.isnan(scores), -np.inf, scores)
        counted = np.flatnonzero(labels >= 0)
        self._order = counted[np.argsort(-scores[counted], kind="stable")]
        ranked = scores[self._order]
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], [True] * bool(len(ranked))))
        places = np.flatnonzero(labels[self._order] == 1)
        # Steps without a positive leave recall as it is and only lower precision.
        steps = np.unique(np.searchsorted(last, places))
        self._ends = last[steps]
        self._positives = self._order[places]
        self._found = np.searchsorted(places, self._ends, side="right") - 1

    def _curve(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the positives found `[s]` and the precision `[s]` at the end of each step."""
        found = np.cumsum(weights[self._positives])[self._found]
        shown = np.cumsum(weights[self._order])[self._ends]
        return found, np.divide(found, shown, out=np.zeros(len(found)), where=shown > 0)

    def average_precision(self, weights: np.ndarray) -> float:
        """Return the sum over steps of precision times gain in recall, NaN without a positive."""
        found, precision = self._curve(weights)
        if not (found.size and found[-1]):
            return float("nan")
        return float(precision @ np.diff(found, prepend=0) / found[-1])

    def eleven_points(self, weights: np.ndarray) -> float:
        """Return the mean, over recalls r of 0, 0.1, ..., 1, of the best precision at r or more.

        The measure of VOC 2007 (Everingham et al. 2010, section 4.2). NaN without a positive.
        """
        found, precision = self._curve(weights)
        if not (found.size and found[-1]):
            return float("nan")
        best = np.maximum.accumulate(precision[::-1])[::-1]
        # Products rather than quotients: counts stay exact, and 3 of 10 is a recall of 0.3.
        return float(best[np.searchsorted(10 * found, np.arange(11) * found[-1])].mean())


def intervals(
    measured: Mapping[str, Statistic],
    examples: int,
    seed: int,
    level: float = 0.95,
    resamples: int = 1000,
) -> dict[str, dict[str, float]]:
    """Return each statistic's value and percentile bootstrap interval (Efron 1979).

    Examples are drawn with replacement: the interval speaks of other test examples, not of
    other trainings. All statistics see the same resamples; one in which a statistic is not a
    number does not count for it.

    Args:
        measured: functions of weights `[examples]`.
        examples: how many there are.
        seed: the same seed gives the same intervals.
        level: coverage aimed at, between 0 and 1.
        resamples: number of bootstrap samples.

    Returns:
        For each name `{"value", "low", "high"}`.

    Raises:
        UserError: there are no examples, or `level` is out of its range.
    """
    if not examples:
        raise UserError("there are no values to bootstrap: give at least one")
    if not 0 < level < 1:
        raise UserError(f"level is {level}: choose a number between 0 and 1, such as 0.95")
    generator = np.random.Generator(np.random.Philox(seed))
    found: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(resamples):
        drawn = generator.integers(examples, size=examples)
        weights = np.bincount(drawn, minlength=examples).astype(np.float64)
        for name, statistic in measured.items():
            found[name].append(statistic(weights))
    result = {}
    for name, statistic in measured.items():
        low, high = np.nanquantile(found[name], [(1 - level) / 2, (1 + level) / 2])
        value = statistic(np.ones(examples))
        result[name] = {"value": float(value), "low": float(low), "high": float(high)}
    return result


def bootstrap_interval(
    values: Any, seed: int, level: float = 0.95, resamples: int = 1000
) -> tuple[float, float]:
    """Return the bootstrap interval of the mean of `values` `[m]`, see `intervals`."""
    values = np.asarray(values, np.float64)
    found = intervals({"mean": _mean(values)}, values.size, seed, level, resamples)
    return found["mean"]["low"], found["mean"]["high"]


def _single(labels: np.ndarray, outputs: np.ndarray) -> dict[str, Statistic]:
    first = top_k_hits(outputs, labels)
    found = {"top-1": _mean(first)}
    if outputs.ndim == 2 and outputs.shape[1] > 5:
        found["top-5"] = _mean(top_k_hits(outputs, labels, 5))
    # Any wrong class will do where one is wrong.
    predictions = np.where(first, labels, -1)
    found["mean per class"] = lambda w: mean_per_class_accuracy(predictions, labels, w)
    return found


def _multi_label(labels: Any, scores: Any) -> dict[str, Statistic]:
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.shape != scores.shape:
        raise UserError(f"scores of shape {scores.shape}, labels of {labels.shape}: match them")
    # A class without a positive has no precision.
    shown = np.flatnonzero((labels == 1).any(axis=0))
    if not shown.size:
        raise UserError("no class has a positive example: mAP needs at least one")
    rankings = [Ranking(scores[:, c], labels[:, c]) for c in shown]

    def mean_over_classes(score: Callable[[Ranking, np.ndarray], float]) -> Statistic:
        return lambda weights: _mean_of_numbers(np.array([score(r, weights) for r in rankings]))

    return {
        "mAP": mean_over_classes(Ranking.average_precision),
        "11-point mAP": mean_over_classes(Ranking.eleven_points),
    }


def _mean(values: np.ndarray) -> Statistic:
    values = np.asarray(values, np.float64)
    return lambda weights: float(weights @ values / weights.sum())


def _mean_of_numbers(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
