"""The 12 data sets that SimCLR was transferred to: their splits, scores and published results.

Protocol: Chen et al. (2020), appendix B.8. Sizes of the splits: Grill et al. (2020), table 10.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from simclr_jax import files, recipes
from simclr_jax.data import order, sources
from simclr_jax.data.sources import NO_LABEL, Source
from simclr_jax.errors import UserError
from simclr_jax.judging.datasets import VALIDATION
from simclr_jax.stages.preprocessing import Preprocessing

TOP_1, PER_CLASS, MAP_11 = "top-1", "mean per class", "11-point mAP"
OFFICIAL, HELD_OUT, SEEDED = "official", "held out", "seeded"  # see `TransferSet.rule`
CALTECH = (25, 5)  # images of each class to learn from and to choose on
FOOD = "validation"  # TFDS calls Food-101's test images so
SUN = "sun397/standard-part1-120k"  # the first of the ten official splits
FLOWERS = "oxford_flowers102"
POOL = "train+test"
SEED = 0  # of the splits that are ours to draw
LAYOUT = "train|val|test/CLASS/*.jpg"


@dataclasses.dataclass(frozen=True)
class TransferSet:
    """One data set of the protocol.

    Attributes:
      name: for the command line and file names; of the directory where `tfds` is empty.
      title: what papers call it.
      tfds: its name in TensorFlow Datasets; empty: a directory `LAYOUT` below the data directory.
      rule: where validation images are from: an `OFFICIAL` split; `HELD_OUT` of the training
        split, the first of a shuffled order; or `SEEDED`, all images pooled and `CALTECH` drawn.
      images: how many there are to learn from, to choose the penalty on, and to be scored on.
      classes: number of classes.
      metric: one of `TOP_1`, `PER_CLASS` and `MAP_11`.
      test: what TFDS calls the split to be scored on.
      clutter: whether the data have one more class, of clutter, which `images` counts.
    """

    name: str
    title: str
    tfds: str
    rule: str
    images: tuple[int, int, int]
    classes: int
    metric: str
    test: str = "test"
    clutter: bool = False


# Caltech-101's sizes count its directory of clutter: 102 times 30 images, and the rest.
SETS = (
    TransferSet("food101", "Food-101", "food101", HELD_OUT, (68175, 7575, 25250), 101, TOP_1, FOOD),
    TransferSet("cifar10", "CIFAR-10", "cifar10", HELD_OUT, (45000, 5000, 10000), 10, TOP_1),
    TransferSet("cifar100", "CIFAR-100", "cifar100", HELD_OUT, (44933, 5067, 10000), 100, TOP_1),
    TransferSet("birdsnap", "Birdsnap", "", HELD_OUT, (42405, 4981, 2443), 500, TOP_1),
    TransferSet("sun397", "SUN397", SUN, HELD_OUT, (15880, 3970, 19850), 397, TOP_1),
    TransferSet("cars196", "Stanford Cars", "cars196", HELD_OUT, (6494, 1650, 8041), 196, TOP_1),
    TransferSet("aircraft", "FGVC Aircraft", "", OFFICIAL, (3334, 3333, 3333), 100, PER_CLASS),
    TransferSet("voc2007", "VOC 2007", "voc/2007", OFFICIAL, (2501, 2510, 4952), 20, MAP_11),
    TransferSet("dtd", "DTD", "dtd", OFFICIAL, (1880, 1880, 1880), 47, TOP_1),
    TransferSet("pets", "Pets", "oxford_iiit_pet", HELD_OUT, (2940, 740, 3669), 37, PER_CLASS),
    TransferSet(
        "caltech101",
        "Caltech-101",
        "caltech101",
        SEEDED,
        (2550, 510, 6084),
        101,
        PER_CLASS,
        clutter=True,
    ),
    TransferSet("flowers102", "Flowers", FLOWERS, OFFICIAL, (1020, 1020, 6149), 102, PER_CLASS),
)
NAMES = tuple(one.name for one in SETS)

LINEAR, TUNED = "linear", "fine-tuned"
# Percent, in the order of `SETS`, by method. ResNet-50 if no width is said; "by BYOL" is the
# reproduction in BYOL's paper; "from scratch" was trained on each data set alone.
PUBLISHED = {
    LINEAR: {
        "SimCLR": "68.4 90.6 71.6 37.4 58.8 50.3 50.3 80.5 74.5 83.6 90.3 91.2",
        "SimCLR (by BYOL)": "72.8 90.5 74.4 42.4 60.6 49.3 49.8 81.4 75.7 84.6 89.3 92.6",
        "BYOL": "75.3 91.3 78.4 57.2 62.2 67.8 60.6 82.5 75.5 90.4 94.2 96.1",
        "supervised": "72.3 93.6 78.3 53.7 61.9 66.7 61.0 82.8 74.9 91.5 94.5 94.7",
        "SimCLR (4x)": "76.9 95.3 80.2 48.4 65.9 60.0 61.2 84.2 78.9 89.2 93.9 95.0",
        "supervised (4x)": "75.2 95.7 81.2 56.4 64.9 68.8 63.8 83.8 78.7 92.3 94.1 94.2",
    },
    TUNED: {
        "SimCLR": "88.2 97.7 85.9 75.9 63.5 91.3 88.1 84.1 73.2 89.2 92.1 97.0",
        "SimCLR (by BYOL)": "87.5 97.4 85.3 75.0 63.9 91.4 87.6 84.5 75.4 89.4 91.7 96.6",
        "BYOL": "88.5 97.8 86.1 76.3 63.7 91.6 88.1 85.4 76.2 91.7 93.8 97.0",
        "supervised": "88.3 97.5 86.4 75.8 64.3 92.1 86.0 85.0 74.6 92.1 93.3 97.6",
        "from scratch": "86.9 95.9 80.2 76.1 53.6 91.4 85.9 67.3 64.8 81.5 72.6 92.0",
        "SimCLR (4x)": "89.4 98.6 89.0 78.2 68.1 92.1 87.0 86.6 77.8 92.1 94.1 97.6",
        "supervised (4x)": "88.7 98.3 88.7 77.8 67.0 91.4 88.0 86.5 78.8 93.2 94.2 98.0",
        "from scratch (4x)": "88.3 96.0 81.9 77.0 53.7 91.3 84.8 69.4 64.1 82.7 72.5 92.5",
    },
}
SOURCES = {
    "BYOL": "Grill et al. (2020), table 3",
    "SimCLR (by BYOL)": "Grill et al. (2020), table 3",
    **dict.fromkeys(("SimCLR", "supervised", "from scratch"), "Chen et al. (2020), table B.5"),
    "SimCLR (4x)": "Chen et al. (2020), table 8",
    "supervised (4x)": "Chen et al. (2020), table 8",
    "from scratch (4x)": "Chen et al. (2020), table 8",
}


def published(one: TransferSet, how: str = LINEAR) -> dict[str, float]:
    """Return what was published for a data set, by method, as fractions; `SOURCES` says where."""
    at = SETS.index(one)
    return {method: float(row.split()[at]) / 100 for method, row in PUBLISHED[how].items()}


def mean_ranks(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return each method's rank, 1 for the best, averaged over data sets; ties share a rank.

    Args:
      scores: of each data set by method; all have the same methods.
    """
    methods = list(next(iter(scores.values())))
    table = np.array([[found[method] for method in methods] for found in scores.values()])
    better = (table[:, None, :] > table[:, :, None]).sum(-1)
    tied = (table[:, None, :] == table[:, :, None]).sum(-1) - 1
    return dict(zip(methods, (1 + better + tied / 2).mean(0).tolist(), strict=True))


