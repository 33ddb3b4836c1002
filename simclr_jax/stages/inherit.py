"""The runs that a recipe starts from: which checkpoints, and the fields that it leaves to them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from simclr_jax import files, processes, recipes, records
from simclr_jax.errors import UserError
from simclr_jax.recipes import INHERITED, INHERITED_CROP, OPEN, base
from simclr_jax.stages import warm_start
from simclr_jax.train import saved

CHANGES = ("crop", "flip", "jitter", "grayscale", "blur", "solarize")  # what views are made by


def inherit(
    config: ConfigDict, before: Mapping[str, Any] | None = None
) -> tuple[ConfigDict, list[str]]:
    """Fill what a recipe leaves open of `recipes.INHERITED` from `init.run`, or from its teacher.

    Args:
      config: a recipe.
      before: the recipe of the run that is resumed, whose fields stand.

    Returns:
      The recipe with these fields set, and lines to print about them.

    Raises:
      UserError: if there is nothing to take them from.
    """
    c = recipes.copied(config)
    given = "init.run" if c.init.run or c.stage != "distill" else "distill.teacher"
    from_run = recipes.get(c, given)
    wanted = [name for name in _open(c) if from_run or name not in OPEN]
    if not wanted:  # what the images decide is left to `stages.adapt`
        return c, []
    if before is not None:
        _fill(c, records.recipe(before).to_dict(), wanted)
        return c, []
    if not from_run:
        raise UserError(
            f"{wanted[0]} is open: give --config.{given}=RUN to take it from, or set "
            f"--config.{wanted[0]}"
        )
    run = saved.describe(from_run, given)
    if "data.source" in wanted and run.record.get("converted"):
        raise UserError(
            f"{given}={from_run} is a converted checkpoint, which has no images: set "
            "--config.data.source"
        )
    _fill(c, run.config.to_dict(), wanted)
    groups = dict.fromkeys(name.split(".")[0] for name in wanted)
    return c, [f"inherited {', '.join(groups)}: as in {run}", *_unchanged_images(c, wanted, run)]


def _unchanged_images(c: ConfigDict, wanted: list[str], run: saved.Saved) -> list[str]:
    """Say that images are not augmented, where that is so because a pretext task needed it."""
    views = c.augment.views
    crop = f"augment.views.{min(views)}.crop"
    if crop not in wanted or any(view[name] for view in views.values() for name in CHANGES):
        return []
    return [
        f"note      {run} neither crops nor flips its images, so nothing changes them here: "
        f"--config.{crop}=True crops, --config.augment.views.{min(views)}.flip=0.5 flips"
    ]


def pin(config: ConfigDict, before: Mapping[str, Any] | None) -> None:
    """Name the checkpoints that this run starts from: the newest ones, where no step is given.

    The other runs may train on, lose a checkpoint, or, once this one has saved, be gone. Each
    process has to read the same one, and a teacher is read again whenever this run is resumed.
    """
    pointers = ["init.run"] if warm_start.wanted(config) else []
    pointers += ["distill.teacher"] if config.stage == "distill" else []
    for pointer in pointers:
        run = recipes.get(config, pointer)
        if before is None:
            newest = functools.partial(saved.newest, run, pointer)
            recipes.put(config, pointer, processes.on_first(newest))
            continue
        then = recipes.get(records.recipe(before), pointer)
        if saved.split(then)[0] == files.expand_home(run):
            recipes.put(config, pointer, then)


def _open(c: ConfigDict) -> list[str]:
    """Name the fields that are to be inherited; those of a crop are `augment.views.VIEW.FIELD`."""
    views = [f"augment.views.{view}" for view in c.augment.views]
    crops = [f"{view}.{field}" for view in views for field in INHERITED_CROP]
    return [name for name in (*INHERITED, *crops) if recipes.get(c, name) is None]


def _fill(c: ConfigDict, there: Mapping[str, Any], wanted: list[str]) -> None:
    """Set the `wanted` fields to what they are in the recipe `there`.

    There, views may have other names and another number: the crop is that of the first.
    """
    first = there["augment"]["views"][min(there["augment"]["views"])]
    with c.unlocked():
        if "data.source" in wanted:
            c.data.update({n: v for n, v in _data(there).items() if not _is_set(c, n)})
        for name in wanted:
            of_crop = name.startswith("augment.views.")
            value = first[name.rpartition(".")[2]] if of_crop else recipes.get(there, name)
            recipes.put(c, name, value)


def _data(there: Mapping[str, Any]) -> dict[str, Any]:
    """Return the images of a recipe, with the labels that pretraining may have been told to ignore.

    Fields that are inherited one by one are left out.
    """
    one_by_one = {name.partition(".")[2] for name in INHERITED if name.startswith("data.")}
    return {n: v for n, v in (there["data"] | {"labels": True}).items() if n not in one_by_one}


def _is_set(c: ConfigDict, field: str) -> bool:
    """Tell whether a field of `data` was changed by the recipe or on the command line."""
    return c.data[field] != base().data[field]
