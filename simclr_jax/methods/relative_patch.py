"""Relative patch location: where does this patch lie from that one? (Doersch et al. 2015)

The first task that made labels of where things are (arXiv 1505.05192): two neighbouring patches of
an image, and eight answers. `relative_patch.pairs` says which pairs of an image there are:

* `one`: the middle of 3x3 patches and one of its neighbours, drawn: two patches, as the paper has
  it;
* `all`: each pair of neighbours of a grid, both ways, every patch being embedded once, as its
  program has it (cdoersch/deepcontext `train.py`);
* `centre`: each of the eight outer patches of 3x3 with the middle, asked where the outer one lies
  (google/revisiting-self-supervised `self_supervision/relative_patch_location.py`).

The head is that of the last one, for all of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from simclr_jax.augment.patches import NAMES, Pairs, around, neighbours
from simclr_jax.declaration import Chart, Declaration, Field, Unread
from simclr_jax.frame import patches
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Net
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs, Seen

PAIRS = ("one", "all", "centre")
MIDDLE = 4  # of 3x3 patches


def unread(config: ConfigDict) -> dict[str, Unread]:
    """Return the field that only pairs of a whole grid read."""
    chosen = config.relative_patch.pairs
    why = Unread(f"relative_patch.pairs={chosen}", "--config.relative_patch.pairs=all")
    return {} if chosen == "all" else {"relative_patch.grid": why}


def check(config: ConfigDict) -> None:
    """Raise `UserError` where patches do not fit into the view."""
    patches.check(config, _side(config))


def _side(config: ConfigDict) -> int:
    c = config.relative_patch
    return c.grid if c.pairs == "all" else 3


def pairs_of(config: ConfigDict) -> Pairs:
    """Return the pairs of patches that an image may be asked about, and the answers.

    With `one` they are pairs of the two patches that there are.
    """
    c = config.relative_patch
    if c.pairs == "all":
        return neighbours(c.grid, c.grid)
    return around() if c.pairs == "centre" else Pairs(np.array([[0, 1]] * 8), np.arange(8))


def chance(config: ConfigDict) -> float:
    """Return the loss of who knows only how frequent each answer is."""
    share = np.bincount(pairs_of(config).labels) / len(pairs_of(config).labels)
    return -float(np.sum(share * np.log(share)))


DECLARATION = Declaration(
    title="Relative patch location",
    views={"views": (1, 1)},
    recipe=patches.recipe,
    fields={
        "pairs": Field(
            "one", "which pairs of patches", f"one of {', '.join(PAIRS)}", PAIRS.__contains__
        ),
        "grid": Field(3, "patches along a side, of pairs=all", "2 or more", lambda v: v >= 2),
        **patches.FIELDS,
    },
    unread=unread,
    check=check,
    chance=chance,
    parts=patches.PARTS,
    charts=(Chart("Place found", {"place_accuracy": "place found"}, True),),
)


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build relative patch location."""
    patches.check_colours(config, setting.channels)
    pairs, drawn = pairs_of(config), config.relative_patch.pairs == "one"
    grid = patches.grid_of(config, _side(config))
    outer = np.array([patch for patch in range(9) if patch != MIDDLE], np.int32)

    def answers(keys: Keys) -> jax.Array:
        """Return where the neighbour of each image lies, int32 `[n]`."""
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(outer), jnp.int32))
        return draw(keys.of_rows("neighbour"))

    def look(views: Views, keys: Keys) -> Views:
        if not drawn:
            return patches.look(config, grid, views, keys)
        neighbour = jnp.asarray(outer)[answers(keys)]  # [n]
        wanted = jnp.stack([jnp.full_like(neighbour, MIDDLE), neighbour], 1)  # [n, 2]
        return patches.look(config, grid, views, keys, wanted)

    def show(views: Views, keys: Keys) -> Seen:
        """Show one pair of each image."""
        of_images, n = views["patches"], len(views["patches"])
        which = np.asarray(answers(keys)) if drawn else np.arange(n) % len(pairs.labels)
        seen = patches.pictures(of_images, 2, {"pair": pairs.patches[which]})
        labels = pairs.labels[which]
        if config.relative_patch.pairs == "centre":
            return Seen(seen, [f"the first lies {NAMES[label]}" for label in labels])
        return Seen(seen, [f"the second lies {NAMES[label]}" for label in labels])

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        embeddings = patches.embedded(net, views)
        if drawn:
            places, asked = jnp.array([[0, 1]]), answers(keys)[:, None]  # [1, 2], [n, 1]
        else:
            places = jnp.asarray(pairs.patches, jnp.int32)  # [m, 2]
            labels = jnp.asarray(pairs.labels, jnp.int32)
            asked = jnp.broadcast_to(labels, (len(embeddings), len(labels)))
        logits = patches.answered(config, net, embeddings, places, keys)
        return {"logits": logits, "asked": asked}

    def loss(
        outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        return patches.loss(outputs, axis_name, "place_accuracy")

    return Method(
        forward=forward,
        loss=loss,
        modules=patches.network(config, len(NAMES)),
        look=look,
        show=show,
        probed="views",
        formats={"loss": "loss {:.4f}", "place_accuracy": "place found {:.1%}"},
    )
