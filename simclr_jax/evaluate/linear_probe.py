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
TOLERANCE, MAX_STEPS = 1e-4, 200  # of the fits that choose the penalty
LAST_TOLERANCE, LAST_MAX_STEPS = 1e-5, 1000  # of the fit that is the answer
BLOCK = 65_536  # rows that are looked at together
VALIDATION = 0.2  # of the examples choose, where there are none apart for it


class Probe(NamedTuple):
    """A fitted probe: the classifier of features as they were given, and how it was chosen."""

    weights: Weights
    penalty: float
    scores: dict[float, float]  # of each penalty, on the examples that chose


def fit(
    features: Any,
    labels: Any,
    classes: int,
    fitting: Any,
    choosing: Any,
    score: Callable[[np.ndarray, np.ndarray], float],
    penalties: Sequence[float] = PENALTIES,
) -> Probe:
    """Fit on some examples, choose the penalty on others, fit again on all of them.

    Features are centred and divided by one number, so that their mean square is 1: that changes no
    angle, and a penalty means the same for any encoder. It weighs `1/2 ||kernel||^2` against the
    sum of the cross-entropies, and is 1 / C of scikit-learn. Of equally good ones the strongest is
    chosen.

    Args:
      features: `[m, d]`, as the encoder gave them.
      labels: integers `[m]`, or `[m, classes]` of 1, 0 and -1: see `logistic.fit`.
      classes: number of classes.
      fitting: which examples to fit on, int `[a]`.
      choosing: which to choose on, int `[b]`.
      score: from logits `[b, classes]` and labels to a number, higher is better.
      penalties: to choose among; of one, nothing is chosen.

    Raises:
      UserError: if no examples are left to fit on, or `logistic.fit` refuses them.
    """
    if not len(fitting):
        raise UserError("no labelled examples are left to fit on: label more")
    labels = np.asarray(labels)
    everything = np.concatenate([fitting, choosing])
    origin, unit = _moments(np.asarray(features), everything)
    centred = (jnp.asarray(features) - origin) / unit
    held_out = centred[np.asarray(choosing)]

    def solve(penalty: float, rows: np.ndarray, start: Weights | None, **until: Any) -> Weights:
        # Rows are chosen by weight, so that one compiled program serves every number of them.
        weights = np.zeros(len(labels))
        weights[rows] = 1
        l2 = penalty / len(rows)
        return logistic.fit(
            centred, labels, classes, l2, start=start, sample_weights=weights, **until
        )

    start, scores = None, {}
    if len(penalties) > 1:
        for penalty in sorted(penalties, reverse=True):  # each start is near its end
            start = solve(
                penalty, np.asarray(fitting), start, tolerance=TOLERANCE, max_steps=MAX_STEPS
            )
            outputs = np.asarray(logistic.logits(start, held_out))
            scores[float(penalty)] = score(outputs, labels[choosing])
    best = max(scores, key=lambda penalty: (scores[penalty], penalty), default=penalties[0])
    last = {"tolerance": LAST_TOLERANCE, "max_steps": LAST_MAX_STEPS}
    found = solve(best, everything, None, **last)
    kernel = found.kernel / unit
    return Probe(Weights(kernel, found.bias - origin @ kernel), float(best), scores)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of examples whose label has the highest logit."""
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def split(labels: Any, seed: int, share: float = VALIDATION) -> tuple[np.ndarray, np.ndarray]:
    """Split examples at random into those to fit on and those to choose on.

    Args:
      labels: `[m]` or `[m, classes]`; each class of single labels is split in the same proportion,
        and a class of one example is fitted on.
      seed: 0 to 2**32 - 1; the split depends on it and on `labels` alone.
      share: of the examples that choose.

    Returns:
      Rising positions of both.
    """
    labels = np.asarray(labels)
    generator = np.random.RandomState(seed)
    kinds = labels if labels.ndim == 1 else np.zeros(len(labels), int)
    choosing = []
    for kind in np.unique(kinds):
        members = generator.permutation(np.flatnonzero(kinds == kind))
        choosing.append(members[: round(share * len(members))])
    chosen = np.sort(np.concatenate(choosing))
    if not len(chosen):  # a few examples a class: one of them has to do
        chosen = generator.permutation(len(labels))[:1]
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def _moments(features: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the mean `[d]` of some rows, and the root of the mean square of what is left, or 1."""
    blocks = [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]  # no copy of all of them
    origin = sum(features[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(rows)
    squares = sum(float(np.sum((features[block] - origin) ** 2)) for block in blocks)
    unit = float(np.sqrt(squares / (len(rows) * features.shape[1])))
    return np.asarray(origin, features.dtype), unit or 1.0
