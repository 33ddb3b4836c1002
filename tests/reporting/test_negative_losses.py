"""A loss that may be below 0, SimSiam's, is measured on the way from its chance, 0, to -1."""

from __future__ import annotations

import json

import numpy as np
import pytest

from simclr_jax import documents, recipes
from simclr_jax.reporting import findings, record

STEPS = range(5, 101, 5)


def said(tmp_path, losses):
    """Return what is said of the losses of a run that has ended."""
    c = recipes.base("simsiam")
    c.train.steps, c.train.batch_size = 100, 16
    documents.write(tmp_path / "config.json", c.to_dict())
    lines = [
        {"step": s, "epoch": s / 10, "loss": float(x)} for s, x in zip(STEPS, losses, strict=True)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = record.read(str(tmp_path))
    assert (read.chance, read.floor) == (0.0, -1.0)
    return [finding.text for finding in findings.findings(read)]


@pytest.mark.parametrize("at", [0.01, 0.0, -0.015])
def test_a_loss_about_chance_is_nothing_learned(tmp_path, at):
    (text,) = said(tmp_path, np.full(len(STEPS), at))
    assert f"{at:.2f}, that of an encoder that has learned nothing 0.00" in text


@pytest.mark.parametrize("at", [-0.1, -0.9, -1.0])
def test_a_loss_below_it_is_not(tmp_path, at):
    assert said(tmp_path, np.full(len(STEPS), at)) == []


def test_one_that_still_falls_is_said_to(tmp_path):
    (text,) = said(tmp_path, -0.04 * np.arange(len(STEPS)))
    assert "loss was still falling at the end" in text


def test_one_that_rises_again_is_not_said_to_fall(tmp_path):
    """As SimSiam's does when embeddings spread after a start at which all were alike."""
    falls, rises = np.linspace(-0.4, -0.85, 4), np.linspace(-0.83, -0.65, len(STEPS) - 4)
    assert said(tmp_path, [*falls, *rises]) == []
