"""Which images of a run are scored, or teach what is scored, and what a user must know of that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.data.sources import Source
from simclr_jax.errors import UserError
from simclr_jax.unlabelled import counted

ONE_CLASS = "all images scored are of one class: every guesser may score 100 %, which says nothing"


class Scored(NamedTuple):
    """Images of a split that count: `rows`, and why the others do not."""

    rows: np.ndarray
    labels: np.ndarray  # of these rows
    without_label: int
    unreadable: int

    def about(self, split: str) -> dict[str, int]:
        """Return the counts, as the protocol of a result has them."""
        said = {f"{split}_images": len(self.rows)}
        if self.without_label:
            said[f"{split}_without_label"] = self.without_label
        if self.unreadable:
            said[f"{split}_unreadable"] = self.unreadable
        return said


def scored(source: Source, readable: np.ndarray | None) -> Scored:
    """Return which images of a split count.

    Args:
      source: the split.
      readable: rows of those that could be read; None: all of them.

    Raises:
      UserError: if none is left.
    """
    labels = source.labels
    rows = counted(labels, readable)
    if labels is None or not len(rows):
        raise UserError(
            f"none of {len(source)} images ({source.name(0)}, ...) can be read and has a label, so "
            "there is nothing to score: repair or label some"
        )
    labelled = len(counted(labels))
    return Scored(rows, labels[rows], len(labels) - labelled, labelled - len(rows))


def lacking(train: Source, test: Source, by_labels: bool = True) -> str:
    """Say why nothing can be scored by labels, "" where it can be.

    Args:
      train: the training images.
      test: the held-out images.
      by_labels: the labels of the training images are looked at one by one, which may mean to read
        them all.
    """
    if not (train.classes and test.classes):
        return "the images have no labels"
    if not len(counted(test.labels)):
        return f"none of the {len(test)} held-out images has a label"
    if by_labels and not len(counted(train.labels)):
        return f"none of the {len(train)} training images has a label"
    return ""


def notes(config: ConfigDict, train: Source, test: Source) -> Iterator[str]:
    """Yield what the scores of a run are not of, and where they say little.

    Args:
      config: a recipe.
      train: all training images, also those whose labels may not be used.
      test: the held-out images.
    """
    if not test.classes or test.labels is None:
        return
    yield from _without_label(test, "held-out", "they are not scored")
    held_out = test.labels[counted(test.labels)]
    if held_out.ndim == 1 and len(held_out) and (held_out == held_out[0]).all():
        yield ONE_CLASS
    if config.stage == "finetune":
        yield from _without_label(train, "training", "they are left out")
    if config.stage != "pretrain" or not (config.eval.knn or config.eval.compare):
        return
    if lacking(train, test) or train.multi_label or test.multi_label or train.labels is None:
        return
    yield from _without_label(train, "training", "they teach the encoder, but no probe and no kNN")
    sizes = np.bincount(train.labels[counted(train.labels)])
    k = config.eval.knn_k
    yield from neighbours(k, sizes, f"eval.knn_k is {k}", "--config.eval.knn_k")


def _without_label(source: Source, kind: str, meaning: str) -> Iterator[str]:
    missing = len(source) - len(counted(source.labels))
    if missing:
        yield f"{missing} of {len(source)} {kind} images have no label: {meaning}"


def neighbours(k: int, sizes: np.ndarray, said: str, flag: str) -> Iterator[str]:
    """Yield what is to be said of a vote of `k` among labelled images.

    Args:
      k: that was asked for.
      sizes: how many labelled images each class has.
      said: what was asked for, in words.
      flag: what asks for another.
    """
    bank, smallest = int(sizes.sum()), int(min(sizes[sizes > 0], default=0))
    if k > bank:
        yield f"{said}, but only {bank} images have a label to vote with: k is {bank}"
    if min(k, bank) > smallest:
        yield (
            f"{said}, more than the {smallest} image(s) of the smallest class, which larger ones "
            f"outvote: {flag}={max(1, smallest // 2)} or less would be fairer"
        )
