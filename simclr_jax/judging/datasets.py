"""The images an encoder is judged on or used for: the run's own, or any others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import given_data, recipes
from simclr_jax.data import sources
from simclr_jax.data.sources import Opened, Source, Splits, Trained, Unseen, trained
from simclr_jax.errors import UserError, choose
from simclr_jax.stages import heritage

REMEDY = "name other images by --data or --eval_split, or score these all the same by --seen"
VALIDATION = ("validation", "valid", "val")  # what data sets call the split to choose by


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which images a door was asked for; "" leaves it to the run's recipe or the data set.

    Attributes:
      data: see `given_data.KINDS`.
      data_dir: where TFDS keeps its data sets.
      split: to learn from.
      eval_split: to be scored on.
      validation_split: to choose settings on.
      seen: score also images that the run, or one it comes from, may have trained on.
    """

    data: str = ""
    data_dir: str = ""
    split: str = ""
    eval_split: str = ""
    validation_split: str = ""
    seen: bool = False


@dataclasses.dataclass(frozen=True)
class Data:
    """The splits of a data set, opened.

    Attributes:
      name: what a person calls it.
      slug: a word for it in file names; "" for the run's own.
      splits: names of `fit`, `choose` and `score`.
      fit: to learn from.
      choose: to choose settings on; None: a part of `fit` is held out for that.
      score: to be scored on.
      opened: the splits as they were opened, if that was here.
      trained: what the run and those it comes from have trained on.
    """

    name: str
    slug: str
    splits: dict[str, str]
    fit: Source
    choose: Source | None
    score: Source
    opened: Opened | None = None
    trained: Sequence[Trained] = ()

    @property
    def notes(self) -> list[str]:
        """Return what a user should know about the data, such as why there are no labels."""
        more = self.opened.notes if self.opened else ()
        return [*dict.fromkeys((*sources.notes(self.fit), *sources.notes(self.score), *more))]


def open_data(config: ConfigDict, workdir: epath.PathLike, wanted: Wanted) -> Data:
    """Open the data set that is wanted, with labels where it has any.

    Where it has no split to be scored on, a part of the other is held out, as in training. Nothing
    is scored that the run, or one it comes from, has trained on, as far as that can be known.

    Args:
      config: the recipe of the run whose encoder is judged.
      workdir: of that run, which keeps the index of a folder.
      wanted: which data.

    Raises:
      UserError: if the data cannot be opened, there is no such split, or it cannot be known what
        of it has not been trained on.
    """
    data = recipe_data(config, wanted)
    index = epath.Path(workdir) / "index"
    kept = index if not wanted.data and index.exists() else None
    found = sources.find(data, kept)
    for flag, name in (("--split", wanted.split), ("--eval_split", wanted.eval_split)):
        if name:
            choose(flag, name, found)
    if wanted.data and not wanted.eval_split and data.eval_split not in found:
        data.eval_split = _first(VALIDATION, found, data.split) or data.eval_split
    if data.split == data.eval_split:
        raise UserError(
            f'"{data.split}" would be learned from and scored on: name different splits with '
            "--split and --eval_split"
        )
    before = heritage.of_workdir(workdir, config)
    validation = _validation(wanted, data, found)
    also = (validation,) if validation else ()
    opened = sources.open_all(data, kept, unseen(config, before, wanted), found=found, also=also)
    fit, score = opened.train, opened.test
    scored = data.eval_split if data.eval_split in found else f"held out of {data.split}"
    chosen_on = found[validation]() if validation else None
    if chosen_on is not None and score.classes and not chosen_on.classes:
        if wanted.validation_split:
            raise UserError(
                f'--validation_split is "{validation}", whose images have no labels to choose by: '
                "name another, or leave it out"
            )
        validation, chosen_on = "", None  # without labels nothing can be chosen on it
    return Data(
        name=_name(data),
        slug=_slug(data) if wanted.data else "",
        splits={"fit": data.split, "choose": validation, "score": scored},
        fit=fit,
        choose=chosen_on,
        score=score,
        opened=opened,
        trained=tuple(before),
    )


def unseen(config: ConfigDict, before: Sequence[Trained], wanted: Wanted) -> Unseen:
    """Return what a door must not score.

    Args:
      config: the recipe of the run whose encoder is judged.
      before: what it and those it comes from have trained on.
      wanted: which data; the run's own are scored as the run itself does.
    """
    allowed = wanted.seen or (config.eval.seen and not wanted.data)
    return Unseen(before, REMEDY, allowed)


