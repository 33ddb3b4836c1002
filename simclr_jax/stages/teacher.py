"""The network that a student learns from: a run with a classifier, frozen."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import parallel
from simclr_jax.data.sources import Source
from simclr_jax.errors import UserError
from simclr_jax.stages.encoder import Encoder, channels_of, classifier_of, embedder
from simclr_jax.train import saved
from simclr_jax.train.saved import Saved

SEVERAL = "several_labels"  # of `config.json`: it has learned that an image may have several


class Teacher:
    """Images in, logits out, in inference mode.

    Args:
      run: with a classifier.
      dtype: what it computes in; parameters stay float32.
      mesh: the devices, each of which holds all of it.

    Attributes:
      name: what a person calls it: `WORKDIR@STEP`.
      classes: that it tells apart.
      variables: its arrays, on the devices.

    Raises:
      UserError: if the run has no classifier.
    """

    def __init__(self, run: Saved, dtype: str, mesh: Mesh):
        classifier_shape(run)
        encoder = Encoder.of(run, mesh).changed({"train.dtype": dtype})
        assert encoder.classifier is not None  # or it had no shape
        self._tap, (kernel, bias) = encoder.classifier
        self.name, self.classes = str(run), len(bias)
        self._tapped = embedder(encoder.config, (self._tap,))
        weights = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
        self.variables = encoder.variables | {"classifier": parallel.replicate(mesh, weights)}

    def __call__(self, variables: Any, images: jax.Array) -> jax.Array:
        """Return logits `[n, classes]` of prepared images `[n, h, w, c]`."""
        x = self._tapped(variables, images)[self._tap]
        weights = variables["classifier"]
        return x @ weights["kernel"] + weights["bias"]


def classifier_shape(run: Saved) -> tuple[int, ...]:
    """Return the shape of a teacher's classifier; raise `UserError` if it has none."""
    found = classifier_of(run)
    if found is None:
        raise UserError(
            f"distill.teacher={run} has no classifier: fine-tune it first (configs/finetune.py)"
        )
    return found[1][0].shape


def check(config: ConfigDict, train: Source, test: Source) -> None:
    """Check that the teacher of a recipe knows images and classes like these.

    Raises:
      UserError: if there is no such run, it has no classifier, or does not fit.
    """
    run = saved.describe(config.distill.teacher, "distill.teacher")
    where = f"distill.teacher={run}"
    if run.record.get(SEVERAL):
        raise UserError(
            f"{where} asks of each class by itself, for its images may have several labels, and "
            "stage distill is made for one each: give another teacher"
        )
    _, classes = classifier_shape(run)
    channels = channels_of(run.config, run.variables("encoder")["params"])
    if (size := run.config.data.image_size) != config.data.image_size:
        raise UserError(
            f"{where} looks at images of {size} pixels, this recipe at {config.data.image_size}: "
            f"set --config.data.image_size={size}"
        )
    if (white := run.config.data.white_level) != config.data.white_level:
        raise UserError(
            f"{where} was trained with data.white_level={white}, and this recipe has "
            f"{config.data.white_level}: set --config.data.white_level={white}"
        )
    if channels != train.channels:
        raise UserError(
            f"{where} looks at images of {channels} channel(s), these have {train.channels}: give "
            "images like those it was trained on"
        )
    for source in (train, test):
        if source.classes and source.classes != classes:
            raise UserError(
                f"{where} tells {classes} classes apart, this data set has {source.classes}: give "
                "a teacher of these classes, or --config.data.labels=False"
            )
