"""The linear probe: logistic regression whose penalty is chosen without looking at the test set.

SimCLR, appendix B.8 (after Kornblith et al. 2019): L-BFGS, no augmentation, the L2 penalty one of
45 values chosen on validation examples, then fitted again on all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from simclr_jax.errors import UserError
from simclr_jax.evaluate import logistic
from simclr_jax.evaluate.logistic import Weights

PENALTIES = tuple(np.logspace(-6, 5, 45))
TOLERANCE, LAST_TOLERANCE = 1e-4, 1e-5  # of the fits that choose the penalty; of the answer
MAX_STEPS = 200  # of each fit, from the solution at the next stronger penalty
BLOCK = 65_536  # rows that are looked at together
FOLDS = 5  # a fifth of the examples chooses, where there are none apart for it
FEW = 1000  # examples, up to which each of them chooses in its turn


class Probe(NamedTuple):
    """A fitted probe: the classifier of features as they were given, and how it was chosen."""

    weights: Weights
    penalty: float
    scores: dict[float, float]  # of each penalty, on the examples that chose


Splits = Sequence[tuple[np.ndarray, np.ndarray]]  # rows to fit on, rows to choose on


def fit(
    features: Any,
    labels: Any,
    classes: int,
    splits: Splits,
    score: Callable[[np.ndarray, np.ndarray], float],
    penalties: Sequence[float] = PENALTIES,
) -> Probe:
    """Fit on some examples, choose the penalty on others, fit again on all.

    Features are centred and divided by one number, so that their mean square is 1: that changes no
    angle, and a penalty means the same for any encoder. It weighs `1/2 ||kernel||^2` against the
    sum of the cross-entropies, and is 1 / C of scikit-learn. Of equally good ones the strongest is
    chosen. Each fit starts from the next stronger penalty's and ends after `MAX_STEPS`, which weak
    penalties need and which regularises them: the last fit takes the same way.

    Args:
      features: `[m, d]`, as the encoder gave them.
      labels: integers `[m]`, or `[m, classes]` of 1, 0 and -1: see `logistic.fit`.
      classes: number of classes.
      splits: which examples to fit on and which to choose on; of several, scores are averaged.
      score: from logits `[b, classes]` and labels to a number, higher is better.
      penalties: to choose among; of one, nothing is chosen.

    Raises:
      UserError: if no examples are left to fit on, or `logistic.fit` refuses them.
    """
    if not all(len(fitting) for fitting, _ in splits):
        raise UserError("no labelled examples are left to fit on: label more")
    labels = np.asarray(labels)
    origin, unit = moments(np.asarray(features))
    centred = np.subtract(features, origin)  # on the host: the device holds them once
    centred /= unit
    centred = jnp.asarray(centred)

    def solve(penalty: float, rows: np.ndarray, start: Weights | None, **until: Any) -> Weights:
        # Rows are chosen by weight, so that one compiled program serves every split.
        weights = np.zeros(len(labels))
        weights[rows] = 1
        l2 = penalty / len(rows)
        return logistic.fit(
            centred, labels, classes, l2, start=start, sample_weights=weights, **until
        )

    falling = sorted(map(float, penalties), reverse=True)  # each start is near its end
    found: dict[float, list[float]] = {penalty: [] for penalty in falling}
    for fitting, choosing in splits if len(falling) > 1 else ():
        start, held_out = None, centred[choosing]
        for penalty in falling:
            start = solve(penalty, fitting, start, tolerance=TOLERANCE, max_steps=MAX_STEPS)
            outputs = np.asarray(logistic.logits(start, held_out))
            found[penalty].append(score(outputs, labels[choosing]))
    scores = {penalty: float(np.mean(each)) for penalty, each in found.items() if each}
    best = max(scores, key=lambda penalty: (scores[penalty], penalty), default=falling[0])
    # By the way it was chosen: a weak penalty's fit is far from its end, and better for it.
    final, everything = None, np.arange(len(labels))
    for penalty in (p for p in falling if p >= best):
        final = solve(penalty, everything, final, tolerance=LAST_TOLERANCE, max_steps=MAX_STEPS)
    assert final is not None
    kernel = final.kernel / unit
    return Probe(Weights(kernel, final.bias - origin @ kernel), best, scores)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of examples whose label has the highest logit."""
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def splits(labels: Any, seed: int) -> Splits:
    """Split examples at random into those to fit on and those to choose on.

    `FOLDS` splits of up to `FEW` examples, in which each chooses once; of more examples one split,
    in which a part of `1 / FOLDS` chooses.

    Args:
      labels: `[m]` or `[m, classes]`; each class of single labels is split in the same proportion.
      seed: 0 to 2**32 - 1; the splits depend on it and on `labels` alone.
    """
    labels = np.asarray(labels)
    fold = folds(labels, FOLDS, seed)
    chosen = range(FOLDS if len(labels) <= FEW else 1)
    rows = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in chosen]
    return [pair for pair in rows if len(pair[0]) and len(pair[1])]


def folds(labels: Any, count: int, seed: int) -> np.ndarray:
    """Return for each example one of `count` folds, `[m]`; those of a class are spread evenly."""
    labels = np.asarray(labels)
    generator = np.random.RandomState(seed)
    kinds = labels if labels.ndim == 1 else np.zeros(len(labels), int)
    shuffled = generator.permutation(len(labels))
    order = shuffled[np.argsort(kinds[shuffled], kind="stable")]  # class by class
    fold = np.empty(len(labels), int)
    fold[order] = np.arange(len(labels)) % count
    return fold


def moments(features: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the mean `[d]`, and the root of the mean square of what is left, or 1 for 0."""
    origin = features.mean(axis=0, dtype=np.float64)
    # In blocks: features of ImageNet would not fit twice.
    starts = range(0, len(features), BLOCK)
    squares = sum(float(np.sum((features[i : i + BLOCK] - origin) ** 2)) for i in starts)
    unit = float(np.sqrt(squares / features.size))
    return np.asarray(origin, features.dtype), unit or 1.0