def whole_image(preprocessing: Preprocessing) -> Preprocessing:
    """Return the preprocessing of all 12 sets: short side to the view's, bicubic, central crop.

    The side is the run's (224 in the paper), as is the grid of the resize; nothing is augmented.
    """
    return dataclasses.replace(preprocessing, proportion=1.0)


# Opening ------------------------------------------------------------------------------------------


class Opened(NamedTuple):
    """A data set divided as the protocol says, and what a reader of its result must know."""

    train: Source
    validation: Source
    test: Source
    notes: tuple[str, ...]


def open_set(one: TransferSet, data_dir: str) -> Opened:
    """Open a data set and divide it; where its counts are not the published ones, note them.

    Args:
      one: which.
      data_dir: where TFDS keeps its data sets, and the directories of those it has not are; "" is
        TFDS's default.

    Raises:
      UserError: if the data are not there, have no labels, or lack a split.
    """
    found = _splits(one, data_dir)
    own = next((split for split in VALIDATION if split in found), None)
    if one.rule == SEEDED:
        pool = found[POOL]()
        parts = [pool.take(rows) for rows in _draw(pool, *CALTECH)]
    else:
        needed = ["train", one.test, *(["validation"] if one.rule == OFFICIAL and not own else [])]
        lacking = [split for split in needed if split not in found]
        if lacking:
            raise UserError(
                f"{one.title} has no split {lacking[0]} in {data_dir}: "
                f"add it beside {', '.join(found)}"
            )
        train, test = found["train"](), found[one.test]()
        if own and own != one.test:
            parts = [train, found[own](), test]
        else:
            parts = [*_hold_out(train, one), test]
    if not parts[0].classes:
        raise UserError(f"{one.title} has no labels in {data_dir}: {LAYOUT} has them")
    return Opened(parts[0], parts[1], parts[2], _notes(one, parts))


