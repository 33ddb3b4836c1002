"""The two views of each image, made on the device from what the placement sends there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from simclr_jax import files
from simclr_jax.augment.draws import draw_views
from simclr_jax.augment.on_device import augment, to_float
from simclr_jax.stages import build
from simclr_jax.stages.contact_sheet import contact_sheet
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train.stage import Batch
from simclr_jax.train.workdir import Workdir

SHOWN = 12  # images on the contact sheet


def view_maker(config: ConfigDict) -> Callable[[Batch], jax.Array]:
    """Return the function from a batch to its views, `[2, n, h, w, c]` in the compute dtype.

    What is random about a view is decided by `augment.draws.draw_views`, wherever it is made.
    """
    policies = build.policies(config)
    dtype = jnp.dtype(config.train.dtype)
    wide = jnp.promote_types(dtype, jnp.float32)  # augmentation itself is never in bfloat16
    shared_sigma = config.augment.sigma_per == "batch"

    def draws_of(position, start, image):
        size = image.shape[-3:-1]
        return draw_views(policies, config.seed, position, start, *size, shared_sigma=shared_sigma)

    def from_image(image, position, start):  # [h, w, c], [2], [2]
        image = to_float(image).astype(wide)
        drawn = draws_of(position, start, image)
        return [augment(image, d, policy) for d, policy in zip(drawn, policies, strict=True)]

    def from_crops(crops, position, start):  # [2, h, w, c], cut and resized by the host
        crops = to_float(crops).astype(wide)
        rest = [dataclasses.replace(policy, crop=False) for policy in policies]
        drawn = draws_of(position, start, crops)
        return [augment(*view) for view in zip(crops, drawn, rest, strict=True)]

    def views(batch: Batch) -> jax.Array:
        if "views" in batch:
            return jnp.moveaxis(batch["views"], 1, 0).astype(dtype)
        name, make = ("crops", from_crops) if "crops" in batch else ("image", from_image)
        made = jax.vmap(make)(batch[name], batch["position"], batch["start"])
        return jnp.stack(made).astype(dtype)

    return views


def draw(config: ConfigDict, inputs: Inputs, workdir: Workdir) -> None:
    """Draw the views of the first images of the run, once, to be looked at."""
    path = workdir.path / "views.png"
    if path.exists() and not workdir.fresh:
        return
    made = jax.jit(view_maker(config))(inputs.first(SHOWN)).astype(jnp.float32)
    files.write_atomically(path, contact_sheet(inputs.originals(SHOWN), np.asarray(made)))