def judged_on(data: Data, fit: bool, choose: bool) -> dict[str, str]:
    """Return which images are looked at, by what a person calls them; see `Comparable`.

    Args:
      data: the images.
      fit, choose: whether any of them are learned from, or chosen on.
    """
    parts = {
        "held-out images": data.score,
        "training images": data.fit if fit else None,
        "validation images": data.choose if choose else None,
    }
    return {
        what: ", ".join(filter(None, (part.fingerprint(), trained.sizes(part))))
        for what, part in parts.items()
        if part is not None
    }


def scored_images(data: Data) -> dict[str, str]:
    """Return what a result says of what is scored, where there is anything to say."""
    notes = data.opened.notes if data.opened else ()
    return {"scored images": "; ".join(notes)} if notes else {}


def labels_of_encoder(data: Data) -> int:
    """Return how many labels the encoder, or a run it comes from, has learned from, at most."""
    if data.opened is None:
        return sum(one.labels.count for one in data.trained if one.labels and one.labels.encoder)
    own, others = heritage.labels_of(_taught(data), data.opened.whole)
    return len(own) + sum(others)


def labels_in_all(data: Data, used: np.ndarray) -> str:
    """Return a sentence about the labels of encoder and probe together; "" if it has seen no other.

    Args:
      data: opened for a run.
      used: which images of `data.fit` the probe learns from.
    """
    if data.opened is None:
        return ""
    count = len(data.opened.whole)
    mine = trained.rows(count, data.opened.held_out)[0][used]
    own, others = heritage.labels_of(_taught(data), data.opened.whole)
    total = len(np.union1d(own, mine)) + sum(others)
    if total == len(mine):
        return ""
    return (
        f"the probe has {len(mine)} labels, and the encoder has learned from "
        f"{len(own) + sum(others)} already: there are {'at most ' * bool(others)}{total} in all"
    )


def _taught(data: Data) -> list[Trained]:
    return [one for one in data.trained if one.labels and one.labels.encoder]


def recipe_data(config: ConfigDict, wanted: Wanted) -> ConfigDict:
    """Return `config.data` changed to what is wanted."""
    data = recipes.copied(config.data)
    with data.unlocked():
        data.labels, data.if_changed = True, "say"  # refusing is for training
        if wanted.data:
            data.update({"name": "", "path": "", "split": "train", "eval_split": "test"})
            data.layout = "auto"
            data.update(given_data.fields(wanted.data))
        if wanted.data_dir:
            if data.source != "tfds":
                raise UserError(
                    f"--data_dir={wanted.data_dir} belongs to --data=tfds:NAME, not to data of the "
                    f"source {data.source}"
                )
            data.path = wanted.data_dir
        data.split = wanted.split or data.split
        data.eval_split = wanted.eval_split or data.eval_split
    return data


def class_names(source: Source) -> list[str]:
    """Return the names of the classes, their numbers where they have none."""
    return list(source.class_names) or [str(i) for i in range(source.classes)]


def check_one_label(source: Source, what: str) -> None:
    """Raise `UserError` unless each image of a source has one label, which `what` needs."""
    if not source.classes:
        raise UserError(f"the images have no labels, which {what} needs: give --data with labels")
    if source.multi_label:
        raise UserError(f"an image may have several labels here, {what} needs one each")


def _validation(wanted: Wanted, data: ConfigDict, found: Splits) -> str:
    """Return the split to choose on, or "" where there is none of its own."""
    used = f"{data.split}+{data.eval_split}"
    if named := wanted.validation_split:
        choose("--validation_split", named, found)
        if not _first((named,), found, used):
            raise UserError(
                f'--validation_split is "{named}", which is learned from or scored on: name '
                "another, or leave it out"
            )
        return named
    return _first(VALIDATION, found, used) if data.eval_split in found else ""


def _first(names: Iterable[str], found: Splits, used: str) -> str:
    """Return the first of `names` that is a split of which `used`, slices and all, has no part."""
    taken = {part.partition("[")[0].strip() for part in used.split("+")}
    there = (name for name in names if name in found and "all" not in taken)
    return next((name for name in there if name not in taken), "")


def _name(data: ConfigDict) -> str:
    if data.source in ("folder", "memory"):
        return data.path
    return f"{data.source}:{data.name}"


def _slug(data: ConfigDict) -> str:
    said = data.name if data.source in ("tfds", "digits") else Path(data.path).stem
    return "".join(c if c.isalnum() else "_" for c in said.lower()).strip("_") or data.source
