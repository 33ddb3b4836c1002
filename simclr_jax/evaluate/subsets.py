"""Which labelled examples a few-label evaluation may use."""

from __future__ import annotations

from typing import Any

import numpy as np

from simclr_jax.errors import UserError


def few_labels(labels: Any, per_class: int, seed: int) -> np.ndarray:
    """Draw `per_class` examples of every class that occurs in `labels`, without replacement.

    The choice depends on `labels` and `seed` alone, also across NumPy versions, and the one for
    fewer labels per class is contained in the one for more.

    Args:
        labels: integers `[M]`.
        per_class: examples per class, at least 1.
        seed: 0 to 2**32 - 1.

    Returns:
        Rising positions in `labels`, `[classes * per_class]`.

    Raises:
        UserError: a class has too few examples, or `per_class` is below 1.
    """
    labels = np.asarray(labels)
    if per_class < 1:
        raise UserError(f"labels per class is {per_class}: give at least 1")
    # The legacy generator on purpose: NumPy has frozen its stream.
    generator = np.random.RandomState(seed)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise UserError(
                f"class {label} has {len(members)} examples but {per_class} per class were asked "
                f"for: choose at most {len(members)}"
            )
        chosen.append(generator.permutation(members)[:per_class])
    return np.sort(np.concatenate(chosen))
