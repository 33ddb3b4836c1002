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


def share_of_labels(labels: Any, share: float, seed: int) -> np.ndarray:
    """Draw a share of every class that occurs in `labels`, rounded, at least one example each.

    The official lists of 1 % and 10 % of ImageNet are balanced over classes in the same way
    (SimCLR, section 5). As in `few_labels` the choice depends on `labels` and `seed` alone, and a
    smaller share is contained in a larger one.

    Args:
        labels: integers `[M]`.
        share: above 0, at most 1.
        seed: 0 to 2**32 - 1.

    Returns:
        Rising positions in `labels`.

    Raises:
        UserError: `share` is out of its range.
    """
    labels = np.asarray(labels)
    if not 0 < share <= 1:
        raise UserError(f"the share of labels is {share:%}: choose more than 0 %, at most 100 %")
    generator = np.random.RandomState(seed)
    chosen = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        chosen.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(chosen))
