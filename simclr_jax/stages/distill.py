"""Distillation: a student learns on unlabelled images what a teacher sees (SimCLRv2, section 3)."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax.data.sources import NO_LABEL, Source
from simclr_jax.losses.cross_entropy import cross_entropy
from simclr_jax.losses.distillation import distillation
from simclr_jax.stages import build, views
from simclr_jax.stages.accuracy import Accuracy
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.labelled_network import LabelledNetwork
from simclr_jax.stages.teacher import Teacher, classifier_shape
from simclr_jax.stages.warm_start import load_parts
from simclr_jax.train import saved
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs, Params, Stage, Stats
from simclr_jax.train.timetable import Timetable

FORMATS = {
    "loss": "loss {:.4f}",
    "agreement": "as the teacher {:.1%}",
    "train_accuracy": "train {:.1%}",
    "lr": "lr {:.3g}",
    "accuracy": "accuracy {:.1%}",
    "held_out_agreement": "as the teacher {:.1%}",
}


def chance(config: ConfigDict, train: Source) -> float:
    """Return the loss of a student that takes all classes for equally probable.

    That is what one with a classifier of zeros begins with, whatever its teacher says.
    """
    d = config.distill
    _, classes = classifier_shape(saved.describe(d.teacher, "distill.teacher"))
    weight = d.alpha * (d.temperature**2 if d.times_squared_temperature else 1.0)
    if d.alpha < 1:
        assert train.labels is not None  # `labels.restrict` has seen to it
        weight += (1 - d.alpha) * float(np.mean(train.labels != NO_LABEL))
    return weight * math.log(classes)


def make_stage(config: ConfigDict, timetable: Timetable, inputs: Inputs, mesh: Mesh) -> Stage:
    """Build the distillation stage of a recipe.

    Args:
      config: a validated recipe.
      timetable: the run in numbers.
      inputs: images to learn from, of whose labels `distill.alpha` may leave a part in the loss,
        and held-out ones.
      mesh: the devices.
    """
    d = config.distill
    teacher = Teacher(saved.read(d.teacher, "distill.teacher"), d.teacher_dtype, mesh)
    network = LabelledNetwork(config, teacher.classes)
    schedule = build.schedule(timetable)
    optimizer = build.optimizer(config, schedule, learns=network.learns)
    make_views = views.view_maker(config)

    def forward(
        params: Params, batch_stats: Stats, extra: Extra, batch: Batch, step: jax.Array
    ) -> tuple[Outputs, Stats]:
        images = make_views(batch)["views"][:, 0]  # [n, h, w, c], the same for both
        logits, moved = network.in_training(params, batch_stats, images, batch["row"])
        outputs = {"logits": logits, "teacher": teacher(extra["teacher"], images)}
        if d.alpha < 1:
            outputs["label"] = batch["label"]
        return outputs, moved

    def objective(
        outputs: Outputs, extra: Extra, step: jax.Array, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        loss, agreement = distillation(
            outputs["logits"],
            outputs["teacher"],
            temperature=d.temperature,
            times_squared_temperature=d.times_squared_temperature,
            axis_name=axis_name,
        )
        metrics = {"distillation_loss": loss, "agreement": agreement}
        if d.alpha < 1:
            # Sums over labelled and over all images as in eq. 3, divided by all images: as
            # a mean over the few labelled rows of a batch the label term would drown the other.
            label_loss, accuracy = cross_entropy(
                outputs["logits"], outputs["label"], over_all_rows=True, axis_name=axis_name
            )
            metrics |= {"label_loss": label_loss, "train_accuracy": accuracy}
            loss = d.alpha * loss + (1 - d.alpha) * label_loss
        return loss, metrics | {"loss": loss}

    accuracy = Accuracy(config, network, inputs, mesh, (teacher, teacher.variables))
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
        protocol=lambda: accuracy.protocol() | {"teacher": teacher.name},
        formats=FORMATS,
        look=make_views,
        parts=config.train.accumulate,
        reduce_dtype=config.train.reduce_dtype,
        deterministic=config.train.deterministic,
        frozen={"teacher": teacher.variables},
    )
