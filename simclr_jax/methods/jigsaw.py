"""Jigsaw puzzles: by which permutation were these tiles shuffled? (Noroozi and Favaro 2016)

The nine tiles of an image (arXiv 1603.09246), each embedded by itself, are laid out by some of a
fixed set of permutations, and a head on all nine embeddings says which permutation it was
(google/revisiting-self-supervised `self_supervision/jigsaw.py`). The set has permutations that are
as far apart as can be (`augment/permutations.py`): `jigsaw.order=matlab` with `jigsaw.first=46080`
gives the authors' own hundred. In each step some of them are drawn, the same for all images or,
with `jigsaw.shared=False`, others for each.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from simclr_jax.augment.permutations import ORDERS, far_apart
from simclr_jax.declaration import Chart, Declaration, Field
from simclr_jax.errors import UserError
from simclr_jax.frame import patches
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Net
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs, Seen


def check(config: ConfigDict) -> None:
    """Raise `UserError` for more permutations than there are, or tiles that do not fit."""
    c = config.jigsaw
    exist = math.factorial(c.grid**2)
    if c.permutations > exist:
        raise UserError(
            f"jigsaw.permutations is {c.permutations}, but {c.grid}x{c.grid} tiles "
            f"(jigsaw.grid={c.grid}) have {exist}: set --config.jigsaw.permutations={exist}"
        )
    if c.first >= exist:
        raise UserError(
            f"jigsaw.first is {c.first}, but the {exist} permutations of {c.grid}x{c.grid} tiles "
            f"(jigsaw.grid={c.grid}) are numbered from 0: set --config.jigsaw.first=0"
        )
    if c.drawn > c.permutations:
        raise UserError(
            f"jigsaw.drawn is {c.drawn}, more than jigsaw.permutations={c.permutations}, of which "
            f"they are drawn: set --config.jigsaw.drawn={c.permutations}"
        )
    patches.check(config, c.grid)


DECLARATION = Declaration(
    title="Jigsaw",
    views={"views": (1, 1)},
    recipe=patches.recipe,
    fields={
        "grid": Field(
            3,
            "tiles along a side",
            "2 or 3: of more tiles there are too many permutations to list",
            lambda v: v in (2, 3),
        ),
        "permutations": Field(
            100, "how many there are to tell apart", "2 or more", lambda v: v >= 2
        ),
        "order": Field(
            "lexicographic",
            "in which all permutations are numbered",
            f"one of {', '.join(ORDERS)}",
            lambda v: v in ORDERS,
        ),
        "first": Field(
            0,
            "number of the permutation that the others are chosen to be far from",
            "0 or more",
            lambda v: v >= 0,
        ),
        "drawn": Field(
            8, "permutations that an image is laid out by in a step", "1 or more", lambda v: v >= 1
        ),
        "shared": Field(True, "whether all images of a batch have the same ones"),
        **patches.FIELDS,
    },
    check=check,
    chance=lambda config: math.log(config.jigsaw.permutations),
    parts=patches.PARTS,
    charts=(Chart("Permutation found", {"permutation_accuracy": "permutation found"}, True),),
)


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build jigsaw puzzles."""
    patches.check_colours(config, setting.channels)
    c, grid = config.jigsaw, patches.grid_of(config, config.jigsaw.grid)
    known = far_apart(c.grid**2, c.permutations, c.first, c.order).astype(np.int32)

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.permutation(key, c.permutations)[: c.drawn].astype(jnp.int32)

    def drawn(keys: Keys, n: int) -> jax.Array:
        """Return the permutations that n images are laid out by, int32 `[n, drawn]`."""
        if c.shared:
            return jnp.broadcast_to(draw(keys.of_batch("permutations")), (n, c.drawn))
        return jax.vmap(draw)(keys.of_rows("permutations"))

    def look(views: Views, keys: Keys) -> Views:
        return patches.look(config, grid, views, keys)

    def show(views: Views, keys: Keys) -> Seen:
        """Show the tiles in their places, and as the first of the permutations lays them."""
        tiles, n = views["patches"], len(views["patches"])
        which = np.asarray(drawn(keys, n))[:, 0]
        laid = {"cut": np.tile(np.arange(c.grid**2), (n, 1)), "laid": known[which]}
        orders = (" ".join(str(tile + 1) for tile in known[number]) for number in which)
        answers = [f"{number}: {order}" for number, order in zip(which, orders, strict=True)]
        return Seen(patches.pictures(tiles, c.grid, laid), answers)

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        embeddings = patches.embedded(net, views)
        asked = drawn(keys, len(embeddings))  # [n, m]
        every = jnp.asarray(known)
        places = every[asked[0]] if c.shared else every[asked]  # [m, k] or [n, m, k]
        logits = patches.answered(config, net, embeddings, places, keys)
        return {"logits": logits, "asked": asked}

    def loss(
        outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        return patches.loss(outputs, axis_name, "permutation_accuracy")

    return Method(
        forward=forward,
        loss=loss,
        modules=patches.network(config, c.permutations),
        look=look,
        show=show,
        probed="views",
        formats={"loss": "loss {:.4f}", "permutation_accuracy": "permutation found {:.1%}"},
    )
