"""Methods that answer with a picture: the encoder's map before pooling, decoded.

The map is `block_group4` of the encoder of the recipe. `answer` is what every such method does in
its forward pass, `check` sees whether doublings of the map reach its side, and `reconstruction` is
the method that gives images back, whatever was done to what the network is shown of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from simclr_jax import declaration, recipes
from simclr_jax.declaration import Chart, Field
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Net
from simclr_jax.losses.batch import mean
from simclr_jax.losses.reconstruction import one_colour, squared_error
from simclr_jax.models.decoder import Decoder, doublings
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs, Seen

PART = "decoder"
MAP = "block_group4"  # of the encoder's end points
HALVINGS = {"cifar": 3, "imagenet": 5}  # of the side of an image, by stem

# Fields that all of them have.
WIDTH = Field(
    256,
    "channels of the decoder's first layer; a doubling halves them",
    "1 or more",
    lambda x: x > 0,
)
CODE = Field(
    0,
    "channels of the map that the decoder is given, by a 1x1 convolution; 0: all",
    "0 or more",
    lambda x: x >= 0,
)


def decoder(config: ConfigDict, channels: int, shrink: int = 1) -> Decoder:
    """Build the decoder of a recipe, to so many numbers for each pixel of a view.

    The group of the recipe's method has the field `width`, and may have `code`. With `shrink` it
    is each pixel of a view that is smaller by that factor.
    """
    own, whole = config[declaration.group(config.method)], side(config)
    assert whole is not None, "recipes are whole when networks are built"
    return Decoder(
        side=whole // shrink,
        channels=channels,
        width=own.width,
        code=own.get("code", 0),
        norm=modules.norm(config),
        dtype=jnp.dtype(config.train.dtype),
        param_dtype=modules.param_dtype(config),
    )


def answer(net: Net, images: jax.Array, train: bool = True) -> tuple[list[jax.Array], jax.Array]:
    """Pass images through encoder, head and decoder.

    Args:
      net: with the parts `encoder`, `head` and `decoder`.
      images: `[n, h, w, c]`, one view of each image.
      train: as in `Net.__call__`.

    Returns:
      Taps, `[n, 1, d]` each, and what the decoder makes, `[n, side, side, channels]`.
    """
    ends = net("encoder", images, train=train)
    hiddens = net("head", ends["h"], train=train)
    return [hidden[:, None] for hidden in hiddens], net(PART, ends[MAP], train=train)


def side(config: ConfigDict) -> int | None:
    """Return the side of the view that the network looks at; None: it is left open."""
    _, size = _sized(config)
    return size


def _sized(config: ConfigDict) -> tuple[str, int | None]:
    """Return the field that says how large the view is, and what it says."""
    name, view = next(iter(config.augment.views.items()))
    if view.size is None:
        return "data.image_size", config.data.image_size
    return f"augment.views.{name}.size", view.size


def check(config: ConfigDict, shrink: int = 1) -> None:
    """Check that doublings of the encoder's map reach the side of a view, divided by `shrink`.

    Args:
      config: a recipe.
      shrink: a power of two, 8 at most.

    Raises:
      UserError: if they do not; it names a side that they reach.
    """
    (field, whole), stem = _sized(config), config.model.stem
    if whole is None or stem is None:
        return
    step = 2 ** HALVINGS[stem]
    start = -(-whole // step)  # each stride of two rounds up
    if whole % shrink == 0 and doublings(start, whole // shrink) is not None:
        return
    per = f" by {shrink}" if shrink > 1 else ""
    raise UserError(
        f"{field} is {whole}{per}, which doublings of the encoder's map of {start}x{start} pixels "
        f"do not reach, and method {config.method} decodes it: set --config.{field}={start * step}"
    )


def recipe(config: ConfigDict) -> None:
    """Leave one view, of crop and flip, no projection head, and Adam."""
    config.head.kind = "none"
    config.optim.name, config.optim.base_lr, config.optim.lr_scaling = "adam", 1e-3, "none"
    config.optim.weight_decay = 0.0
    recipes.crop_and_flip(config)


FORMATS = {"loss": "loss {:.4f}", "one_colour_loss": "one colour {:.4f}"}
CHART = Chart(
    "Error of reconstruction",
    {"loss": "loss", "one_colour_loss": "the best single colour for each image"},
    caption="Who has learned no more of a picture than its colour as a whole is at the second.",
)


def reconstruction(
    config: ConfigDict,
    setting: Setting,
    damaged: Callable[[jax.Array, Keys], jax.Array] | None = None,
) -> Method:
    """Build the method that gives an image back: the mean squared error of all its values.

    Args:
      config: a recipe.
      setting: of the run.
      damaged: from images `[n, h, w, c]` and keys to what the network is given of them, while the
        online probe reads them as they were; None: it is given the images.
    """

    def shown(images: jax.Array, keys: Keys) -> jax.Array:
        return images if damaged is None else damaged(images, keys)

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        images = views["views"][:, 0]
        taps, made = answer(net, shown(images, keys))
        error, flat = squared_error(made, images), one_colour(images)
        found: Outputs = {"error": error, "one_colour": flat}  # [n] each
        return found if damaged else {**found, "taps": taps}

    def show(views: Views, keys: Keys) -> Seen:
        given = jax.vmap(lambda view: shown(view, keys), 1, 1)(views["views"])
        return Seen({"given": given})

    def paint(net: Net, views: Views, keys: Keys) -> Mapping[str, jax.Array]:
        images = views["views"][:, 0]
        given = shown(images, keys)
        return {"given": given, "made": answer(net, given, train=False)[1], "wanted": images}

    return Method(
        forward=forward,
        loss=error_and_one_colour,
        modules={PART: decoder(config, setting.channels)},
        formats=FORMATS,
        show=show,
        paint=paint,
        probed="views" if damaged else "",
    )


def error_and_one_colour(
    outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
) -> tuple[jax.Array, Metrics]:
    """Return this device's share of the loss, and of that of the best single colour."""
    flat = mean(outputs["one_colour"], axis_name=axis_name)
    return mean(outputs["error"], axis_name=axis_name), {"one_colour_loss": flat}
