"""Recordings of instance discrimination with settings of their own, made by NumPy in float64."""

from __future__ import annotations

import made
import numpy as np
import pytest
import test_instdisc_steps
from losses import instances

pytestmark = pytest.mark.x64

SETTINGS = {"bank": 11, "dim": 5, "n": 4, "temperature": 0.23, "momentum": 0.3, "steps": 2}
DRAWN = SETTINGS | {"negatives": 7, "Z": None, "eps": 1e-3}


def recording(folder, kind, settings):
    """Write steps that are correct for these settings; one image stands in the batch twice."""
    random, kind_of = np.random.default_rng(5), f"instdisc_{kind}"
    size, dim, n = (settings[name] for name in ("bank", "dim", "n"))
    bank, z = random.uniform(-0.7, 0.7, (size, dim)), settings.get("Z")
    arrays = {"bank0": bank}
    for k in range(settings["steps"]):
        x = random.normal(size=(n, dim))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        example = random.integers(size, size=n)
        example[-1] = example[0]
        step, sampled = {"x": x, "index": example}, None
        if kind != "softmax":
            sampled = random.integers(size, size=(n, settings["negatives"]))
            step["sampled"] = np.concatenate([example[:, None], sampled], 1)
        if kind == "nce":
            z = z or instances.partition(x, bank, example, sampled, settings["temperature"])
            step["Z"] = z
        how = {"z": z, "eps": settings["eps"]} if kind == "nce" else {}
        step["loss"], step["grad"], _ = instances.loss(
            kind, x, bank, example, sampled, settings["temperature"], **how
        )
        step["bank"] = bank = instances.moved(bank, x, example, settings["momentum"])
        arrays |= {f"step{k}_{name}": array for name, array in step.items()}
    return made.write(folder, kind_of, settings, arrays, "torch")


@pytest.mark.parametrize(
    "kind, settings, compared",
    [
        ("softmax", SETTINGS | {"n": 5, "momentum": 0.0}, 2),
        ("sampled_softmax", DRAWN, 2),
        ("sampled_softmax", DRAWN | {"negatives": 30}, 1),  # more than there are images
        ("nce", DRAWN, 2),
        ("nce", DRAWN | {"Z": 77.5, "steps": 1}, 2),
    ],
)
def test_steps_are_judged_by_their_own_settings(kind, settings, compared, tmp_path, monkeypatch):
    given = recording(tmp_path, kind, settings)
    assert made.judge(test_instdisc_steps.judge, given, monkeypatch=monkeypatch) == compared


@pytest.mark.parametrize(
    "kind, change",
    [
        ("softmax", {"temperature": 0.24}),
        ("softmax", {"momentum": 0.31}),
        ("sampled_softmax", {"temperature": 0.24}),
        ("nce", {"eps": 2e-3}),
        ("nce", {"Z": 77.5}),
    ],
)
def test_steps_of_other_settings_fail(kind, change, tmp_path, monkeypatch):
    settings = SETTINGS if kind == "softmax" else DRAWN
    wrong = recording(tmp_path, kind, settings).with_settings(**change)
    with pytest.raises(AssertionError, match="above"):
        made.judge(test_instdisc_steps.judge, wrong, monkeypatch=monkeypatch)


def test_a_setting_that_nothing_reads_fails_by_name(tmp_path, monkeypatch):
    given = recording(tmp_path, "softmax", SETTINGS | {"proximal": 0.1})
    with pytest.raises(AssertionError, match=r"proximal = 0\.1"):
        made.judge(test_instdisc_steps.judge, given, monkeypatch=monkeypatch)
