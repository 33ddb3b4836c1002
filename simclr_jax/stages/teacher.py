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
from simclr_jax.stages.encoder import Encoder, embedder
from simclr_jax.train import saved
from simclr_jax.train.saved import Saved


class Teacher:
    """Images in, logits out, in inference mode.

    Args:
      run: with a classifier.
      dtype: what it computes in; parameters stay float32.
      mesh: the devices, each of which holds all of it.

    Attributes:
      classes: that it tells apart.
      variables: its arrays, on the devices.
    """

    def __init__(self, run: Saved, dtype: str, mesh: Mesh):
        encoder = Encoder.of(run, mesh)
        if encoder.classifier is None:
            raise UserError(
                f"distill.teacher={run} has no classifier: fine-tune it first (configs/finetune.py)"
            )
        self._tap, (kernel, bias) = encoder.classifier
        self.classes = len(bias)
        config = run.config
        config.train.dtype = dtype
        self.size, self.channels, self._name = encoder.size, encoder.channels, str(run)
        self._tapped = embedder(config, (self._tap,))
        weights = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
        self.variables = encoder.variables | {"classifier": parallel.replicate(mesh, weights)}

    @classmethod
    def of(cls, config: ConfigDict, images: Source, mesh: Mesh) -> Teacher:
        """Return the teacher of a recipe, which must know images and classes like these.

        Raises:
          UserError: if there is no such run, it has no classifier, or does not fit.
        """
        d = config.distill
        teacher = cls(saved.read(d.teacher, "distill.teacher"), d.teacher_dtype, mesh)
        where = f"distill.teacher={d.teacher}"
        if teacher.size != config.data.image_size:
            raise UserError(
                f"{where} looks at images of {teacher.size} pixels, this recipe at "
                f"{config.data.image_size}: set --config.data.image_size={teacher.size}"
            )
        if teacher.channels != images.channels:
            raise UserError(
                f"{where} looks at images of {teacher.channels} channel(s), these have "
                f"{images.channels}: give images like those it was trained on"
            )
        if images.classes and images.classes != teacher.classes:
            raise UserError(
                f"{where} tells {teacher.classes} classes apart, this data set has "
                f"{images.classes}: give a teacher of these classes, or --config.data.labels=False"
            )
        return teacher

    def __call__(self, variables: Any, images: jax.Array) -> jax.Array:
        """Return logits `[n, classes]` of prepared images `[n, h, w, c]`."""
        x = self._tapped(variables, images)[self._tap]
        weights = variables["classifier"]
        return x @ weights["kernel"] + weights["bias"]
