"""Supervised contrastive learning: images of one class find each other (arXiv 2004.11362).

As HobbitLong/SupContrast runs it (`main_supcon.py`): any number of views of an image pass together,
and the positives of each are all views of all images of its class in the batch of all devices. An
image without label has its own other views for positives, and is a negative of all others.
"""

from __future__ import annotations

import math

import jax
from ml_collections import ConfigDict

from simclr_jax.declaration import LOCAL, Chart, Declaration, Field
from simclr_jax.frame import local_crops
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Net, by_view, project
from simclr_jax.losses.supervised_contrastive import ANCHORS, supervised_contrastive
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs

FOUND = "How often the nearest of all other views of the batch is of the same class."


def recipe(config: ConfigDict) -> None:
    """Set head, views and optimiser of the official program, but for what is of its data."""
    config.head.kind, config.head.layers = "mlp", 2
    config.head.bias, config.head.norm = "all", "none"
    config.model.input = "normalised"
    config.loss.temperature = 0.1
    config.optim.name, config.optim.nesterov, config.optim.decayed = "sgd", False, "all"
    config.optim.base_lr, config.optim.lr_scaling = 0.5, "none"
    config.optim.warmup_epochs, config.optim.rate_per = 10.0, "epoch"
    config.augment.crop_law = "area"
    for view in config.augment.views.values():
        view.area_min, view.blur = 0.2, 0.0
        view.brightness = view.contrast = view.saturation = 0.4
        view.hue = 0.1


def chance(config: ConfigDict) -> float:
    """Return the loss of embeddings that are all equal, whatever the labels are.

    A local crop is no candidate, so it has one more of them than a view.
    """
    policies = config.augment.views.values()
    local = sum(view.copies for view in policies if view.group == LOCAL)
    views = sum(view.copies for view in policies) - local
    whole = views if config.supcon.anchors == "all" else 1
    scale = config.loss.temperature / config.supcon.base_temperature
    candidates = views * config.train.batch_size
    of_views, of_local = math.log(candidates - 1), math.log(candidates)
    return scale * (whole * of_views + local * of_local) / (whole + local)


DECLARATION = Declaration(
    title="Supervised contrastive",
    views={"views": (2, None), LOCAL: (0, None)},
    recipe=recipe,
    reads=("head", "loss.temperature"),
    labels=True,
    fields={
        "base_temperature": Field(
            0.07,
            "of which the temperature is a multiple in the loss",
            "a number, 1e-6 or more",
            lambda x: 1e-6 <= x < math.inf,
        ),
        "anchors": Field(
            "all",
            "which views: all, or first ones",
            f"one of {', '.join(ANCHORS)}",
            ANCHORS.__contains__,
        ),
    },
    chance=chance,
    # It depends on how many images of a batch are of one class: with two classes it is not far
    # below chance.
    floor=lambda config: None,
    charts=(Chart("Class found", {"class_accuracy": "class found"}, True, FOUND),),
)


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build supervised contrastive learning."""

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        taps = project(net, views["views"])  # [n, v, d] each, all views in one forward pass
        local = local_crops.asking(net, views)
        return {"taps": taps, "z": taps[-1], "label": batch["label"], **local}

    def loss(
        outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        share, metrics = supervised_contrastive(
            by_view(outputs["z"]),
            outputs["label"],
            temperature=config.loss.temperature,
            base_temperature=config.supcon.base_temperature,
            anchors=config.supcon.anchors,
            local=local_crops.of(outputs),
            axis_name=axis_name,
        )
        # Not `contrast_accuracy`, of which more may be too much: here it is what is wanted.
        return share, {"class_accuracy": metrics["contrast_accuracy"]}

    return Method(
        forward=forward,
        loss=loss,
        formats={"loss": "loss {:.3f}", "class_accuracy": "class found {:.1%}"},
    )
