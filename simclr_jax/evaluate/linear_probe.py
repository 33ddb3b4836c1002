"""A linear probe whose penalty is chosen without looking at the test set."""

from __future__ import annotations

from typing import Any

import numpy as np

from simclr_jax.evaluate import logistic

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
VALIDATION = 0.2  # of the labelled examples decide the penalty
TOLERANCE, MAX_STEPS = 1e-4, 200


def predict(
    features: Any, labels: Any, labelled: Any, queries: Any, classes: int, seed: int = 0
) -> np.ndarray:
    """Classify queries by logistic regression on standardised features.

    The penalty is the one of `PENALTIES` that does best on a fifth of the labelled examples after
    fitting the rest; the answer is then fitted on all of them.

    Args:
      features: `[m, d]` of the training images.
      labels: int `[m]`.
      labelled: int `[l]`, which of them the probe may use.
      queries: `[q, d]`.
      classes: number of classes.
      seed: of the split into fitting and validation.

    Returns:
      Integers `[q]`.
    """
    features, queries = logistic.standardize(features, queries)
    shuffled = np.random.RandomState(seed).permutation(np.asarray(labelled))
    held_out = shuffled[: max(1, round(VALIDATION * len(shuffled)))]
    # Rows are chosen by weight, so that one compiled program serves every number of labels.
    everything = np.zeros(len(labels))
    everything[shuffled] = 1
    fitting = everything.copy()
    fitting[held_out] = 0

    def fit(penalty, weights, start):
        return logistic.fit(
            features,
            labels,
            classes,
            penalty,
            tolerance=TOLERANCE,
            max_steps=MAX_STEPS,
            sample_weights=weights,
            start=start,
        )

    start, scores = None, {}
    for penalty in sorted(PENALTIES, reverse=True):  # strong to weak: each start is near its end
        start = fit(penalty, fitting, start)
        guesses = np.asarray(logistic.predict(start, features))[held_out]
        scores[penalty] = float(np.mean(guesses == np.asarray(labels)[held_out]))
    best = max(scores, key=lambda penalty: (scores[penalty], penalty))
    return np.asarray(logistic.predict(fit(best, everything, None), queries))
