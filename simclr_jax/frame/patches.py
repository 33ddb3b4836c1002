"""What methods share that show the network patches of an image, and ask how they lie.

Each patch passes through the encoder by itself and has an embedding; those of some patches are
joined, a layer sees them at once, and a classifier says which of the answers it is
(`models/patch_head.py`). What may be asked of an image is the method's.

The online probe reads the whole view (`Method.probed`): patches are smaller than what it will be
asked about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from simclr_jax import declaration, recipes
from simclr_jax.augment.patches import Grid, cut, mosaic, one_colour
from simclr_jax.declaration import Field
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.frame.drop import drop
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Views
from simclr_jax.frame.net import Net, image_major, view_major
from simclr_jax.losses.cross_entropy import cross_entropy
from simclr_jax.models.patch_head import PatchEmbedding, Together, joined
from simclr_jax.train.stage import Metrics, Outputs

COLOURS = ("all", "one")
PARTS = ("patch", "together", "answer")  # of the network, beside the encoder

# Patches for views of 32 pixels; recipes of larger ones have larger patches.
FIELDS: dict[str, Field] = {
    "patch": Field(8, "side of a patch, pixels", "1 or more", lambda v: v >= 1),
    "gap": Field(0, "pixels between two cells", "0 or more", lambda v: v >= 0),
    "jitter": Field(
        2,
        "how much larger a cell is than its patch, which lies anywhere in it; pixels",
        "0 or more",
        lambda v: v >= 0,
    ),
    "colours": Field(
        "all",
        "channels of a patch that are kept; one, drawn, against chromatic aberration",
        f"one of {', '.join(COLOURS)}",
        lambda v: v in COLOURS,
    ),
    "embed": Field(1000, "numbers of a patch's embedding", "1 or more", lambda v: v >= 1),
    "hidden": Field(
        4096, "width of the layer that sees them at once", "1 or more", lambda v: v >= 1
    ),
    "dropout": Field(
        0.5,
        "share of that layer's outputs set to 0 in training",
        "in [0, 1)",
        lambda v: 0 <= v < 1,
    ),
}


def recipe(config: ConfigDict) -> None:
    """Leave one view of an image, whole, gray or not, and no projection head.

    As google/revisiting-self-supervised `config/jigsaw/imagenet.sh`, whose optimiser it sets too;
    each patch is standardised by itself, by what the encoder makes of its input first.
    """
    config.head.kind = "none"
    config.model.input = "standardised"
    config.optim.name, config.optim.base_lr, config.optim.nesterov = "sgd", 0.1, False
    config.optim.weight_decay, config.optim.warmup_epochs = 1e-4, 5.0
    recipes.crop_and_flip(config)
    view = config.augment.views.first
    view.crop, view.flip, view.grayscale = False, 0.0, 0.66


def grid_of(config: ConfigDict, count: int) -> Grid:
    """Return the grid of `count` x `count` patches of a recipe."""
    c = config[declaration.group(config.method)]
    cell = c.patch + c.jitter
    return Grid(count, count, (c.patch, c.patch), (cell + c.gap, cell + c.gap), c.jitter)


def check(config: ConfigDict, count: int) -> None:
    """Raise `UserError` where the grid is larger than the view that it is to be cut from."""
    (name, view), *_ = config.augment.views.items()
    side, group = view.size or config.data.image_size, declaration.group(config.method)
    c = config[group]
    if side is None or (needed := max(grid_of(config, count).size)) <= side:
        return
    field = "data.image_size" if view.size is None else f"augment.views.{name}.size"
    said = f"{group}.grid={count}, {group}.gap={c.gap} and {group}.jitter={c.jitter}"
    larger = f"--config.{field}={needed}"
    cell = (side - (count - 1) * c.gap) // count
    jitter = min(c.jitter, cell // 4)
    smaller = f"--config.{group}.patch={cell - jitter} --config.{group}.jitter={jitter}"
    raise UserError(
        f"{group}.patch is {c.patch}, which with {said} takes {needed} pixels, but views have "
        f"{side}: set " + (f"{smaller}, or {larger}" if cell >= 1 else larger)
    )


def check_colours(config: ConfigDict, channels: int) -> None:
    """Raise `UserError` where colours are to be dropped of images that have none."""
    group = declaration.group(config.method)
    if config[group].colours == "one" and channels < 3:
        raise UserError(
            f"{group}.colours is one, but the images are gray ({channels} channel), so that there "
            f"is nothing to drop: set --config.{group}.colours=all"
        )


def network(config: ConfigDict, answers: int) -> dict[str, nn.Module]:
    """Build what sits on the encoder, for so many answers."""
    c = config[declaration.group(config.method)]
    how: dict[str, Any] = {
        "dtype": jnp.dtype(config.train.dtype),
        "param_dtype": modules.param_dtype(config),
    }
    return {
        "patch": PatchEmbedding(c.embed, **how),
        "together": Together(c.hidden, modules.norm(config), **how),
        "answer": modules.classifier(config, answers),
    }


def look(
    config: ConfigDict, grid: Grid, views: Views, keys: Keys, wanted: jax.Array | None = None
) -> Views:
    """Cut patches of the view of each image.

    Args:
      config: a recipe.
      grid: of patches.
      views: one of each image, `[n, 1, h, w, c]`.
      keys: of the draws.
      wanted: int `[n, p]`, the numbers of those that are cut, row by row; None: all.

    Returns:
      `patches` `[n, p, h', w', c]`.
    """
    height, width = views["views"].shape[2:4]
    every = np.arange(grid.rows * grid.columns, dtype=np.int32)
    single = config[declaration.group(config.method)].colours == "one"

    def of_image(image, place, colour, own):  # [h, w, c], key, key, [p]
        corners = grid.drawn(place, (height, width)).reshape(-1, 2)[own]
        patches = cut(image, corners, grid.patch)
        if single:
            patches = jax.vmap(one_colour)(jax.random.split(colour, len(patches)), patches)
        return patches

    images = views["views"][:, 0]
    if wanted is None:
        wanted = jnp.broadcast_to(every, (len(images), len(every)))
    of_keys = keys.of_rows("patches"), keys.of_rows("colours")
    patches = jax.vmap(of_image)(images, *of_keys, wanted)
    return {"patches": patches}


def embedded(net: Net, views: Views) -> jax.Array:
    """Embed each patch; return `[n, p, d]`."""
    n, patches = len(views["patches"]), view_major(views["patches"])
    h = net("encoder", patches)["h"]  # [p * n, d]
    return image_major(net("patch", h), n)


def answered(
    config: ConfigDict, net: Net, embeddings: jax.Array, places: jax.Array, keys: Keys
) -> jax.Array:
    """Return logits `[n, m, answers]` of m questions about each image.

    Args:
      config: a recipe.
      net: with the parts of `network`.
      embeddings: `[n, p, d]`.
      places: which patches each question shows, see `models.patch_head.joined`.
      keys: of the draws of the dropout.
    """
    rows, n = joined(embeddings, places), len(embeddings)
    hidden = image_major(net("together", view_major(rows)), n)  # [n, m, hidden]
    if rate := config[declaration.group(config.method)].dropout:
        hidden = drop(hidden, keys.of_rows("dropout"), rate)
    return image_major(net("answer", view_major(hidden)), n)


def loss(outputs: Outputs, axis_name: str, metric: str) -> tuple[jax.Array, Metrics]:
    """Return this device's share of the mean cross entropy of all answers, and how many are right.

    `outputs` have `logits` `[n, m, answers]` and `asked` int32 `[n, m]`.
    """
    logits = outputs["logits"]
    rows = logits.reshape(-1, logits.shape[-1])
    found, accuracy = cross_entropy(rows, outputs["asked"].reshape(-1), axis_name=axis_name)
    return found, {metric: accuracy}


def pictures(patches: jax.Array, columns: int, shown: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return pictures `[n, 1, h, w, c]` of patches laid side by side, by name.

    Args:
      patches: `[n, p, h, w, c]`.
      columns: in which they are laid.
      shown: for each picture which patches it shows, int `[n, k]`.
    """
    taken = jax.vmap(lambda own, places: own[places])
    return {
        name: mosaic(taken(patches, jnp.asarray(places)), columns)[:, None]
        for name, places in shown.items()
    }
