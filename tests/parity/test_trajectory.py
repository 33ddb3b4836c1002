"""Whole steps of pretraining, one after another, against the official ones: what users run."""

from __future__ import annotations

from typing import Any

import agreement
import golden
import numpy as np
import pytest
import steps

from simclr_jax import recipes
from simclr_jax.stages import pretrain
from simclr_jax.train.stage import Batch, Metrics


def cases() -> list:
    """All of them under SIMCLR_PARITY=all; otherwise one a flavour, since a step compiles long."""
    return steps.best(golden.cases("trajectory", lambda r: not steps.finetunes(r)), steps.size)


def batch(recording: golden.Recording, step: int) -> Batch:
    """Return views `[1, n, 2, h, w, c]` and labels `[1, n]`."""
    both = steps.drawn(recording, step, channels=6)
    if recording.tf1:  # without a probe, so that nothing reads labels
        labels, mask = np.array(recording.settings["label_list"][step]), recording.settings["mask"]
        assert mask == "ones", f"{recording.name}: mask = {mask} in pretraining"
    else:
        labels = recording.arrays["labels"][step]
        both[..., 3:] = np.float32(0.7) * both[..., :3] + np.float32(0.3) * both[..., 3:]
    both = steps.enlarged(recording, both)
    return steps.chunk(np.stack([both[..., :3], both[..., 3:]], 1), labels)


def losses(
    recording: golden.Recording, c: recipes.ConfigDict, metrics: Metrics, decay: float
) -> dict[str, Any]:
    total = metrics["loss"] + decay
    if recording.tf1:
        return {
            "losses": total,
            "contrastive_losses": metrics["loss"],
            "regularization_losses": decay,
        }
    found = {
        "train_total_loss": total,
        "train_weight_decay": decay,
        "train_contrast_loss": metrics["loss"],
        "train_contrast_acc": metrics["contrast_accuracy"],
        "train_contrast_entropy": metrics["contrast_entropy"],
    }
    if c.eval.probe:
        found["train_total_loss"] += metrics["probe_loss"]
        found["train_supervised_loss"] = metrics["probe_loss"]
        found["train_supervised_acc"] = metrics["train_probe_accuracy"]
    return found


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.parametrize("recording", cases())
def test_steps_are_the_official_ones(recording, record_parity, monkeypatch):
    c = steps.recipe(recording, "pretrain")
    steps.feed_recorded_rates(recording, c, record_parity, monkeypatch)
    program = steps.Program(
        recording,
        c,
        pretrain.make_stage,
        batch=batch,
        losses=losses,
        classifier="probe" if c.eval.probe else None,
        adapt=steps.averaged32(recording, c.train.batch_size),
    )
    agreement.compare(recording, program.run, record_parity)
