"""Rotation: by how many quarter turns was this image turned? (Gidaris et al. 2018, 1803.07728)

All four turns of every image stand in the batch (FeatureLearningRotNet `dataloader.py`), and a
linear layer on h tells them apart. Labels are made of the images; the probe reads the unturned one.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from simclr_jax import recipes
from simclr_jax.augment.geometry import quarter_turns
from simclr_jax.declaration import Chart, Declaration
from simclr_jax.frame import modules
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Net, project
from simclr_jax.losses.cross_entropy import cross_entropy
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs, Seen

TURNS = 4


def recipe(config: ConfigDict) -> None:
    """Leave one view, of crop and flip, and no projection head."""
    config.head.kind = "none"
    config.optim.name, config.optim.base_lr = "sgd", 0.1
    config.optim.lr_scaling, config.optim.weight_decay = "none", 5e-4
    recipes.crop_and_flip(config)


DECLARATION = Declaration(
    title="Rotation",
    views={"views": (1, 1)},
    recipe=recipe,
    chance=lambda config: math.log(TURNS),
    parts=("turn",),
    charts=(Chart("Turn found", {"turn_accuracy": "turn found"}, True),),
)


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build rotation."""

    def look(views: Views, keys: Keys) -> Views:
        return {"views": quarter_turns(views["views"][:, 0])}  # [n, 4, h, w, c]

    def show(views: Views, keys: Keys) -> Seen:
        turns = ", ".join(str(90 * k) for k in range(TURNS))
        return Seen(views, [f"turned by {turns} degrees"] * len(views["views"]))

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        taps = project(net, views["views"])  # [n, 4, d] each
        return {"taps": [tap[:, :1] for tap in taps], "logits": net("turn", taps[0])}

    def loss(
        outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        logits = outputs["logits"]  # [n, 4 views, 4 turns]
        turn = jnp.tile(jnp.arange(TURNS), len(logits))  # [n * 4]
        found, accuracy = cross_entropy(logits.reshape(-1, TURNS), turn, axis_name=axis_name)
        return found, {"turn_accuracy": accuracy}

    return Method(
        forward=forward,
        loss=loss,
        modules={"turn": modules.classifier(config, TURNS)},
        look=look,
        show=show,
        formats={"loss": "loss {:.4f}", "turn_accuracy": "turn found {:.1%}"},
    )
