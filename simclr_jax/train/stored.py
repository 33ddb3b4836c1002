"""The recipe that a run keeps: in `config.json`, and sealed in each of its checkpoints.

What is in `config.json` may be edited by hand, lost, or another run's. The recipe in a checkpoint
is the one that its arrays were trained by, and what `config.json` says is held to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from etils import epath

from simclr_jax import buckets, documents, records, validation
from simclr_jax.errors import BadFile, UserError
from simclr_jax.train import manifest
from simclr_jax.train.manifest import Damaged

NAME = "config.json"
CHECKPOINTS = "checkpoints"
SAVED = "saved.json"  # the newest step that was ever saved
MOST_SHOWN = 8  # differing fields in an error


class Newest(TypedDict):
    """What `saved.json` says."""

    step: int


def newest_saved(workdir: epath.PathLike) -> int:
    """Return the newest step that a run ever saved, 0 where nothing tells.

    Raises:
      UserError: if the file that tells cannot be read for a reason that is not its own.
    """
    try:
        return documents.read(epath.Path(workdir) / SAVED, Newest)["step"]
    except (FileNotFoundError, BadFile):
        return 0


def in_config(workdir: epath.PathLike) -> dict[str, Any]:
    """Return what `config.json` of a run says, which is a recipe and what else defines the run.

    Raises:
      FileNotFoundError: if there is none.
      BadFile: if it is none, or a field in it has a value that it cannot have.
      UserError: if it cannot be read.
    """
    path = epath.Path(workdir) / NAME
    content = documents.content(path, largest=documents.LARGEST)
    try:
        found = documents.parse(content, dict[str, Any])
        validation.stored(found)
    except (documents.Unfit, UserError) as error:
        also = ", or remove it: checkpoints have the recipe as well"
        raise BadFile(
            f"{documents.shown(path)} is not the recipe of a run ({error}): restore it"
            f"{also if in_checkpoints(workdir) else ''}"
        ) from error
    return found


def in_checkpoints(workdir: epath.PathLike) -> dict[int, dict[str, Any]]:
    """Return the recipes in the checkpoints of a run, by step, as far as they have one."""
    found, place = {}, epath.Path(workdir) / CHECKPOINTS
    for entry in buckets.listing(place):
        if entry.name.isdecimal() and str(step := int(entry.name[:18])) == entry.name:
            try:
                recipe = manifest.about(entry, step).get("recipe")
            except Damaged:  # who reads that checkpoint will say so
                continue
            if recipe is not None:
                found[step] = recipe
    return dict(sorted(found.items()))


def of_run(workdir: epath.PathLike) -> dict[str, Any] | None:
    """Return the recipe of a run: of `config.json`, or else of its newest checkpoint that has one.

    Raises:
      UserError: if `config.json` is there and cannot be used, or what is in the checkpoint.
    """
    try:
        return in_config(workdir)
    except FileNotFoundError:
        for step, sealed in reversed(in_checkpoints(workdir).items()):
            return _checked(sealed, f"checkpoint {workdir}/{CHECKPOINTS}/{step}")
        return None


def of_checkpoint(workdir: epath.PathLike, step: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a checkpoint.

    Args:
      workdir: of the run.
      step: of the checkpoint.
      about: what it tells of its run, see `manifest.about`; what it tells is not in doubt.

    Raises:
      UserError: if `config.json` cannot be used, or is not the recipe of the checkpoint.
    """
    sealed = about.get("recipe")
    try:
        found = in_config(workdir)
    except FileNotFoundError:
        if sealed is None:
            raise UserError(
                f"{workdir} has checkpoints but no {NAME}: give the whole workdir of a run"
            ) from None
        return _checked(sealed, f"checkpoint {step} of {workdir}")
    if sealed is not None:
        check_same(sealed, found, f"checkpoint {step}", f"{workdir}/{NAME}")
    return found


def check_same(sealed: Mapping[str, Any], found: Mapping[str, Any], what: str, other: str = ""):
    """Raise `UserError` if the recipe in the checkpoint `what` is not the one that was `found`."""
    _checked(sealed, what)
    if differing := records.changed(sealed, found):
        place = f"{other} is" if other else "this run is"
        raise UserError(
            f"{what} was trained by another recipe than {place} ({listed(differing)}): put back "
            f"the {NAME} and the checkpoints that belong together, or remove {NAME}, which the "
            "checkpoint holds as well"
        )


def _checked(sealed: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the recipe in the checkpoint `what`, each of its fields held to type and range.

    Raises:
      BadFile: naming a field that recipes do not have, or that has a value it cannot have.
    """
    try:
        validation.stored(sealed)
    except UserError as error:
        raise BadFile(f"{what} has no recipe of a run in it ({error}): restore it") from error
    return dict(sealed)


def listed(differing: Iterable[str]) -> str:
    """Return differing fields as a part of one line."""
    shown = list(differing)
    more = f"; and {len(shown) - MOST_SHOWN} more" if len(shown) > MOST_SHOWN else ""
    return "; ".join(field[:200] for field in shown[:MOST_SHOWN]) + more
