"""Whole steps of distillation against the official notebook's loss and optimiser: what users run.

The teacher is its recorded logits. The notebook never runs the updates of moving statistics, which
would all count as errors, so here they are left as they are as well.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import agreement
import golden
import numpy as np
import pytest
import steps

from simclr_jax import recipes
from simclr_jax.stages import distill
from simclr_jax.train.stage import Batch, Metrics, Stage

EXAMPLES = 64  # any number: the notebook counts steps

STUDENT = (
    r"ResNet-(?P<depth>\d+), width_multiplier (?P<width>[\d.]+), (?P<stem>cifar|imagenet) stem, "
    r"global_bn (?P<global_bn>True|False), \+ linear_layer head \((?P<classes>\d+) classes\) on h"
)
RATE = r"cosine_decay\((?P<rate>[\d.e-]+), step, (?P<length>\d+)\), no warmup.*"
LISTS = ({"batch_normalization", "bias"}, {"batch_normalization", "bias", "head_supervised"})


def cases() -> list:
    """All of them under SIMCLR_PARITY=all; otherwise none, since a step compiles long."""
    return golden.only(golden.cases("distill", lambda r: "student" in r.settings), ())


def described(recording: golden.Recording) -> golden.Recording:
    """Return the recording with what its settings say in words as flags."""
    settings = recording.settings
    words, optimizer = parsed(STUDENT, settings["student"]), settings["optimizer"]
    rate, length = parsed(RATE, settings["learning_rate"]).values()
    _, (batch, side, *_), _ = golden.formula(settings["images"])
    assert batch == settings["batch"], recording.name
    flags = {
        "train_mode": "finetune",
        "resnet_depth": int(words["depth"]),
        "width_multiplier": float(words["width"]),
        "image_size": side,
        "global_bn": words["global_bn"] == "True",
        "proj_head_mode": "none",
        "optimizer": optimizer["name"],
        "momentum": optimizer["momentum"],
        "weight_decay": optimizer["weight_decay"],
        "learning_rate": float(rate),
        "learning_rate_scaling": "none",
        "warmup_epochs": 0,
        "train_batch_size": batch,
        "train_steps": int(length),
    }
    return recording.with_settings(
        flags=flags,
        cifar_stem=words["stem"] == "cifar",
        classes=int(words["classes"]),
        num_train_examples=EXAMPLES,
    )


def parsed(pattern: str, text: str) -> dict[str, str]:
    match = re.fullmatch(pattern, text)
    assert match, f"not understood: {text}"
    return match.groupdict()


def recipe(recording: golden.Recording) -> recipes.ConfigDict:
    settings, c = recording.settings, steps.recipe(recording, "distill")
    c.distill.teacher, c.distill.temperature = Recorded.name, settings["temperature"]
    c.distill.times_squared_temperature = True
    c.finetune.encoder_bn = "batch" if settings["bn_is_training"] else "moving"
    excluded = set(settings["optimizer"]["exclude"])
    assert excluded in LISTS, f"{recording.name}: exclude = {excluded}"
    c.optim.adapt_classifier = "head_supervised" not in excluded
    return c


def batch(recording: golden.Recording, step: int) -> Batch:
    """Return views `[1, n, 1, h, w, c]` and the teacher's logits `[1, n, classes]`."""
    name, shape, law = golden.formula(recording.settings["images"])
    images = recording.fill(name.replace("<k>", str(step)), shape, law)
    n, scale = len(images), float(recording.settings["teacher_logits"].split(" * ")[0])
    name, shape, law = golden.formula(recording.settings["teacher_logits"])
    assert shape == (n, steps.classes(recording)), recording.name
    teacher = np.float32(scale) * recording.fill(name.replace("<k>", str(step)), shape, law)
    made = steps.chunk(images[:, None].astype(np.float64), np.zeros(n))
    return made | {"teacher": teacher[None].astype(np.float64)}


def losses(
    recording: golden.Recording, c: recipes.ConfigDict, metrics: Metrics, decay: float
) -> dict[str, Any]:
    return {"losses": metrics["loss"]}


class Recorded:
    """Stands in for a teacher, whose logits come in with the batch."""

    name = "recorded"

    def __init__(self, classes: int):
        self.classes, self.variables = classes, {}

    def __call__(self, variables: Any, images: Any) -> None:
        return None


def taught_by_recording(stage: Stage) -> Stage:
    """Put recorded logits in place of the teacher's, and leave moving statistics as they are."""

    def forward(params, batch_stats, extra, batch, step):
        outputs, _ = stage.forward(params, batch_stats, extra, batch, step)
        return outputs | {"teacher": batch["teacher"]}, batch_stats

    return dataclasses.replace(stage, forward=forward)


@pytest.mark.x64
@pytest.mark.parametrize("recording", cases())
def test_steps_are_the_official_ones(recording, record_parity, monkeypatch):
    recording = described(recording)
    c = recipe(recording)
    teacher = Recorded(steps.classes(recording))
    monkeypatch.setattr(distill.saved, "read", lambda *_: None)
    monkeypatch.setattr(distill, "Teacher", lambda *_: teacher)
    # The notebook's optimiser counted the step before it read the rate.
    steps.feed_recorded_rates(recording, c, record_parity, monkeypatch, first=1)
    program = steps.Program(
        recording,
        c,
        distill.make_stage,
        batch=batch,
        losses=losses,
        classifier="classifier",
        adapt=taught_by_recording,
    )
    agreement.compare(recording, program.run, record_parity)
