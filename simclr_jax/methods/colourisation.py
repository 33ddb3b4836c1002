"""Colourisation: from the lightness of an image to its colours (Zhang et al. 2016, 1603.08511).

The encoder makes the lightness itself of what it is shown (`model.input=lightness`): so whoever
judges it gives it images in colour like any other encoder, and none of their colours reach it.

A pixel is one of 313 bins of the plane (a, b) of CIE Lab, softly, and weighs the more the rarer its
colour is (`losses/colour_bins.py`). How frequent colours are is counted as the images pass: the
mean over all batches so far, which starts from one batch in which all bins are equally frequent.
The simple form regresses a and b, without weights. Images without colours count for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from simclr_jax import parallel
from simclr_jax.augment.lab import has_colours, lab_to_rgb, rgb_to_lab
from simclr_jax.declaration import Chart, Declaration, Field, Unread
from simclr_jax.errors import UserError
from simclr_jax.frame import decoding
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Net
from simclr_jax.losses import colour_bins
from simclr_jax.losses.batch import mean
from simclr_jax.losses.colour_bins import BINS, LARGEST
from simclr_jax.losses.reconstruction import squared_error
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs, Seen, Update

FORMS = ("bins", "regression")
MIDDLE = 60.0  # lightness at which colours are shown
OF_BINS = ("neighbours", "sigma", "alpha", "uniform")
PIXELS = 1024  # of an image, that are looked at to see whether it has colours


def recipe(config: ConfigDict) -> None:
    """Show the encoder no colours."""
    decoding.recipe(config)
    config.model.input = "lightness"


def unread(config: ConfigDict) -> dict[str, Unread]:
    """Return what regression does not read, and what no weights do not."""
    c = config.colourisation
    if c.form == "regression":
        why = Unread("colourisation.form=regression", "--config.colourisation.form=bins")
        return {f"colourisation.{name}": why for name in OF_BINS}
    if c.alpha == 0:
        why = Unread("colourisation.alpha=0", "--config.colourisation.alpha=1.0")
        return {"colourisation.uniform": why}
    return {}


def check(config: ConfigDict) -> None:
    """Raise `UserError` if the encoder sees colours, or the decoder does not reach its pixels."""
    if config.model.input not in (None, "lightness"):
        raise UserError(
            f"model.input is {config.model.input}, but method colourisation must not show the "
            "encoder the colours that it asks for: set --config.model.input=lightness"
        )
    decoding.check(config, config.colourisation.shrink)


def check_sample(config: ConfigDict, images: Sequence[np.ndarray]) -> None:
    """Raise `UserError` if none of some images has colours."""
    channels = images[0].shape[-1]
    if channels != 3:
        raise UserError(
            f"images have {channels} channel(s), and method colourisation learns from colours: "
            "give --data=FOLDER with images in colour, or another recipe"
        )
    pixels = [image.reshape(-1, 3) for image in images]
    places = [np.linspace(0, len(some) - 1, PIXELS).astype(int) for some in pixels]
    sample = np.stack([some[at] for some, at in zip(pixels, places, strict=True)])
    ab = rgb_to_lab(jnp.asarray(sample[:, None] / 255, jnp.float32))[..., 1:]
    if not has_colours(ab).any():
        raise UserError(
            f"none of {len(images)} training images looked at has colours, from which method "
            "colourisation learns: give --data=FOLDER with images in colour, or another recipe"
        )


DECLARATION = Declaration(
    title="Colourisation",
    views={"views": (1, 1)},
    recipe=recipe,
    fields={
        "form": Field("bins", "what is asked", f"one of {', '.join(FORMS)}", FORMS.__contains__),
        "width": decoding.WIDTH,
        "shrink": Field(
            4,
            "colours are asked for at this part of the side, as means",
            "1, 2, 4 or 8",
            lambda x: x in (1, 2, 4, 8),
        ),
        "neighbours": Field(
            10, "bins that a colour is spread over", "1 to 313", lambda x: 0 < x <= len(BINS)
        ),
        "sigma": Field(
            5.0, "deviation of that, in units of Lab", "greater than 0", lambda x: 0 < x < 1e6
        ),
        "alpha": Field(
            1.0, "how much rare colours weigh; 0: as all others", "0 to 4", lambda x: 0 <= x <= 4
        ),
        "uniform": Field(
            0.5, "share of equally frequent colours in that", "in [0, 1]", lambda x: 0 <= x <= 1
        ),
    },
    unread=unread,
    check=check,
    check_sample=check_sample,
    parts=(decoding.PART,),
    charts=(
        Chart(
            "Error of colours",
            {"loss": "loss", "blind_loss": "of who looks at no image"},
            caption="Of bins: of the frequencies of colours so far. Of regression: of gray.",
        ),
        Chart("Images with colours", {"coloured": "images with colours"}, True),
    ),
)


def colours(images: jax.Array, shrink: int) -> tuple[jax.Array, jax.Array]:
    """Return the colours that are asked for, and which images have any.

    Args:
      images: `[n, h, w, 3]`.
      shrink: a and b are means over squares of so many pixels.

    Returns:
      a and b `[n, h / shrink, w / shrink, 2]` and bool `[n]`.
    """
    ab = rgb_to_lab(images)[..., 1:]
    n, h, w, _ = ab.shape
    squares = ab.reshape(n, h // shrink, shrink, w // shrink, shrink, 2)
    return jnp.mean(squares, (2, 4)), has_colours(ab)


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build colourisation."""
    c = config.colourisation
    by_bins = c.form == "bins"

    def of_bins(logits: jax.Array, ab: jax.Array, extra: Extra) -> Outputs:
        """Return losses `[n]` and frequencies `[n, 313]` of images."""
        found = colour_bins.soft_encoded(ab, neighbours=c.neighbours, sigma=c.sigma)
        even = jnp.full(len(BINS), 1 / len(BINS), found.share.dtype)
        prior = extra["prior"] if extra else even
        weights = colour_bins.rebalancing(prior, alpha=c.alpha, uniform=c.uniform)
        weight = colour_bins.weight_of(found, weights)  # [n, h, w]
        plain = colour_bins.cross_entropy(logits, found)
        # The best that can be said of all pixels alike: how frequent each bin is, times its weight.
        guess = jnp.log(prior * weights / jnp.sum(prior * weights))
        blind = -jnp.sum(found.share * guess[found.bins], -1)
        return {
            "error": jnp.mean(weight * plain, (1, 2)),
            "blind": jnp.mean(weight * blind, (1, 2)),
            "plain": jnp.mean(plain, (1, 2)),
            "frequency": found.spread(),
        }

    def of_regression(made: jax.Array, ab: jax.Array) -> Outputs:
        wanted = ab / LARGEST
        blind = squared_error(jnp.zeros_like(wanted), wanted)
        return {"error": squared_error(made, wanted), "blind": blind}

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        images = views["views"][:, 0]
        taps, made = decoding.answer(net, images)
        ab, coloured = colours(images, c.shrink)
        found = of_bins(made, ab, extra) if by_bins else of_regression(made, ab)
        return {"taps": taps, "coloured": coloured.astype(ab.dtype), **found}

    def loss(
        outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        def of_all(name: str) -> jax.Array:  # images without colours count as losing nothing
            return mean(outputs[name] * outputs["coloured"], axis_name=axis_name)

        metrics = {
            "blind_loss": of_all("blind"),
            "coloured": mean(outputs["coloured"], axis_name=axis_name),
        }
        if by_bins:
            metrics["cross_entropy"] = of_all("plain")
        return of_all("error"), metrics

    def first(outputs: Outputs, key: jax.Array) -> Extra:
        if not by_bins:
            return {}
        return {"prior": jnp.full(len(BINS), 1 / len(BINS), outputs["frequency"].dtype)}

    def next_extra(extra: Extra, update: Update) -> Extra:
        if not by_bins:
            return {}
        seen, coloured = update.outputs["frequency"], update.outputs["coloured"]
        total, count = lax.psum((coloured @ seen, jnp.sum(coloured)), parallel.AXIS)
        prior = extra["prior"]
        moved = prior + (total / jnp.maximum(count, 1) - prior) / (update.step + 2)
        return {"prior": jnp.where(count > 0, moved, prior).astype(prior.dtype)}

    def show(views: Views, keys: Keys) -> Seen:
        images = views["views"][:, 0]
        ab, coloured = colours(images, c.shrink)
        light = jnp.full((*ab.shape[:-1], 1), MIDDLE, ab.dtype)
        asked = lab_to_rgb(jnp.concatenate([light, ab], -1))
        given = rgb_to_lab(images)[..., :1] / 100
        answers = ["its colours" if some else "gray, counts for nothing" for some in coloured]
        return Seen({"given": given[:, None], "colours": asked[:, None]}, answers)

    def paint(net: Net, views: Views, keys: Keys) -> Mapping[str, jax.Array]:
        images = views["views"][:, 0]
        made = decoding.answer(net, images, train=False)[1]
        ab = colour_bins.annealed_mean(made) if by_bins else LARGEST * made
        light = rgb_to_lab(images)[..., :1]
        ab = jax.image.resize(ab, (*light.shape[:-1], 2), "bilinear")
        painted = lab_to_rgb(jnp.concatenate([light, ab.astype(light.dtype)], -1))
        return {"given": light / 100, "made": painted, "wanted": images}

    formats = {"loss": "loss {:.4f}", "blind_loss": "blind {:.4f}"}
    outputs = len(BINS) if by_bins else 2
    return Method(
        forward=forward,
        loss=loss,
        modules={decoding.PART: decoding.decoder(config, outputs, c.shrink)},
        formats=formats,
        show=show,
        paint=paint,
        first=first,
        next=next_extra,
    )
