"""Counting: how much a half-size image holds is the sum over its tiles (Noroozi et al. 2017).

What is counted nobody says: the network has 1000 outputs that are not negative, and those of the
four tiles of an image must add up to those of the whole of it at half its size, which has as many
pixels as a tile. Another image of the batch must lie apart, or all counts would be 0. Source of the
law: arXiv 1708.06734, equation 5; there is no code of the authors.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from simclr_jax import recipes
from simclr_jax.augment import tiles
from simclr_jax.declaration import Chart, Declaration, Field
from simclr_jax.errors import UserError
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Net, project
from simclr_jax.losses import counting
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs, Seen

DOWNSAMPLING = ("random", *tiles.KERNELS)
FOUND = "How often the counts of an image's tiles add up to something nearer to it than to another."


def recipe(config: ConfigDict) -> None:
    """Leave one view of crop and flip, often gray, and the head of AlexNet's last three layers."""
    config.head.kind, config.head.layers = "mlp", 3
    config.head.hidden, config.head.dim = 4096, 1000
    config.head.bias, config.head.norm = "all", "none"
    config.optim.name, config.optim.base_lr = "sgd", 0.01
    config.optim.lr_scaling, config.optim.weight_decay = "none", 5e-4
    recipes.crop_and_flip(config)
    config.augment.views.first.grayscale = 0.67


def check(config: ConfigDict) -> None:
    """Raise `UserError` where nothing counts, or an image has no four tiles."""
    if config.head.kind == "none":
        raise UserError(
            "head.kind is none, but counting takes what the head makes for counts: set "
            "--config.head.kind=mlp"
        )
    for name, view in config.augment.views.items():
        field = f"augment.views.{name}.size" if view.size is not None else "data.image_size"
        side = config.data.image_size if view.size is None else view.size
        if side is not None and side % 2:
            raise UserError(
                f"{field} is {side}, but counting cuts a view into four equal tiles: set "
                f"--config.{field}={side + 1}"
            )
    if config.train.batch_size is not None and config.train.batch_size < 2:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}, but counting compares an image with "
            "another one of the batch: set --config.train.batch_size=2 or more"
        )


DECLARATION = Declaration(
    title="Counting",
    views={"views": (1, 1)},
    recipe=recipe,
    reads=("head",),
    fields={
        "margin": Field(
            10.0, "how far, squared, another image must be", "above 0", lambda x: x > 0
        ),
        "form": Field(
            "length",
            "of what there is a square and a hinge: all counts together, or each",
            f"one of {', '.join(counting.FORMS)}",
            counting.FORMS.__contains__,
        ),
        "downsampling": Field(
            "random",
            "by which kernel an image is halved",
            f"one of {', '.join(DOWNSAMPLING)}",
            DOWNSAMPLING.__contains__,
        ),
    },
    check=check,
    chance=lambda config: config.counting.margin,
    charts=(Chart("Counts that add up", {"counting_accuracy": "own image nearer"}, True, FOUND),),
)


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build counting."""
    c = config.counting

    def look(views: Views, keys: Keys) -> Views:
        view = views["views"][:, 0]  # [n, h, w, c]
        if c.downsampling == "random":
            half = tiles.halved_at_random(view, keys.of_rows("downsampling"))
        else:
            half = tiles.halved(view, c.downsampling)
        both = [half[:, None], tiles.quarters(view)]
        return {"views": jnp.concatenate(both, axis=1)}  # [n, 5, h / 2, w / 2, c]

    def show(views: Views, keys: Keys) -> Seen:
        five = views["views"]
        asked = "does it hold as much as its four tiles together?"
        return Seen({"half": five[:, :1], "tiles": five[:, 1:]}, [asked] * len(five))

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        counts = jax.nn.relu(project(net, views["views"])[-1])  # [n, 5, d]
        return {
            "whole": counts[:, 0],
            "tiles": counts[:, 1:],
            "example": batch["example"],
        }

    def loss(
        outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        whole, example = outputs["whole"], outputs["example"]
        return counting.counting(
            whole,
            outputs["tiles"],
            counting.of_image_before(whole, axis_name),
            margin=c.margin,
            form=c.form,
            apart=example != counting.of_image_before(example, axis_name),
            axis_name=axis_name,
        )

    return Method(
        forward=forward,
        loss=loss,
        look=look,
        show=show,
        probed="views",  # at the size that is judged
        formats={"loss": "loss {:.4f}", "counting_accuracy": "own image nearer {:.1%}"},
    )
