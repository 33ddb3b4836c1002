"""A run on disk, for those who read it and do not train it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict

from simclr_jax import buckets, files, records
from simclr_jax.closing import Closing
from simclr_jax.errors import UserError, choose
from simclr_jax.train import stored
from simclr_jax.train.bucket_checkpoints import open_checkpoints

HUB, MODEL = "hf://", "model.safetensors"  # what model folders are known by
TRAINED, AVERAGE = WEIGHTS = ("trained", "average")


@dataclasses.dataclass(frozen=True)
class Saved:
    """A verified checkpoint and the recipe it belongs to.

    Attributes:
      workdir: of the run.
      step: finished updates.
      record: the recipe and what else a resumed run must agree on: `config.json`, which is that of
        the checkpoint; see `train.stored`.
      leaves: all arrays by path, such as `params/encoder/stem_conv/conv/kernel`; their shapes and
        dtypes alone if it was read by `describe`.
      weights: one of `WEIGHTS`: which stand as `params` and `batch_stats`, see `of_weights`.
    """

    workdir: epath.Path
    step: int
    record: Mapping[str, Any]
    leaves: Mapping[str, Any]  # arrays, or `manifest.Leaf`
    weights: str = TRAINED

    def __str__(self) -> str:
        return f"{self.workdir}@{self.step}" + ("" if self.weights == TRAINED else " average")

    @property
    def config(self) -> ConfigDict:
        """Return the recipe; fields that it is too old to have are at their defaults."""
        return records.recipe(self.record)

    def variables(self, part: str) -> dict[str, Any]:
        """Return `{params: ..., batch_stats: ...}` of a part such as `encoder`, as trees."""
        found: dict[str, Any] = {}
        for kind in ("params", "batch_stats"):
            prefix = f"{kind}/{part}/"
            named = {
                n.removeprefix(prefix): x for n, x in self.leaves.items() if n.startswith(prefix)
            }
            found[kind] = traverse_util.unflatten_dict(named, sep="/")
        return found


def of_weights(run: Saved, weights: str, flag: str = "--weights") -> Saved:
    """Return a checkpoint with the weights that are asked for.

    Args:
      run: with its trained weights.
      weights: one of `WEIGHTS`; "average" are those of the moving average that the run keeps, of
        encoder and head: a memory's, BYOL's or MoCo's target.
      flag: what the user wrote it behind, for errors.

    Raises:
      UserError: if the run keeps no moving average, naming what it has, or several.
    """
    choose(flag, weights, WEIGHTS)
    if weights == run.weights:
        return run
    kept = (re.match(r"extra/([^/]+)/params/encoder/", name) for name in run.leaves)
    found = sorted({match[1] for match in kept if match})
    if len(found) != 1:
        parts = sorted({name.split("/")[1] for name in run.leaves if name.startswith("params/")})
        many = f"keeps several ({', '.join(found)})"
        has = many if found else f"keeps no moving average of its weights, only {', '.join(parts)}"
        raise UserError(
            f"{flag}={weights}, but {run} {has} (BYOL, MoCo, PCL and a memory of negatives keep "
            "one): leave it out"
        )
    prefix = f"extra/{found[0]}/"
    leaves = {n.removeprefix(prefix): x for n, x in run.leaves.items() if n.startswith(prefix)}
    return dataclasses.replace(run, leaves=leaves, weights=weights)


def read(run: str, flag: str = "--checkpoint") -> Saved:
    """Read the newest whole checkpoint of a run, or the one it names; change nothing there.

    Args:
      run: a workdir, or `WORKDIR@STEP`.
      flag: what the user wrote it behind, for errors.

    Raises:
      UserError: if there is no run, no such step, the checkpoint is damaged, or `config.json` is
        damaged or not that of the checkpoint.
    """
    path, at = _find(run, flag)
    checkpoints = open_checkpoints(path / stored.CHECKPOINTS, read_only=True)
    with Closing(checkpoints.close):
        step, leaves = checkpoints.leaves(at)
        record = stored.of_checkpoint(path, step, checkpoints.about(step))
    _say_if_older(path, at, step)
    return Saved(path, step, record, leaves)


def _say_if_older(path: epath.Path, at: int | None, step: int) -> None:
    """Say that a newer step was saved than the newest one that can be read."""
    if at is None and (known := stored.newest_saved(path)) > step:
        logging.warning("%s: step %d is read, though step %d was saved later", path, step, known)


def describe(run: str, flag: str = "--checkpoint") -> Saved:
    """Say what `read` would give, as far as it can be known without reading gigabytes.

    What is passed over is said as by `read`.
    """
    path, at = _find(run, flag)
    checkpoints = open_checkpoints(path / stored.CHECKPOINTS, read_only=True)
    with Closing(checkpoints.close):
        step, leaves = checkpoints.described(at)
        record = stored.of_checkpoint(path, step, checkpoints.about(step))
    _say_if_older(path, at, step)
    return Saved(path, step, record, leaves)


def newest(run: str, flag: str = "--checkpoint") -> str:
    """Return `WORKDIR@STEP` of what `read` would give now, which stays the same run's same step."""
    return str(describe(run, flag))


def split(run: str) -> tuple[str, int | None]:
    """Return workdir and step of `WORKDIR@STEP`, None for the newest one of `WORKDIR`."""
    workdir, _, step = run.rpartition("@")
    # The directory itself may have an @ in its name. No step has more than 18 digits.
    return (workdir, int(step[:19])) if step.isdecimal() else (run, None)


def _find(run: str, flag: str) -> tuple[epath.Path, int | None]:
    """Return the workdir that a user names, and the step, None for the newest."""
    workdir, at = split(run)
    path = epath.Path(files.expand_home(workdir))
    if run.startswith(HUB) or (files.is_local(path) and (path / MODEL).exists()):
        raise UserError(
            f"{flag}={run} is a model folder, and no run yet: make one of it by python -m "
            f"simclr_jax.convert --source={run} --workdir=RUN"
        )
    if not buckets.listing(path / stored.CHECKPOINTS):
        raise UserError(f"{flag}={run} holds no checkpoints: give the workdir of a run")
    return path, at
