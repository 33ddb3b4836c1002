"""BYOL: a network predicts what a moving average of it sees in the other view (arXiv 2006.07733).

As deepmind-research `byol/byol_experiment.py` runs it: both views pass one after the other, each
normalised by its own statistics; the target starts from other random values than the network, is
run in train mode and has batch statistics of its own; its momentum rises to 1 as a cosine. Their
online classifier is our probe. The target there has a predictor too, which nothing reads.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from simclr_jax.declaration import TWO_AND_LOCAL, Chart, Declaration, Field
from simclr_jax.errors import UserError
from simclr_jax.frame import local_crops, modules
from simclr_jax.frame.average import Average
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Averages, Net, apart, project
from simclr_jax.losses import multi_crop
from simclr_jax.losses.byol import regression
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs


def recipe(config: ConfigDict) -> None:
    """Set head and views of the paper (its table 6 and appendix B)."""
    config.head.kind, config.head.layers = "mlp", 2
    config.head.hidden, config.head.dim = 4096, 256
    config.model.input = "normalised"
    config.optim.rate_after_momentum = config.optim.adapt_classifier = True
    config.augment.brightness_mode = "add"
    for view in config.augment.views.values():
        view.brightness = view.contrast = 0.4
        view.saturation, view.hue = 0.2, 0.1
    config.augment.views.first.blur = 1.0
    config.augment.views.second.blur, config.augment.views.second.solarize = 0.1, 0.2


def check(config: ConfigDict) -> None:
    """Raise `UserError` if there is nothing to predict from."""
    if config.head.kind == "none":
        raise UserError(
            "head.kind is none, but byol predicts projections: set --config.head.kind=mlp"
        )


DECLARATION = Declaration(
    title="BYOL",
    views=TWO_AND_LOCAL,
    recipe=recipe,
    reads=("head",),
    check=check,
    fields={
        "momentum": Field(0.996, "of the target at the start", "in [0, 1]", lambda x: 0 <= x <= 1),
        "hidden": Field(4096, "width inside the predictor", "1 or more", lambda x: x > 0),
    },
    # Predictions at right angles to their targets, 2 each way, as they are on average before
    # training. (Those that have collapsed are at 0: that is for the effective rank to tell.)
    chance=lambda config: 4.0,
    parts=("predictor",),
    charts=(Chart("Momentum of the target", {"target_momentum": "momentum"}),),
)


def momentum(base: float, share: optax.Schedule, step: jax.Array) -> jax.Array:
    """Return the target's momentum: official `byol/utils/schedules.py: target_ema`.

    `share` says how much of the run, or of a segment that extends it, is done at a step.
    """
    return 1 - (1 - base) * (jnp.cos(jnp.pi * share(step)) + 1) / 2


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build BYOL."""
    c = config.byol
    tau = functools.partial(momentum, c.momentum, setting.done)

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        taps = [project(net, view) for view in apart(views["views"])]
        return {
            "taps": taps[0],  # of first views, as officially
            "prediction": [net("predictor", tap[-1][:, 0])[-1] for tap in taps],  # [n, dim]
            **local_crops.asking(net, views, "predictor"),
        }

    def watch(averages: Averages, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        seen = apart(views["views"])
        return {"target": [project(averages["target"], view)[-1][:, 0] for view in seen]}

    def loss(
        outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        p, z = [*outputs["prediction"], *local_crops.of(outputs)], outputs["target"]
        terms = [
            regression(p[crop], z[target], axis_name=axis_name)
            for crop, target in multi_crop.pairs(len(p))
        ]
        return multi_crop.both(terms), {
            "target_momentum": tau(keys.step) / jax.lax.axis_size(axis_name)
        }

    return Method(
        forward=forward,
        loss=loss,
        modules={"predictor": modules.mlp(config, c.hidden, config.head.dim)},
        formats={"loss": "loss {:.4f}"},
        averages={"target": Average(("encoder", "head"), tau, other_start=True)},
        watch=watch,
    )
