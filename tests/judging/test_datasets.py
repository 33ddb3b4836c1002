"""Which images an encoder is judged on, and that none of them has been seen before."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from train import tiny

from simclr_jax.data import sources
from simclr_jax.judging import datasets
from simclr_jax.judging.datasets import Wanted


def archive(path, *splits):
    """Write an archive whose splits have 6 images each, of the same brightness in a split."""
    arrays = {}
    for level, split in enumerate(splits):
        arrays[f"{split}_images"] = np.full((6, 8, 8, 3), 50 * level, np.uint8)
        arrays[f"{split}_labels"] = np.arange(6) % 2
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    "there, wanted, expected",
    [
        (("train", "test"), {}, ("train", "", "test")),
        (("train", "test", "validation"), {}, ("train", "validation", "test")),
        (("train", "test", "val"), {"eval_split": "val"}, ("train", "", "val")),
        (("train", "val"), {}, ("train", "", "val")),  # nothing is held out of train
        (("train", "test", "val"), {"split": "val"}, ("val", "", "test")),
        (("train", "test", "b"), {"validation_split": "b"}, ("train", "b", "test")),
    ],
)
def test_splits_are_told_apart(tmp_path, there, wanted, expected):
    data = archive(tmp_path / "a.npz", *there)
    opened = datasets.open_data(tiny.recipe(), tmp_path, Wanted(data, **wanted))
    assert tuple(opened.splits.values()) == expected
    levels = [set(part.pixels.flat) for part in (opened.fit, opened.choose, opened.score) if part]
    assert len(set.union(*levels)) == len(levels)  # no image is in two of them


@pytest.mark.parametrize("used", ["validation", "train+validation", "validation[:50%]", "all"])
def test_no_validation_images_are_taken_that_are_used_already(used):
    assert datasets._first(("validation",), {"validation": None}, f"{used}+test") == ""
    assert datasets._first(("validation",), {"validation": None}, "train[:9]+test") == "validation"


def test_images_that_a_run_without_labels_trained_on_are_not_scored(tmp_path, monkeypatch):
    """It holds out fewer than a run with labels would."""
    monkeypatch.setattr(sources, "MOST_WITHOUT_LABELS", 3)
    for i in range(40):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    fields = {"data__source": "folder", "data__path": str(tmp_path), "data__labels": False}
    config = tiny.recipe(**fields)
    trained_on, _ = sources.open_splits(config.data)
    opened = datasets.open_data(config, tmp_path / "run", Wanted())
    assert opened.score.classes == 2 and len(opened.score) == 3
    assert not set(opened.score.paths) & set(trained_on.paths)
    assert sorted(opened.fit.paths) == sorted(trained_on.paths)
