"""The two views of each image, and how images are prepared where nothing is random."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import files
from simclr_jax.augment.draws import sample
from simclr_jax.augment.on_device import augment, center_crop, to_float
from simclr_jax.augment.policy import Policy
from simclr_jax.data import pipeline
from simclr_jax.data.sources import Images
from simclr_jax.reporting.contact_sheet import contact_sheet
from simclr_jax.stages import build
from simclr_jax.train.stage import Batch

SHOWN = 12  # images on the contact sheet


def view_maker(config: ConfigDict) -> Callable[[Batch], jax.Array]:
    """Return the function from a batch to its views, `[2, n, h, w, c]` in the compute dtype.

    The randomness of a view depends on the seed, the absolute position of its image in the order of
    all examples ever consumed, and which view it is: not on devices, hosts or restarts.
    """
    policies = build.policies(config)
    dtype = jnp.dtype(config.train.dtype)
    wide = jnp.promote_types(dtype, jnp.float32)  # augmentation itself is never in bfloat16
    shared_sigma = config.augment.sigma_per == "batch"

    def key_of(position: jax.Array, view: int) -> jax.Array:
        key = jax.random.key(config.seed)
        for word in (position[0], position[1], view):
            key = jax.random.fold_in(key, word)
        return key

    def one_view(image, position, start, view: int, policy: Policy) -> jax.Array:
        # Beside the five keys that `sample` makes of an image's own.
        sigma_key = jax.random.fold_in(key_of(start, view), 5) if shared_sigma else None
        height, width, _ = image.shape
        draws = sample(key_of(position, view), policy, height, width, sigma_key)
        return augment(to_float(image).astype(wide), draws, policy)

    def views(batch: Batch) -> jax.Array:
        rows = (batch["image"], batch["position"], batch["start"])
        made = [
            jax.vmap(functools.partial(one_view, view=view, policy=policy))(*rows)
            for view, policy in enumerate(policies)
        ]
        return jnp.stack(made).astype(dtype)

    return views


def eval_image(image: jax.Array, size: int, grid: str) -> jax.Array:
    """Prepare an image `[h, w, c]` for evaluation: its central 87.5 %, or all of a small one.

    The official code takes images of up to 32 pixels as they are, and whole
    (`data_util.py:preprocess_for_eval`, `test_crop`); one of another size is resized here.
    """
    if size > 32:
        return center_crop(image, size, grid)
    if image.shape[:2] == (size, size):
        return to_float(image)
    return center_crop(image, size, grid, proportion=1.0)


def draw(config: ConfigDict, images: Images, path: epath.Path) -> None:
    """Draw the views of the first images of the run, once, to be looked at."""
    if path.exists():
        return
    batch = pipeline.host_batch(images, config.seed, 0, min(SHOWN, len(images)))
    made = jax.jit(view_maker(config))(batch).astype(jnp.float32)
    files.write_atomically(path, contact_sheet(batch["image"], np.asarray(made)))
