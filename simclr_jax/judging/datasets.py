"""The images an encoder is judged on or used for: the run's own, or any others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from simclr_jax import recipes
from simclr_jax.data import sources
from simclr_jax.data.sources import Source, Splits
from simclr_jax.errors import UserError, choose

HELP = (
    "DIRECTORY (splits:DIRECTORY or classes:DIRECTORY where its subdirectories may be either), "
    "FILE.npz, tfds:NAME or digits; the run's own data by default."
)
LAYOUTS = ("splits", "classes")  # what may stand before a directory
VALIDATION = ("validation", "valid", "val")  # what data sets call the split to choose by


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which images a door was asked for; "" leaves it to the run's recipe or the data set.

    Attributes:
      data: see `HELP`.
      data_dir: where TFDS keeps its data sets.
      split: to learn from.
      eval_split: to be scored on.
      validation_split: to choose settings on.
    """

    data: str = ""
    data_dir: str = ""
    split: str = ""
    eval_split: str = ""
    validation_split: str = ""


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
    """

    name: str
    slug: str
    splits: dict[str, str]
    fit: Source
    choose: Source | None
    score: Source

    @property
    def notes(self) -> list[str]:
        """Return what a user should know about the data, such as why there are no labels."""
        return [*dict.fromkeys((*sources.notes(self.fit), *sources.notes(self.score)))]


def open_data(config: ConfigDict, workdir: epath.PathLike, wanted: Wanted) -> Data:
    """Open the data set that is wanted, with labels where it has any.

    Where it has no split to be scored on, a part of the other is held out, as in training.

    Args:
      config: the recipe of the run whose encoder is judged.
      workdir: of that run, which keeps the index of a folder.
      wanted: which data.

    Raises:
      UserError: if the data cannot be opened, or there is no such split.
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
    labels_used = bool(wanted.data) or config.data.labels
    validation = _validation(wanted, data, found)
    also = (validation,) if validation else ()
    fit, score = sources.open_splits(data, kept, labels_used, found, also)
    scored = data.eval_split if data.eval_split in found else f"held out of {data.split}"
    chosen_on = found[validation]() if validation else None
    if chosen_on is not None and score.classes and not chosen_on.classes:
        validation, chosen_on = "", None  # without labels nothing can be chosen on it
    return Data(
        name=_name(data),
        slug=_slug(data) if wanted.data else "",
        splits={"fit": data.split, "choose": validation, "score": scored},
        fit=fit,
        choose=chosen_on,
        score=score,
    )


def recipe_data(config: ConfigDict, wanted: Wanted) -> ConfigDict:
    """Return `config.data` changed to what is wanted."""
    data = recipes.copied(config.data)
    with data.unlocked():
        data.labels, data.if_changed = True, "say"  # refusing is for training
        if wanted.data:
            data.update({"name": "", "path": "", "split": "train", "eval_split": "test"})
            data.layout = "auto"
            data.update(_parsed(wanted.data))
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


def layout_of(data: str) -> tuple[str, str]:
    """Return the layout that `--data` asks for and the path, as in `classes:DIRECTORY`."""
    kind, colon, rest = data.partition(":")
    if colon and kind in LAYOUTS:
        return kind, rest
    return "auto", data


def _parsed(data: str) -> dict[str, Any]:
    kind, colon, rest = data.partition(":")
    if data == "digits" or kind == "digits":
        return {"source": "digits", "name": rest or "placed"}
    if kind == "tfds" and colon:
        return {"source": "tfds", "name": rest}
    layout, directory = layout_of(data)
    path = Path(directory).expanduser()
    if layout != "auto" or path.is_dir():
        return {"source": "folder", "path": directory, "layout": layout}
    if path.suffix == ".npz":
        return {"source": "memory", "path": data}
    raise UserError(f"--data={data} is no directory: give {HELP}")


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
