"""A run on disk as something to work with: the Python API."""

from __future__ import annotations

import os

from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved


def load(run: str | os.PathLike[str]) -> Encoder:
    """Load the encoder of a run, with its preprocessing.

        encoder = simclr_jax.load("runs/digits")
        h = encoder(images)              # [n, 128]; images uint8 or floats in [0, 1], any size
        z = encoder(images, tap="z")     # after the projection head

    Args:
      run: a workdir, or `WORKDIR@STEP`; without a step the newest whole checkpoint.

    Raises:
      UserError: if there is no run, no such step, or the checkpoint is damaged.
    """
    return Encoder.of(saved.read(os.fspath(run), "run"))
