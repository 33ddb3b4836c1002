"""What needs no image to be right: always to guess the class that most training images have.

Of several labels an image, each class is scored by how often it occurs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from simclr_jax.evaluate import scores as measures

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


def level(guess: np.ndarray, labels: np.ndarray, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return what guessing gives, as results have it.

    Args:
      guess: by `outputs`.
      labels: of the images scored, `[m]` or `[m, classes]`.
      measured: scores by name, of which those are computed that guesses have.
    """
    every, whole = measures.statistics(labels, guess), np.ones(len(labels))
    found = {name: {"value": every[name](whole)} for name in measured if name in every}
    what = "each class by its frequency" if labels.ndim == 2 else f"class {guess[0].argmax()}"
    return {"of": f"{COMMONEST} ({what})", "scores": found}


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
