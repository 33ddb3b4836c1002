"""The Python API: train, load and embed, as a notebook does.

Mistakes that a user can put right are raised as `simclr_jax.errors.UserError`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import runpy
import signal
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import (
    declaration,
    entry,
    errors,
    files,
    flag_kinds,
    given_data,
    parallel,
    recipes,
    shipped,
)
from simclr_jax.errors import UserError
from simclr_jax.interop import model_folder
from simclr_jax.judging import results
from simclr_jax.pipeline.recipe import STAGE
from simclr_jax.segments import Extension
from simclr_jax.stages import extend, in_hand
from simclr_jax.stages import run as runs
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved
from simclr_jax.train.workdir import started

PathLike = str | os.PathLike[str]
INTERRUPTED = runs.EXIT_CODES[signal.SIGINT]


class Stopped(UserError):
    """A run was asked to end before its end, and has saved if it had begun to train."""

    code = os.EX_TEMPFAIL


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is complete.

    Attributes:
      workdir: where it lives; README.md says what is in it.
    """

    workdir: str

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Return the frozen encoder of its last step; raise `UserError` as `load`."""
        return load(self.workdir)

    @property
    def scores(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the table at its end: for each thing and each score `accuracy`, `low` and `high`.

        Fractions, with the ends of a 95 % interval. Without labels it is empty.

        Raises:
          UserError: if it cannot be read.
        """
        try:
            return results.read_summary(self.workdir)["scores"]
        except FileNotFoundError:
            return {}

    @property
    def metrics(self) -> list[dict[str, float]]:
        """Return the lines of `metrics.jsonl`, each with its `step`."""
        text = (epath.Path(self.workdir) / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        return [{name: v for name, v in line.items() if name != "crc32"} for line in lines]


def load(run: PathLike, weights: str = saved.TRAINED) -> Encoder:
    """Load the encoder of a run, with its preprocessing.

        encoder = simclr_jax.load("runs/digits")
        h = encoder(images)              # [n, 128]; images uint8 or floats in [0, 1], any size
        z = encoder(images, tap="z")     # after the projection head

    Args:
      run: a workdir, or `WORKDIR@STEP`; without a step the newest whole checkpoint. Or a model
        folder that `python -m simclr_jax.export --format=huggingface` has written, or one on the
        Hugging Face Hub: `hf://ORGANISATION/NAME`, `hf://ORGANISATION/NAME@REVISION`.
      weights: "trained", or "average": their moving average, where the run keeps one (BYOL, MoCo,
        PCL, a memory of negatives). A model folder has those that it was exported with.

    Raises:
      UserError: if there is no run, no such step, or the checkpoint or folder is damaged; of the
        Hub also if a package is missing or it cannot be reached.
    """
    path = os.fspath(run)
    if model_folder.is_one(path):
        if weights != saved.TRAINED:
            raise UserError(
                f"weights={weights}, but {path} is a model folder, which has the weights that it "
                "was exported with: leave it out"
            )
        return Encoder.of(model_folder.read(path))
    return Encoder.of(saved.of_weights(saved.read(path, "run"), weights, "weights"))


def train(
    data: PathLike = "",
    workdir: PathLike | None = None,
    config: str | ConfigDict | None = None,
    resume: str = "auto",
    extend_to: float | str | None = None,
    extend_lr: float | None = None,
    extend_warmup: float | None = None,
    **fields: Any,
) -> Run:
    """Train by a recipe, or on a folder of images, and return the run when it is complete.

        run = simclr_jax.train("photographs", "runs/photographs")
        run = simclr_jax.train(config="digits", train__epochs=20, optim__base_lr=6.0)
        run = simclr_jax.train(workdir="runs/digits", extend_to=40)

    It prints what `simclr train` does. The same call continues a run that was interrupted, and
    trains nothing if it is complete.

    Args:
      data: images, as `simclr train --data` takes them; the recipe's by default.
      workdir: where the run lives; `runs/RECIPE` by default.
      config: a recipe: a file, the name of one that comes along, or a ConfigDict; by default the
        one for such data.
      resume: "auto", "never" or "must".
      extend_to: trains a finished run on, until it has seen so many epochs in all, or "5000steps".
        The same call once more adds nothing. Data and config may be left out then.
      extend_lr: base rate of what is added; by default that of the run.
      extend_warmup: epochs in which its rate rises; by default as in the run, a tenth of what is
        added at most.
      **fields: of the recipe, with `__` for each dot; or by their dotted names, as
        `**{"train.epochs": 20}`.

    Raises:
      UserError: for whatever a user can put right. `Stopped`, one of them, if SIGTERM has ended the
        run after a save.
      KeyboardInterrupt: if Ctrl-C, or the notebook's stop, has.
    """
    try:
        data = flag_kinds.at_home(os.fspath(data))
    except ValueError as error:
        raise UserError(f"data: {error}") from error
    if extend_to is None and (extend_lr, extend_warmup) != (None, None):
        raise UserError("extend_lr and extend_warmup are of a run that is extended: give extend_to")
    asked = None if extend_to is None else Extension(str(extend_to), extend_lr, extend_warmup)
    if config is None and asked and workdir is not None and not data:
        config = extend.recipe_of(os.fspath(workdir))
    if config is None:
        if not data:
            raise UserError("there is nothing to train on: give data, or config as a recipe")
        config = given_data.recipe(data)
    made = recipes.copied(config) if isinstance(config, ConfigDict) else _recipe(config)
    if made.get("stage") == STAGE:
        raise UserError("the recipe is one of several runs: `simclr train --config` carries it out")
    if workdir is None:
        if isinstance(config, ConfigDict):
            raise UserError("a recipe without a name has no workdir of its own: give workdir")
        workdir = f"runs/{Path(config.partition(':')[0]).stem}"
    if data:
        given_data.put(made, data)
    for name, value in fields.items():
        _set(made, name.replace("__", "."), value)
    parallel.use_compilation_cache()
    place = files.expand_home(os.fspath(workdir))
    more: dict[str, Any] = {"extension": asked} if asked else {}
    code = runs.run(made, place, resume, **more)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        saved_one = started(epath.Path(place))
        what = f"is saved in {place}" if saved_one else "had saved nothing yet"
        raise Stopped(f"the run was stopped, and {what}: the same call continues it")
    return Run(place)


def embed(run: Run | Encoder | PathLike, images: Any, tap: Any = "h", batch_size: int = 256) -> Any:
    """Encode images by the encoder of a run.

        h = simclr_jax.embed("runs/photographs", sorted(Path("more").glob("*.jpg")))  # [n, d]

    Args:
      run: what `train` has returned, an encoder, a workdir or `WORKDIR@STEP`. A path is read again
        in each call; `load` keeps what it has read.
      images: one image or several: arrays as `Encoder.__call__` takes them, paths of image files,
        or images of Pillow.
      tap: which vector: h, z, ...; or several, such as `("h", "z")`.
      batch_size: images in a forward pass, over all devices; so many are decoded at a time.

    Returns:
      float32 `[n, d]`, or `[d]` of one image; of several taps a dictionary of such.

    Raises:
      UserError: if the run or an image cannot be read, or there is no such tap.
    """
    if isinstance(run, Run):
        encoder = run.encoder
    else:
        encoder = run if isinstance(run, Encoder) else load(run)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: give at least 1")
    if in_hand.is_one(images):
        return encoder(images, tap, batch_size)
    several: Any = images if hasattr(images, "__getitem__") else list(images)
    starts = range(0, max(len(several), 1), batch_size)
    parts = [encoder(several[i : i + batch_size], tap, batch_size) for i in starts]
    if isinstance(tap, str):
        return np.concatenate(parts)
    return {one: np.concatenate([part[one] for part in parts]) for one in parts[0]}


def _recipe(config: str) -> ConfigDict:
    """Return the recipe of a file, or of one that comes along."""
    try:
        path, colon, argument = shipped.find(flag_kinds.at_home(config)).partition(":")
    except ValueError as error:
        raise UserError(f"config: {error}") from error
    if not Path(path).is_file():
        raise UserError(entry.no_recipe(path))
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise UserError(
            f'recipe "{path}" has no get_config(): see {entry.EXAMPLE} for the shape of a recipe'
        )
    if colon and not inspect.signature(get_config).parameters:
        raise UserError(f'recipe "{path}" takes no argument: leave ":{argument}" out')
    made = get_config(argument) if colon else get_config()
    if not isinstance(made, ConfigDict):
        raise UserError(f'recipe "{path}" returns no ConfigDict from get_config()')
    return recipes.copied(made)


def _set(config: ConfigDict, name: str, value: Any) -> None:
    """Set a field of a recipe.

    Raises:
      UserError: if there is none of that name, or it holds another type.
    """
    group, _, field = name.rpartition(".")
    try:
        place = recipes.get(config, group) if group else config
        there = isinstance(place, ConfigDict) and field in place
    except (KeyError, AttributeError):
        place, there = config, False
    if not there:
        near = errors.nearest(field, place.keys() if isinstance(place, ConfigDict) else ())
        raise UserError(f'the recipe has no field "{name}"{near}: `simclr fields` lists them')
    kind = _kind(config, place, group, field)
    if kind is float and type(value) is int:
        value = float(value)
    if kind is tuple and type(value) is list:
        value = tuple(value)
    fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    wrong = f"{name} is {str(value)[:80]}: it must be of type {kind.__name__}"
    if value is not None and not fits:
        raise UserError(wrong)
    try:
        place[field] = value
    except TypeError as error:
        raise UserError(wrong) from error


def _kind(config: ConfigDict, place: ConfigDict, group: str, field: str) -> type:
    """Return the type of a field, which a recipe that leaves it open has forgotten."""
    kind = place.get_type(field)
    if kind is not type(None):
        return kind
    base = recipes.base(config.get("method", declaration.DEFAULT))
    try:
        kind = (recipes.get(base, group) if group else base).get_type(field)
    except (AttributeError, KeyError):  # of a view that only this recipe has
        return object
    return object if kind is type(None) else kind
