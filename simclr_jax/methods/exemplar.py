"""Exemplar: each image is a class of its own, whose members are versions of it.

Two forms. "classes": a linear layer on h tells the images apart by their numbers (Dosovitskiy et
al. 2014, arXiv 1406.6909). "triplet": versions of an image lie nearer to one another than to those
of other images, in an embedding of 1000 numbers (google/revisiting-self-supervised `exemplar.py`).
Published are 8000 seed patches with 150 versions each, made once; here every epoch makes new ones.
"""

from __future__ import annotations

import math

import jax
from jax import lax
from ml_collections import ConfigDict

from simclr_jax.declaration import Chart, Declaration, Field, Unread
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Net, by_view, project
from simclr_jax.losses import triplet
from simclr_jax.losses.cross_entropy import cross_entropy
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs, Seen

FORMS = ("classes", "triplet")
MOST_CLASSES = 100_000  # each is a row of the classifier, and a logit of each view
NORMALIZED = ("rows", "batch")
FOUND = "Of versions: own image found among all; of triplets: other images farther by the margin."


def recipe(config: ConfigDict) -> None:
    """Leave one policy that makes several versions of an image, and no projection head."""
    config.head.kind = "none"
    config.optim.name, config.optim.base_lr = "sgd", 0.1
    config.optim.lr_scaling, config.optim.weight_decay = "none", 1e-4
    with config.unlocked():
        del config.augment.views["second"]
    config.augment.views.first.copies = 4


def unread(config: ConfigDict) -> dict[str, Unread]:
    """Return the fields of the triplet in recipes of the other form."""
    if config.exemplar.form == "triplet":
        return {}
    why = Unread(f"exemplar.form={config.exemplar.form}", "--config.exemplar.form=triplet")
    return {f"exemplar.{name}": why for name in ("margin", "dim", "normalize")}


def check(config: ConfigDict) -> None:
    """Raise `UserError` for triplets without a positive, or without a negative."""
    copies = sum(view.copies for view in config.augment.views.values() if view.copies)
    if config.exemplar.form == "triplet" and copies < 2:
        raise UserError(
            f"exemplar.form is triplet, but an image has {copies} view(s), which is nearer to "
            "nothing: set --config.augment.views.first.copies=2 or more"
        )
    if config.exemplar.form == "triplet" and config.train.batch_size == 1:
        raise UserError(
            "train.batch_size is 1, but exemplar.form=triplet asks for versions of other images: "
            "set --config.train.batch_size=2 or more"
        )


def chance(config: ConfigDict, examples: int) -> float:
    """Return the loss of embeddings that are all equal."""
    c = config.exemplar
    return c.margin if c.form == "triplet" else math.log(examples)


DECLARATION = Declaration(
    title="Exemplar",
    views={"views": (1, None)},
    recipe=recipe,
    fields={
        "form": Field("classes", "of the task", f"one of {', '.join(FORMS)}", FORMS.__contains__),
        "margin": Field(0.5, "of squared distances, in triplets", "above 0", lambda x: x > 0),
        "dim": Field(1000, "numbers of the embedding of triplets", "1 or more", lambda x: x > 0),
        "normalize": Field(
            "rows",
            "what has length 1: each embedding, or as in Google's code each number over the batch",
            f"one of {', '.join(NORMALIZED)}",
            NORMALIZED.__contains__,
        ),
    },
    unread=unread,
    check=check,
    of_images=True,
    chance=chance,
    floor=lambda config, examples: 0.0,
    parts=("exemplar",),
    charts=(Chart("Exemplar found", {"exemplar_accuracy": "exemplar found"}, True, FOUND),),
)


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build exemplar.

    Raises:
      UserError: if there are more images than there can be classes.
    """
    c, classes = config.exemplar, setting.examples
    triplets = c.form == "triplet"
    if not triplets and classes > MOST_CLASSES:
        raise UserError(
            f"there are {classes} images, and exemplar.form=classes makes a class of each, at most "
            f"{MOST_CLASSES}: give fewer by --config.data.split, or set "
            "--config.exemplar.form=triplet"
        )

    def show(views: Views, keys: Keys) -> Seen:
        asked = "nearer to one another than to others" if triplets else f"which of {classes}?"
        return Seen(views, [asked] * len(views["views"]))

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        taps = project(net, views["views"])  # [n, v, d]
        # [n, v, classes], or [n, v, dim]
        found = net("exemplar", taps[0])
        return {"taps": taps, "found": found, "example": batch["example"]}

    def of_classes(outputs: Outputs, axis_name: str) -> tuple[jax.Array, Metrics]:
        found = outputs["found"]
        example = outputs["example"].repeat(found.shape[1])  # [n * v]
        logits = found.reshape(-1, found.shape[2])
        value, accuracy = cross_entropy(logits, example, axis_name=axis_name)
        return value, {"exemplar_accuracy": accuracy}

    def of_triplets(outputs: Outputs, axis_name: str) -> tuple[jax.Array, Metrics]:
        value, told = triplet.semi_hard(
            by_view(outputs["found"]),
            outputs["example"],
            margin=c.margin,
            distance="squared-L2",
            normalize=c.normalize,
            axis_name=axis_name,
        )
        apart = 1 / lax.axis_size(axis_name) - told["active_triplets"]
        return value, {"exemplar_accuracy": apart}

    def loss(
        outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        return (of_triplets if triplets else of_classes)(outputs, axis_name)

    return Method(
        forward=forward,
        loss=loss,
        modules={"exemplar": modules.classifier(config, c.dim if triplets else classes)},
        show=show,
        formats={"loss": "loss {:.4f}", "exemplar_accuracy": "exemplar found {:.1%}"},
    )
