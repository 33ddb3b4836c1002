"""From a model folder of this program to a run, to be judged, started from and embedded by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from simclr_jax import recipes
from simclr_jax.errors import UserError
from simclr_jax.interop import infer, model_folder, torch_names
from simclr_jax.interop.written import Foreign, Options
from simclr_jax.recipes import head_layers
from simclr_jax.stages import encoder as encoders
from simclr_jax.train.saved import Saved
from simclr_jax.train.workdir import CONVERTED

POINTERS = ("init.run", "distill.teacher")  # to runs that are not here


def open_model(source: str, options: Options) -> Foreign:
    """Return the model of a folder, or of one on the Hub; see `model_folder.read`.

    Args:
      source: the folder, or `hf://ORGANISATION/NAME`.
      options: all None, for the folder says it itself.

    Raises:
      UserError: if the folder cannot be used, or an option is given.
    """
    for field in dataclasses.fields(options):
        if (value := getattr(options, field.name)) is not None:
            raise UserError(
                f"--{field.name}={value} is for weights of other programs, and {source} is a model "
                "folder, which says it itself: omit it"
            )
    run = model_folder.read(source)
    classifier, tap = encoders.classifier_of(run), encoders.classifier_tap(run)
    config, arrays = _recipe(run), _arrays(run)
    return Foreign(
        source=source,
        flavour=model_folder.KIND,
        step=run.step,
        config=config,
        known=tuple(config.keys()),
        classes=len(classifier[1].bias) if classifier else 0,
        tap=tap if classifier else None,
        channels=encoders.channels_of(config, run.variables("encoder")["params"]),
        arrays=len(arrays),
        about=_about(source, run, config),
        read=lambda: jax.tree.map(np.asarray, traverse_util.unflatten_dict(arrays, sep="/")),
    )


def _recipe(run: Saved) -> ConfigDict:
    """Return the recipe of the run that was exported, as one of a run that nobody trained here."""
    config = recipes.copied(run.config)
    config.stage = CONVERTED
    for pointer in POINTERS:
        recipes.put(config, pointer, "")
    return config


def _arrays(run: Saved) -> dict[str, Any]:
    """Return the arrays by path; whatever the classifier was taught beside, it is one."""
    return {name.replace("/probe/", "/classifier/"): x for name, x in run.leaves.items()}


def _about(source: str, run: Saved, config: ConfigDict) -> Iterator[str]:
    yield f"source     {source} (a model folder of this program; step {run.step})"
    yield f"encoder    {infer.describe(torch_names.architecture(config))}"
    layers = head_layers(config)
    yield f"head       {f'{config.head.kind}, layers: {layers}' if layers else 'none'}"
    found = encoders.classifier_of(run)
    said = f"{len(found[1].bias)} classes on {found[0]}" if found else "none"
    yield f"classifier {said}"
    yield (
        f"images     {config.data.image_size} pixels in [0, 1], model.input={config.model.input}, "
        f"grid {config.augment.grid}; those it was trained on are not in the folder"
    )
