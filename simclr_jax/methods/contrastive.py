"""Two views, one network, and a loss by name: those that need nothing kept beside the parameters.

All is SimCLR's but the loss, which `contrastive.loss` chooses from `losses/`. Every one of them
compares by cosine, has both views of each image as anchors, and its negatives from the batch of all
devices. InfoNCE asks in both directions, each view among the other views, and its metrics are those
of the first one; where one direction is wanted, `losses.info_nce` is it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from simclr_jax.declaration import TWO_AND_LOCAL, Chart, Declaration, Field, Unread
from simclr_jax.frame import local_crops
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Net, by_view, project
from simclr_jax.losses import debiased, decoupled, info_nce, margin, nt_logistic, two_views
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs

Settings = dict[str, Any]  # of a loss beside its scale, by the names of its arguments
FOUND = "How often the other view of an image is nearer than the other views of all other images."


class Choice(NamedTuple):
    """A loss that may be chosen.

    Attributes:
      loss: `(z1, z2, *, local, scale, axis_name, **settings)` to this device's share and metrics.
      reads: names of the settings: `temperature`, which is `loss.temperature`, and fields of the
        group.
      chance: from images of a global batch, scale and settings to the loss of an encoder that has
        learned nothing, None if that says nothing of a run.
      floor: likewise to that of views which are equal, at right angles to all others.
    """

    loss: Callable[..., tuple[jax.Array, Metrics]]
    reads: tuple[str, ...]
    chance: Callable[[int, str, Settings], float | None]
    floor: Callable[[int, str, Settings], float]


def both_directions(
    z1: jax.Array,
    z2: jax.Array,
    *,
    temperature: float,
    scale: str,
    axis_name: str | None,
    local: Sequence[jax.Array] = (),
) -> tuple[jax.Array, Metrics]:
    """Return InfoNCE from first views to second ones and back: the sum, or the mean of the two.

    Local crops ask in both directions.
    """
    how: dict[str, Any] = {"temperature": temperature, "local": local, "axis_name": axis_name}
    there, told = info_nce.info_nce(z1, z2, **how)
    back, other = info_nce.info_nce(z2, z1, **how)
    mean = (told["loss_mean"] + other["loss_mean"]) / 2
    return (there + back) * two_views.times(scale) / 2, told | {"loss_mean": mean}


def _margin_chance(n: int, scale: str, s: Settings) -> float | None:
    """Know none of semi-hard negatives.

    Once the partner is among the nearest of hundreds of views, the one negative that counts is
    still hardly farther than it, and the loss nearly the margin.
    """
    return None if s["negatives"] == "semi_hard" else margin.chance(n, scale=scale, **s)


def _nt_logistic_chance(n: int, scale: str, s: Settings) -> None:
    """Know none: embeddings that are all equal lose about 1/t, those at right angles twice log 2.

    A run begins near the first, and may be above the second long after it has begun to learn.
    """


def _decoupled_floor(n: int, scale: str, s: Settings) -> float:
    return decoupled.floor(n, temperature=s["temperature"], scale=scale)


def _debiased_floor(n: int, scale: str, s: Settings) -> float:
    how = {name: s[name] for name in ("temperature", "tau_plus")}
    return debiased.floor(n, scale=scale, **how)


LOSSES = {
    "info_nce": Choice(
        both_directions,
        ("temperature",),
        lambda n, scale, s: two_views.times(scale) * info_nce.chance(n),
        lambda n, scale, s: two_views.times(scale) * info_nce.floor(n, **s),
    ),
    "decoupled": Choice(
        decoupled.decoupled,
        ("temperature",),
        lambda n, scale, s: decoupled.chance(n, scale=scale),
        _decoupled_floor,
    ),
    "decoupled_weighted": Choice(
        decoupled.decoupled,
        ("temperature", "sigma"),
        lambda n, scale, s: decoupled.chance(n, scale=scale),
        _decoupled_floor,
    ),
    "debiased": Choice(
        debiased.debiased,
        ("temperature", "tau_plus"),
        lambda n, scale, s: debiased.chance(n, scale=scale),
        _debiased_floor,
    ),
    "hard_negative": Choice(
        debiased.debiased,
        ("temperature", "tau_plus", "beta"),
        lambda n, scale, s: debiased.chance(n, scale=scale),
        _debiased_floor,
    ),
    "margin": Choice(
        margin.margin_loss,
        ("margin", "negatives"),
        _margin_chance,
        lambda n, scale, s: margin.floor(n, scale=scale, **s),
    ),
    "nt_logistic": Choice(
        nt_logistic.nt_logistic,
        ("temperature", "negatives", "margin"),
        _nt_logistic_chance,
        lambda n, scale, s: nt_logistic.floor(n, scale=scale, **s),
    ),
}


def settings(config: ConfigDict) -> Settings:
    """Return what the loss of a recipe reads."""
    c = config.contrastive
    found = {
        name: config.loss.temperature if name == "temperature" else c[name]
        for name in LOSSES[c.loss].reads
    }
    if c.loss == "nt_logistic" and c.negatives != "semi_hard":
        del found["margin"]  # which says what is semi-hard
    return found


def recipe(config: ConfigDict) -> None:
    """Set the scale that most of the sources have."""
    config.loss.scale = "mean"


def unread(config: ConfigDict) -> dict[str, Unread]:
    """Return the fields that the loss of a recipe does not read."""
    chosen, read, found = config.contrastive.loss, settings(config), {}
    fields = {name: f"contrastive.{name}" for name in DECLARATION.fields if name != "loss"}
    for name, field in ({"temperature": "loss.temperature"} | fields).items():
        if name in read:
            continue
        if chosen == "nt_logistic" and name == "margin":
            who, instead = "nt_logistic without semi-hard negatives", "negatives=semi_hard"
        else:
            readers = [other for other, choice in LOSSES.items() if name in choice.reads]
            who, instead = f"contrastive.loss={chosen}", f"loss={readers[0]}"
        found[field] = Unread(who, f"--config.contrastive.{instead}")
    return found


def chance(config: ConfigDict) -> float | None:
    """Return the loss of an encoder that has learned nothing; see `Choice`."""
    c = config.contrastive
    return LOSSES[c.loss].chance(config.train.batch_size, config.loss.scale, settings(config))


def floor(config: ConfigDict) -> float:
    """Return the loss of two views that are equal, and at right angles to all others."""
    c = config.contrastive
    return LOSSES[c.loss].floor(config.train.batch_size, config.loss.scale, settings(config))


DECLARATION = Declaration(
    title="Contrastive",
    views=TWO_AND_LOCAL,
    recipe=recipe,
    reads=("head", "loss.temperature", "loss.scale"),
    unread=unread,
    fields={
        "loss": Field("info_nce", "which", f"one of {', '.join(LOSSES)}", LOSSES.__contains__),
        "sigma": Field(
            0.5,
            "of decoupled_weighted: temperature of the weights of pairs",
            "a number, 1e-6 or more",
            lambda x: 1e-6 <= x < math.inf,
        ),
        "tau_plus": Field(
            0.1,
            "of debiased and hard_negative: how likely a negative is of the anchor's class",
            "in [0, 1)",
            lambda x: 0 <= x < 1,
        ),
        "beta": Field(
            1.0,
            "of hard_negative: how much more hard negatives weigh",
            "a number, 0 or more",
            lambda x: 0 <= x < math.inf,
        ),
        "margin": Field(
            0.4,
            "of margin, and of semi-hard negatives: a difference of cosines",
            "a number greater than 0",
            lambda x: 0 < x < math.inf,
        ),
        "negatives": Field(
            "mean",
            "of margin and nt_logistic: how the terms of an anchor's negatives are joined",
            f"one of {', '.join(two_views.NEGATIVES)}",
            two_views.NEGATIVES.__contains__,
        ),
    },
    chance=chance,
    floor=floor,
    charts=(Chart("Partner found", {"contrast_accuracy": "partner found"}, True, FOUND),),
)


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build the method with the loss of the recipe."""
    share, scale, how = LOSSES[config.contrastive.loss].loss, config.loss.scale, settings(config)
    shown = "loss {:.3f} (mean {loss_mean:.3f})" if scale == "sum" else "loss {:.3f}"

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        taps = project(net, views["views"])  # [n, 2, d] each, both views in one forward pass
        return {"taps": taps, "z": taps[-1], **local_crops.asking(net, views)}

    def loss(
        outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        local = local_crops.of(outputs)
        return share(*by_view(outputs["z"]), local=local, scale=scale, axis_name=axis_name, **how)

    return Method(
        forward=forward,
        loss=loss,
        formats={"loss": shown, "contrast_accuracy": "partner found {:.1%}"},
    )
