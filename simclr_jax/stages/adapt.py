"""Fields that a recipe leaves open, chosen for the data it finds, each with its reason."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from simclr_jax import recipes, records
from simclr_jax.data.decode import BadImage, within_memory
from simclr_jax.data.sources import Source
from simclr_jax.errors import UserError
from simclr_jax.evaluate import knn
from simclr_jax.recipes import OPEN
from simclr_jax.stages.scored import lacking
from simclr_jax.unlabelled import counted

LOOKED_AT = 64  # images, spread over the data set, whose sizes decide the resolution
SIDES = (32, 64, 96, 128, 160, 192, 224)  # pixels
SMALL, LARGE = 32, 128  # largest side for the 3x3 stem; largest for batches of 512
FEW_IMAGES = 100_000  # up to here ResNet-18, above ResNet-50
SEEN = 20_000_000  # images that a run should see, all epochs together (CIFAR-10: 400 epochs)
EPOCHS = (100, 1000)  # fewest and most
WARM_UP = 10.0  # epochs at most, and a tenth of the run
EVALUATIONS = 20


def as_before(config: ConfigDict, before: Mapping[str, Any]) -> ConfigDict:
    """Return a recipe whose fields of `recipes.OPEN` that are None are as in the run resumed.

    Args:
      config: a recipe.
      before: the recipe of that run, whose choices stand: images may have come or gone since.
    """
    c, there = recipes.copied(config), records.recipe(before)
    for name in OPEN:
        if recipes.get(c, name) is None:
            recipes.put(c, name, recipes.get(there, name))
    return c


def adapt(config: ConfigDict, train: Source, test: Source) -> tuple[ConfigDict, list[str]]:
    """Choose the fields of `recipes.OPEN` that are None.

    Args:
      config: a recipe.
      train: the images it is to learn from.
      test: the held-out images.

    Returns:
      The recipe with these fields set, and for each a line to print: its name, value and why.

    Raises:
      UserError: if a field has to be chosen by the images, and none of those looked at is readable.
    """
    c, chosen = recipes.copied(config), []

    def choose(name: str, value: object, reason: str) -> None:
        if name in OPEN and recipes.get(c, name) is None:
            recipes.put(c, name, value)
            chosen.append(f"chosen    {name}={value}: {reason}")

    count = len(train)
    if c.data.image_size is None:
        side = _median_side(train)
        size = max((s for s in SIDES if s <= side), default=SIDES[0])
        choose("data.image_size", size, f"the median shorter side is {side} pixels")
    size = c.data.image_size
    choose("model.stem", "cifar" if size <= SMALL else "imagenet", f"views of {size} pixels")
    choose("model.depth", 18 if count <= FEW_IMAGES else 50, f"{count} images")
    most = 512 if size <= LARGE else 256
    part, words = (2, "half") if c.stage == "finetune" else (8, "an eighth")
    batch = 2 ** int(np.log2(max(8, min(most, count / part))))
    choose("train.batch_size", batch, f"{words} of {count} images, {most} at most at this size")
    epochs = float(np.clip(round(SEEN / count), *EPOCHS))
    if c.train.steps is None:
        seen = f"{epochs * count / 1e6:.3g} million images seen in all"
        choose("train.epochs", epochs, seen)
    steps, batch = c.train.steps, c.train.batch_size
    length = c.train.epochs if steps is None else steps * batch / count  # epochs
    warmup = min(WARM_UP, float(f"{length / 10:.3g}"))
    choose("optim.warmup_epochs", warmup, f"a tenth of the run, {WARM_UP:g} at most")
    every = max(1.0, length // EVALUATIONS)
    times = int(length // every)
    few = f"{times} evaluation{'s' if times > 1 else ''}" if times else "the run is over before one"
    choose("eval.every_epochs", every, few)
    if None in (c.eval.probe, c.eval.knn):
        why = lacking(train, test)
        labelled, why = not why, why or f"{train.classes} classes"
        if labelled and train.multi_label:
            labelled, why = False, "images may have several labels"
        for name in ("eval.probe", "eval.knn"):
            choose(name, labelled, why)
    _choose_votes(c, choose, train)
    return c, chosen


def _choose_votes(c: ConfigDict, choose: Callable[[str, object, str], None], train: Source) -> None:
    """Choose how many neighbours vote; labels are looked at only where a run counts them.

    To look at them may mean to read all records of a data set.
    """
    if c.eval.knn_k is not None:
        return
    labels = train.labels if c.eval.knn and not train.multi_label else None
    known = labels[counted(labels)] if labels is not None else np.zeros(0, int)
    if not len(known):
        recipes.put(c, "eval.knn_k", knn.votes(np.array([len(train)])))
        return
    most = f"at most {knn.MOST_VOTES} or the size of the smallest class"
    reason = f"the square root of {len(known)} labelled images, {most}"
    choose("eval.knn_k", knn.votes(np.bincount(known)), reason)


def _median_side(source: Source) -> int:
    """Return the median shorter side of some images, pixels."""
    rows = np.unique(np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int))
    sides, reason = [], None
    for row in rows:
        try:
            with within_memory(functools.partial(source.name, int(row))):
                sides.append(min(source.example(int(row))[0].shape[:2]))
        except BadImage as error:  # met again in training, where it is listed and counted
            reason = f"{source.name(int(row))} ({error})"
    if not sides:
        raise UserError(
            f"none of {len(rows)} images looked at is readable, not even {reason}: "
            "data.path must hold images that Pillow can open"
        )
    return int(np.median(sides))
