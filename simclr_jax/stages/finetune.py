"""Fine-tuning on labels, from the weights of a run or from scratch (SimCLRv2, section 3).

Also linear evaluation with a frozen encoder (`finetune.train_from_block=5`) and, without
`init.run`, the supervised baseline. Where an image may have several labels, each class is a
question of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from scipy import special

from simclr_jax.data.sources import NO_LABEL, Source
from simclr_jax.losses.cross_entropy import binary_cross_entropy, cross_entropy
from simclr_jax.stages import build, views
from simclr_jax.stages.accuracy import Accuracy
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.labelled_network import LabelledNetwork
from simclr_jax.stages.warm_start import load_parts
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs, Params, Stage, Stats
from simclr_jax.train.timetable import Timetable
from simclr_jax.unlabelled import counted

FORMATS = {
    "loss": "loss {:.4f}",
    "train_accuracy": "train {:.1%}",
    "lr": "lr {:.3g}",
    "accuracy": "accuracy {:.1%}",
    "mAP": "mAP {:.1%}",
}


def chance(config: ConfigDict, train: Source) -> float:
    """Return the loss of a classifier that knows how frequent each class is and nothing else.

    Of several labels an image a class counts as often as it is known, as in the loss.
    """
    assert train.labels is not None  # `labels.restrict` has seen to it
    if train.multi_label:
        known = (train.labels != NO_LABEL).sum(axis=0)
        share = (train.labels == 1).sum(axis=0) / np.maximum(known, 1)
        entropies = -(special.xlogy(share, share) + special.xlogy(1 - share, 1 - share))
        return float(known @ entropies / max(len(counted(train.labels)), 1))
    counts = np.unique(train.labels[train.labels != NO_LABEL], return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def make_stage(config: ConfigDict, timetable: Timetable, inputs: Inputs, mesh: Mesh) -> Stage:
    """Build the fine-tuning stage of a recipe.

    Args:
      config: a validated recipe.
      timetable: the run in numbers.
      inputs: labelled images to learn from, and held-out ones.
      mesh: the devices.
    """
    network = LabelledNetwork(config, inputs.train.classes)
    schedule = build.schedule(timetable)
    optimizer = build.optimizer(config, schedule, learns=network.learns)
    make_views = views.view_maker(config)
    # Of several labels an image, sources do not hand over those of an example beside its pixels.
    several = jnp.asarray(inputs.train.labels) if inputs.train.multi_label else None
    loss_of: Callable[..., tuple[jax.Array, jax.Array]] = cross_entropy
    if several is not None:
        loss_of = binary_cross_entropy

    def forward(
        params: Params, batch_stats: Stats, extra: Extra, batch: Batch, step: jax.Array
    ) -> tuple[Outputs, Stats]:
        images = make_views(batch)["views"][:, 0]  # [n, h, w, c]
        logits, moved = network.in_training(params, batch_stats, images, batch["row"])
        label = batch["label"] if several is None else several[batch["example"]]
        return {"logits": logits, "label": label}, moved

    def objective(
        outputs: Outputs, extra: Extra, step: jax.Array, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        logits, label = outputs["logits"], outputs["label"]
        loss, accuracy = loss_of(logits, label, axis_name=axis_name)
        return loss, {"loss": loss, "train_accuracy": accuracy}

    accuracy = Accuracy(config, network, inputs, mesh)
    return Stage(
        init=functools.partial(network.first_state, inputs.train.channels, optimizer, mesh),
        warm_start=functools.partial(load_parts, config.init, tap=config.finetune.tap),
        forward=forward,
        objective=objective,
        optimizer=optimizer,
        learning_rate=schedule,
        batches=functools.partial(inputs.batches, mesh, timetable),
        like=functools.partial(inputs.describe, mesh, timetable.batch_size),
        evaluate=accuracy.evaluate,
        compare=accuracy.compare,
        protocol=accuracy.protocol,
        formats=FORMATS,
        look=make_views,
        parts=config.train.accumulate,
        reduce_dtype=config.train.reduce_dtype,
        deterministic=config.train.deterministic,
    )
