"""MoCo: a query must find its key among the keys of earlier batches (arXiv 1911.05722, 2003.04297).

As facebookresearch/moco runs it (`moco/builder.py: MoCo.forward`): first views are queries of the
network, second ones keys of its moving average, which has batch statistics of its own; the loss
looks at the queue before the batch's keys enter it; the queue starts with random directions, and an
image's own older keys are negatives. There the average moves before the keys are made, towards
parameters that the step before has updated; here at the end of that step, which is the same.

Local crops, if there are any, are more queries of the same keys, and never keys themselves, as in
facebookresearch/asym-siam `moco/builder.py`, which weighs them otherwise.

Each network is normalised by groups of images (`bn.groups`, there one on each device); those of the
keys are shuffled, so that statistics do not tell which images go together. With one group there is
nothing to shuffle.
"""

from __future__ import annotations

import math

import jax
import numpy as np
from ml_collections import ConfigDict

from simclr_jax import declaration
from simclr_jax.declaration import TWO_AND_LOCAL, Chart, Declaration, Field
from simclr_jax.errors import UserError
from simclr_jax.frame import local_crops
from simclr_jax.frame.average import Average
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Averages, Net, check_shuffling, project
from simclr_jax.frame.queue import Queue, check_size, rows_of
from simclr_jax.losses.queue_contrast import queue_contrast
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs, Update

FOUND = "How often the key of an image is nearer to its query than all keys of the queue."


def recipe(config: ConfigDict) -> None:
    """Set head, groups, views and optimiser of MoCo v2 (arXiv 2003.04297, and its program)."""
    config.head.kind, config.head.layers = "mlp", 2
    config.head.bias, config.head.norm = "all", "none"
    config.bn.groups, config.bn.unbiased_moving = 8, True
    config.loss.temperature = 0.2
    config.model.input = "normalised"
    config.optim.name, config.optim.nesterov, config.optim.decayed = "sgd", False, "all"
    config.optim.base_lr, config.optim.lr_scaling = 0.03, "linear"
    config.optim.warmup_epochs, config.optim.rate_per = 0.0, "epoch"
    config.augment.crop_law = "area"
    for view in config.augment.views.values():
        view.area_min = 0.2
        view.brightness = view.contrast = view.saturation = 0.4
        view.hue = 0.1


def first_version(config: ConfigDict) -> None:
    """Set what MoCo v1 has otherwise (arXiv 1911.05722, and its program)."""
    config.head.layers = 1
    config.loss.temperature = 0.07
    config.optim.rate_per, config.optim.drops = "step", "120,160"
    for view in config.augment.views.values():
        view.blur, view.jitter, view.hue = 0.0, 1.0, 0.4
        view.grayscale_first = True


def chance(config: ConfigDict) -> float:
    """Return the loss of embeddings that are all equal, once the queue is full of them."""
    return math.log(1 + own(config).queue)


def chance_at(config: ConfigDict, steps: np.ndarray) -> np.ndarray:
    """Return the loss of embeddings that are all equal, after so many steps, `[n]`.

    Each row of theirs in the queue counts as much as the key; a random one, at right angles to
    them as almost all directions are, e^(-1/t) of that.
    """
    queue = own(config).queue
    pushed = Queue(queue).pushed(config.train.batch_size, steps)
    return np.log1p(pushed + (queue - pushed) * _apart(config))


def floor(config: ConfigDict) -> float:
    """Return the loss of a key that is its query, at right angles to all the queue."""
    return math.log1p(own(config).queue * _apart(config))


def own(config: ConfigDict) -> ConfigDict:
    """Return the group with `queue` and `momentum`: of MoCo, or of a method that builds on it."""
    return config[declaration.group(config.method)]


def _apart(config: ConfigDict) -> float:
    """Return what a negative at right angles weighs beside a key that is the query."""
    return math.exp(-1 / config.loss.temperature)


def check(config: ConfigDict) -> None:
    """Raise `UserError` if the queue holds no batch, or groups cannot be shuffled."""
    group = declaration.group(config.method)
    check_size(f"{group}.queue", own(config).queue, config.train.batch_size)
    if config.bn.groups == 0:
        raise UserError(
            f"bn.groups is 0, each device by its own images, among which {group} cannot shuffle: "
            "set the number of devices or another, such as --config.bn.groups=8"
        )
    check_shuffling(config.train.accumulate)


FIELDS = {
    "queue": Field(
        65536, "keys of earlier batches that are negatives", "1 or more", lambda x: x > 0
    ),
    "momentum": Field(0.999, "of the network of keys", "in [0, 1)", lambda x: 0 <= x < 1),
}
KEY_FOUND = Chart("Key found", {"contrast_accuracy": "key found"}, True, FOUND)

DECLARATION = Declaration(
    title="MoCo",
    views=TWO_AND_LOCAL,
    recipe=recipe,
    reads=("head", "loss.temperature"),
    check=check,
    fields=FIELDS,
    chance=chance,
    chance_at=chance_at,
    floor=floor,
    charts=(KEY_FOUND,),
)


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build MoCo."""
    c = own(config)
    queue = Queue(c.queue)

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        taps = project(net, views["views"][:, :1])  # [n, 1, d] each
        return {"taps": taps, "query": taps[-1][:, 0], **local_crops.asking(net, views)}

    def watch(averages: Averages, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        group = None
        if config.bn.groups > 1:  # also where a part of a batch has one: that is refused
            group = averages.rows.shuffled(keys.of_batch("shuffle"), setting.batch_size)
        second = views["views"][:, 1:]  # [n, 1, h, w, c]
        return {"key": rows_of(averages["average"], second, group=group)}  # [n, dim]

    def loss(
        outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        return queue_contrast(
            outputs["query"],
            outputs["key"],
            extra["queue"],
            temperature=config.loss.temperature,
            local=local_crops.of(outputs),
            axis_name=axis_name,
        )

    def first(outputs: Outputs, key: jax.Array) -> Extra:
        return {"queue": queue.random(outputs["key"], key)}

    def next_extra(extra: Extra, update: Update) -> Extra:
        return {"queue": queue.push(extra["queue"], update.outputs["key"])}

    return Method(
        forward=forward,
        loss=loss,
        formats={"loss": "loss {:.3f}", "contrast_accuracy": "key found {:.1%}"},
        averages={"average": Average(("encoder", "head"), c.momentum)},
        watch=watch,
        first=first,
        next=next_extra,
    )
