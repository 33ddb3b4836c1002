"""From the numbers that label images to numbers of classes, which count from 0.

A classifier has an output for every class, also for those that no image has. Numbers with a few
gaps are kept; identifiers (900000 to 900003) would make hundreds of thousands of classes for four,
so they are numbered anew in rising order, and each class is called by its own number.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from simclr_jax.unlabelled import NO_LABEL

ROOM = 2000  # classes that numbers may always make: those of any part of ImageNet are kept
GAPS = 20  # numbers, at most, for each that occurs


def identifiers(labels: Iterable[np.ndarray]) -> np.ndarray | None:
    """Return the numbers that occur, rising, if they are too sparse for numbers of classes.

    Args:
      labels: int `[m]` of each split, `NO_LABEL` where there is none.
    """
    numbers = np.unique(np.concatenate([np.unique(split) for split in labels]))
    numbers = numbers[numbers != NO_LABEL]
    if not len(numbers) or numbers[-1] < max(ROOM, GAPS * len(numbers)):
        return None
    return numbers


def numbered(labels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return for each label its place in `numbers`, int32; `NO_LABEL` where there is none.

    Raises:
      KeyError: with the first label that is not there.
    """
    places = np.minimum(np.searchsorted(numbers, labels), len(numbers) - 1)
    unknown = (numbers[places] != labels) & (labels != NO_LABEL)
    if unknown.any():
        raise KeyError(int(labels[np.argmax(unknown)]))
    return np.where(labels == NO_LABEL, NO_LABEL, places).astype(np.int32)


def said(numbers: np.ndarray) -> str:
    """Say what was done."""
    return (
        f"labels are numbers up to {numbers[-1]}, of which {len(numbers)} occur: these are the "
        "classes, in rising order, and each is called by its own number"
    )
