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
    assert (opened.name, opened.slug) == (data, "a")
    for part, split in zip((opened.fit, opened.choose, opened.score), expected, strict=True):
        levels = {50 * there.index(split)} if split else set()
        assert set(part.pixels.flat if part else ()) == levels
        assert not part or (len(part) == 6 and part.classes == 2)


def test_the_images_of_the_run_are_its_own_unless_others_are_named(tmp_path):
    own = archive(tmp_path / "own.npz", "b", "c", "valid", "test", "train")
    fields = {"data__source": "memory", "data__path": own, "data__labels": False}
    config = tiny.recipe(**fields, data__split="b", data__eval_split="c")
    opened = datasets.open_data(config, tmp_path, Wanted())
    assert opened.splits == {"fit": "b", "choose": "valid", "score": "c"}
    levels = [set(part.pixels.flat) for part in (opened.fit, opened.choose, opened.score)]
    assert levels == [{0}, {100}, {50}] and (opened.name, opened.slug) == (own, "")
    assert opened.fit.classes == 2  # the run used none of the labels
    config.data.eval_split = "absent"  # held out of training; validation images are not looked at
    opened = datasets.open_data(config, tmp_path, Wanted())
    assert opened.splits == {"fit": "b", "choose": "", "score": "held out of b"}
    assert opened.choose is None and set(opened.score.pixels.flat) == {0}
    other = archive(tmp_path / "An other-one.npz", "train", "valid", "test")
    opened = datasets.open_data(config, tmp_path, Wanted(other))
    assert opened.splits == {"fit": "train", "choose": "valid", "score": "test"}
    assert opened.slug == "an_other_one"
    assert config.data.split == "b" and config.data.path == own


def test_where_nothing_is_to_be_scored_on_a_tenth_is_held_out(tmp_path):
    pixels = np.broadcast_to(np.arange(40)[:, None, None, None], (40, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(40) % 3)
    wanted = Wanted(str(tmp_path / "a.npz"))
    for share, count in ((0.1, 4), (0.3, 12)):
        config = tiny.recipe(data__holdout_fraction=share)
        opened = datasets.open_data(config, tmp_path, wanted)
        assert opened.splits == {"fit": "train", "choose": "", "score": "held out of train"}
        parts = [part.pixels[:, 0, 0, 0] for part in (opened.fit, opened.score)]
        assert [len(part) for part in parts] == [40 - count, count] and opened.choose is None
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(40))
        for part, source in zip(parts, (opened.fit, opened.score), strict=True):
            np.testing.assert_array_equal(source.labels, part % 3)


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
