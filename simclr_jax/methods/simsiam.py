"""SimSiam: each view predicts what the same network makes of the other one (arXiv 2011.10566).

As facebookresearch/simsiam runs it: both views pass one after the other, each normalised by its own
statistics, and no gradient flows into what is predicted. The projector ends in a normalisation
without scale and offset, and the bias before that keeps its first value; the predictor is a
bottleneck whose rate stays at the peak while that of all else falls.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from simclr_jax.declaration import TWO_AND_LOCAL, Declaration, Field
from simclr_jax.errors import UserError
from simclr_jax.frame import local_crops, modules
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Net, apart, project
from simclr_jax.losses import multi_crop
from simclr_jax.losses.simsiam import negative_cosine
from simclr_jax.recipes import head_layers
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs


def recipe(config: ConfigDict) -> None:
    """Set heads, views and optimiser of the paper (its section 3)."""
    config.head.kind, config.head.layers = "mlp", 3
    config.head.hidden, config.head.dim = 0, 2048  # 0: as wide as h
    config.head.bias, config.head.norm = "last", "all_plain"
    config.model.input = "normalised"
    config.optim.name, config.optim.nesterov = "sgd", False
    config.optim.base_lr, config.optim.lr_scaling = 0.05, "linear"
    config.optim.weight_decay, config.optim.decayed = 1e-4, "all"
    config.optim.warmup_epochs, config.optim.rate_per = 0.0, "epoch"
    for view in config.augment.views.values():  # MoCo v2's
        view.area_min = 0.2
        view.brightness = view.contrast = view.saturation = 0.4
        view.hue = 0.1


def check(config: ConfigDict) -> None:
    """Raise `UserError` if there is nothing to predict from."""
    if config.head.kind == "none":
        raise UserError(
            "head.kind is none, but simsiam predicts projections: set --config.head.kind=mlp"
        )


DECLARATION = Declaration(
    title="SimSiam",
    views=TWO_AND_LOCAL,
    recipe=recipe,
    reads=("head",),
    check=check,
    fields={
        "hidden": Field(512, "width inside the predictor", "1 or more", lambda x: x > 0),
        "constant_rate": Field(True, "of the predictor (official flag --fix-pred-lr)"),
    },
    # Predictions at right angles to their targets, as they are on average before training.
    chance=lambda config: 0.0,
    floor=lambda config: -1.0,
    parts=("predictor",),
)


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build SimSiam."""
    c, still = config.simsiam, ("head", f"dense{head_layers(config)}", "bias")

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        taps = [project(net, view) for view in apart(views["views"])]
        z = [tap[-1][:, 0] for tap in taps]  # [n, dim] each
        return {
            "taps": [jnp.concatenate(layer, axis=1) for layer in zip(*taps, strict=True)],
            "z": z,
            "prediction": [net("predictor", one)[-1] for one in z],
            **local_crops.asking(net, views, "predictor"),
        }

    def loss(
        outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        p, z = [*outputs["prediction"], *local_crops.of(outputs)], outputs["z"]
        terms = [
            negative_cosine(p[crop], z[target], axis_name=axis_name)
            for crop, target in multi_crop.pairs(len(p))
        ]
        return multi_crop.both(terms) / 2, {}

    return Method(
        forward=forward,
        loss=loss,
        modules={"predictor": modules.mlp(config, c.hidden, config.head.dim, bias="last")},
        formats={"loss": "loss {:.4f}"},
        rates={"predictor": setting.peak} if c.constant_rate else {},
        learns=lambda path: path != still,
    )
