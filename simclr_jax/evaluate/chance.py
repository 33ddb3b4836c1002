"""What needs no image to be right: always to guess the class that most training images have.

Of several labels an image, each class is scored by how often it occurs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

COMMONEST = "the commonest class"  # what this guesser is called in tables
TRAINED = ("pretrained encoder", "classifier")  # rows of a run's own table that should beat it


def outputs(taught: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the scores `[m, classes]` of a guesser who has never seen an image.

    Args:
      taught: labels of training images: integers, or 1, 0 and -1 (not known) for each class.
      labels: of the `m` images to be scored on, likewise. They decide which of equally frequent
        classes is guessed: that which is right more often.
      classes: number of classes.
    """
    if labels.ndim == 2:
        known = np.maximum((taught >= 0).sum(axis=0), 1)
        frequency = (taught == 1).sum(axis=0) / known
    else:
        tie = np.bincount(labels, minlength=classes) / (len(labels) + 1)
        frequency = np.bincount(taught, minlength=classes) + tie
    return np.broadcast_to(frequency, (len(labels), classes))


def not_above(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    """Yield a sentence for each score of a trained thing that is not above the commonest class."""
    level = scores.get(COMMONEST, {})
    for row in TRAINED:
        for name, score in scores.get(row, {}).items():
            if name in level and score["accuracy"] <= level[name]["accuracy"]:
                yield sentence(f"{row}, {name}", score["accuracy"], level[name]["accuracy"])


def sentence(what: str, value: float, chance: float) -> str:
    """Say that a score, a fraction, is not above that of guessing."""
    return (
        f"{what}: {100 * value:.1f} is not above {100 * chance:.1f}, what guessing by the "
        "frequency of the classes gives"
    )