def recipe_data(one: TransferSet, data_dir: str) -> ConfigDict:
    """Return `config.data` of a data set; its validation images are none of that.

    Raises:
      UserError: if there is no directory of one that TFDS has not.
    """
    data = recipes.base().data
    path = files.expand_home(data_dir)
    if one.tfds:
        splits = (POOL, POOL) if one.rule == SEEDED else ("train", one.test)
        data.update({"source": "tfds", "name": one.tfds, "path": path})
    else:
        splits, place = ("train", one.test), Path(path) / one.name
        if not place.is_dir():
            raise UserError(f"{place} is no directory: lay the images out as {place}/{LAYOUT}")
        data.update({"source": "folder", "path": str(place)})
    data.update({"split": splits[0], "eval_split": splits[1], "layout": "splits"})
    return data


def _splits(one: TransferSet, data_dir: str) -> Mapping[str, Callable[[], Source]]:
    data = recipe_data(one, data_dir)
    return sources.OPENERS[data.source](data, None)


def _hold_out(train: Source, one: TransferSet) -> list[Source]:
    """Divide a training split into what to learn from and, first in a shuffled order, the rest."""
    learn, choose_on, _ = one.images
    count = len(train)
    held_out = choose_on
    if count != learn + choose_on:
        held_out = max(1, round(count * choose_on / (learn + choose_on)))
    rows = order.examples(SEED, np.arange(count), count)
    return [train.take(np.sort(rows[held_out:])), train.take(np.sort(rows[:held_out]))]


def _draw(pool: Source, *counts: int) -> list[np.ndarray]:
    """Draw `counts` examples of each class, first come first served in a shuffled order.

    Returns:
      The rows of each draw, and those of what is left, all sorted.
    """
    labels = np.asarray(pool.labels)
    shuffled = order.examples(SEED, np.arange(len(pool)), len(pool))
    ends = np.cumsum(counts)
    drawn: list[list[np.ndarray]] = [[] for _ in range(len(counts) + 1)]
    for label in np.unique(labels[labels != NO_LABEL]):
        rows = shuffled[labels[shuffled] == label]
        for part, piece in zip(drawn, np.split(rows, ends), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in drawn]


def _notes(one: TransferSet, parts: list[Source]) -> tuple[str, ...]:
    notes = [note for part in parts for note in sources.notes(part)]
    counts = tuple(map(len, parts))
    if counts != one.images:
        here, there = (" + ".join(map(str, numbers)) for numbers in (counts, one.images))
        notes.append(f"{here} images to learn from, choose on and score; published: {there}")
    classes = parts[0].classes - one.clutter
    if classes != one.classes:
        notes.append(f"{classes} classes; published: {one.classes}")
    return tuple(dict.fromkeys(notes))
