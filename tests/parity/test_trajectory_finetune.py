"""Whole steps of fine-tuning and linear evaluation against the official ones: what users run."""

from __future__ import annotations

from typing import Any

import agreement
import golden
import numpy as np
import pytest
import sections
import steps

from simclr_jax import recipes
from simclr_jax.data.sources import NO_LABEL
from simclr_jax.stages import finetune
from simclr_jax.train.stage import Batch, Metrics


def cost(recording: golden.Recording) -> tuple:
    """Prefer what shows most: some blocks frozen, and a classifier inside the head."""
    flags = recording.flags
    some_frozen = 0 <= flags["fine_tune_after_block"] < 4
    inside = sections.tap(recording) > 0
    return -(some_frozen + inside), steps.size(recording)


def cases() -> list:
    """All of them under SIMCLR_PARITY=all; otherwise one a flavour, since a step compiles long."""
    return steps.best(golden.cases("trajectory", steps.finetunes), cost)


def labels(recording: golden.Recording, step: int) -> np.ndarray:
    """Return labels `[n]`, none for rows that the official mask leaves out."""
    if not recording.tf1:
        return recording.arrays["labels"][step]
    given = np.array(recording.settings["label_list"][step])
    mask = recording.settings["mask"]
    if mask == "ones":
        return given
    assert np.shape(mask) == given.shape and set(mask) <= {0, 1}, f"{recording.name}: mask = {mask}"
    return np.where(mask, given, NO_LABEL)


def batch(recording: golden.Recording, step: int) -> Batch:
    """Return views `[1, n, 1, h, w, c]` and labels `[1, n]`."""
    images = steps.drawn(recording, step, channels=3)
    return steps.chunk(steps.enlarged(recording, images)[:, None], labels(recording, step))


def losses(
    recording: golden.Recording, c: recipes.ConfigDict, metrics: Metrics, decay: float
) -> dict[str, Any]:
    total = metrics["loss"] + decay
    if recording.tf1:
        return {"losses": total, "regularization_losses": decay}
    return {
        "train_total_loss": total,
        "train_weight_decay": decay,
        "train_supervised_loss": metrics["loss"],
        "train_supervised_acc": metrics["train_accuracy"],
    }


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.parametrize("recording", cases())
def test_steps_are_the_official_ones(recording, record_parity, monkeypatch):
    c = steps.recipe(recording, "finetune")
    steps.feed_recorded_rates(recording, c, record_parity, monkeypatch)
    labelled = np.count_nonzero(labels(recording, 0) != NO_LABEL)
    program = steps.Program(
        recording,
        c,
        finetune.make_stage,
        batch=batch,
        losses=losses,
        classifier="classifier",
        adapt=steps.averaged32(recording, labelled),
    )
    agreement.compare(recording, program.run, record_parity)
