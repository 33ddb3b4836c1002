"""Context encoder: paint what was cut out of an image (Pathak et al. 2016, arXiv 1604.07379).

By reconstruction alone, without the adversary, as pathak22/context-encoder `train.lua` has it for
its part: the hole is a square of half the side, painted over with a colour but for a border that
stays visible, and an error in that border weighs tenfold. Images count as in [-1, 1] there, so the
loss is four times that of values in [0, 1].

The decoder makes the whole image, of which only the hole counts; so the hole may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from simclr_jax.augment.corruption import inside, with_holes
from simclr_jax.declaration import Declaration, Field, Unread
from simclr_jax.errors import UserError
from simclr_jax.frame import decoding
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Net
from simclr_jax.losses.reconstruction import one_colour, squared_error
from simclr_jax.train.stage import Batch, Extra, Outputs, Seen

PLACES = ("centre", "anywhere")
FILL = "117,104,123"  # the official colour of holes, in its order


def colour(text: str, channels: int) -> np.ndarray:
    """Return the colour `[channels]`, in [0, 1], of a text such as "117,104,123" or "128".

    Of images with another number of channels than the text it is the mean in all channels.

    Raises:
      ValueError: if it is not 1 or 3 numbers, 0 to 255.
    """
    values = [float(part) for part in text.split(",")]
    if len(values) not in (1, 3) or not all(0 <= value <= 255 for value in values):
        raise ValueError(text)
    found = values if len(values) == channels else [sum(values) / len(values)] * channels
    return np.array(found) / 255


def _is_colour(text: str) -> bool:
    try:
        colour(text, 3)
    except ValueError:
        return False
    return True


def hole_of(config: ConfigDict, side: int) -> int:
    """Return the side of the hole, pixels."""
    return config.context_encoder.hole or side // 2


def check(config: ConfigDict) -> None:
    """Raise `UserError` for a hole that leaves nothing to see or has nothing in it."""
    side, c = decoding.side(config), config.context_encoder
    if side is not None:
        hole = hole_of(config, side)
        if hole >= side:
            raise UserError(
                f"context_encoder.hole is {hole}, no smaller than the view of {side} pixels, of "
                f"which nothing would be left to see: set --config.context_encoder.hole={side // 2}"
            )
        if 2 * c.overlap >= hole:
            raise UserError(
                f"context_encoder.overlap is {c.overlap}, but context_encoder.hole leaves a hole "
                f"of {hole} pixels, all of which would stay visible: set "
                f"--config.context_encoder.overlap={max(0, (hole - 1) // 4)}"
            )
    decoding.check(config)


def unread(config: ConfigDict) -> dict[str, Unread]:
    """Return the weight of a border that is not there."""
    if config.context_encoder.overlap:
        return {}
    why = Unread("context_encoder.overlap=0", "--config.context_encoder.overlap=1")
    return {"context_encoder.border_weight": why}


DECLARATION = Declaration(
    title="Context encoder",
    views={"views": (1, 1)},
    recipe=decoding.recipe,
    fields={
        "width": decoding.WIDTH,
        "hole": Field(
            0, "side of the hole in pixels; 0: half of the view", "0 or more", lambda x: x >= 0
        ),
        "overlap": Field(
            4, "pixels of the hole that stay visible around its rim", "0 or more", lambda x: x >= 0
        ),
        "border_weight": Field(
            10.0, "of an error in these", "greater than 0", lambda x: 0 < x < float("inf")
        ),
        "place": Field("centre", "of the hole", f"one of {', '.join(PLACES)}", PLACES.__contains__),
        "fill": Field(FILL, "its colour", "R,G,B or one gray, numbers of 0 to 255", _is_colour),
    },
    unread=unread,
    check=check,
    parts=(decoding.PART,),
    charts=(decoding.CHART,),
)


def cut(
    side: int, corner: jax.Array, hole: int, overlap: int, border_weight: float, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Return which pixels are painted over, and what an error in each weighs.

    Args:
      side: of the images, pixels.
      corner: int `[n, 2]`, of each hole.
      hole: side of the hole.
      overlap: how far a border of the hole that stays visible reaches into it.
      border_weight: of an error there; in the rest of the hole it is 1, outside 0.
      dtype: of the weights.

    Returns:
      bool and floats, `[n, side, side]` each.
    """
    erased = inside(side, corner + overlap, hole - 2 * overlap)
    whole = inside(side, corner, hole)
    weight = jnp.where(erased, 1, jnp.where(whole, border_weight, 0)).astype(dtype)
    return erased, weight


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build the context encoder."""
    c, side = config.context_encoder, decoding.side(config)
    assert side is not None, "recipes are whole when networks are built"
    hole, fill = hole_of(config, side), colour(c.fill, setting.channels)

    def corners(images: jax.Array, keys: Keys) -> jax.Array:
        if c.place == "centre":
            return jnp.full((len(images), 2), (side - hole) // 2, jnp.int32)
        draw = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, side - hole + 1, jnp.int32))
        return draw(keys.of_rows("hole"))

    def shown(images: jax.Array, keys: Keys) -> tuple[jax.Array, jax.Array, jax.Array]:
        wide = jnp.promote_types(images.dtype, jnp.float32)
        corner = corners(images, keys)
        erased, weight = cut(side, corner, hole, c.overlap, c.border_weight, wide)
        return with_holes(images, erased, jnp.asarray(fill)), erased, weight

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        images = views["views"][:, 0]
        given, erased, weight = shown(images, keys)
        _, made = decoding.answer(net, given)  # in [-1, 1]
        wanted = 2 * images.astype(weight.dtype) - 1
        error = squared_error(made, wanted, weight)
        # Of the border, which is visible, nothing has to be learned.
        unseen = jnp.sum(erased, (1, 2)) / jnp.sum(weight != 0, (1, 2))
        flat = unseen * one_colour(wanted, erased)
        return {"error": error, "one_colour": flat}  # [n] each

    def show(views: Views, keys: Keys) -> Seen:
        images = views["views"][:, 0]

        def of_image(image: jax.Array, corner: jax.Array) -> jax.Array:
            start = (*corner, jnp.zeros((), corner.dtype))
            return lax.dynamic_slice(image, start, (hole, hole, image.shape[-1]))

        given = shown(images, keys)[0]
        holes = jax.vmap(of_image)(images, corners(images, keys))
        return Seen({"given": given[:, None], "hole": holes[:, None]})

    def paint(net: Net, views: Views, keys: Keys) -> Mapping[str, jax.Array]:
        images = views["views"][:, 0]
        given, _, weight = shown(images, keys)
        answer = (decoding.answer(net, given, train=False)[1] + 1) / 2
        made = jnp.where(weight[..., None] > 0, answer, images.astype(answer.dtype))
        return {"given": given, "made": made, "wanted": images}

    return Method(
        forward=forward,
        loss=decoding.error_and_one_colour,
        modules={decoding.PART: decoding.decoder(config, setting.channels)},
        formats=decoding.FORMATS,
        show=show,
        paint=paint,
        probed="views",  # which have no hole
    )
