"""Splits of data sets prepared by TFDS: slices, what is held out, what nobody uses."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from data.tfds_sets import TRAIN, opened, options

from simclr_jax.data import sources
from simclr_jax.data.sources import open_splits, stamp, tfds
from simclr_jax.errors import Unreachable, UserError

pytest.importorskip("tensorflow_datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_slices_are_parts_of_their_split(tfds_root):
    first, rest = "train[:25%]", "train[25%:]"
    found = tfds.splits(options("photos", tfds_root, split=first, eval_split=rest))
    assert list(found) == ["train", "test", first, rest]
    parts = [found[name]() for name in (first, rest)]
    names = [part.name(i) for part in parts for i in range(len(part))]
    assert [len(part) for part in parts] == [12, 36]
    assert names == [f"{i}.jpg" for i in range(TRAIN)]
    assert parts[1].example(0)[1] == 12 % 3


@pytest.mark.parametrize(
    "train, held_out",
    [("train", "train[90%:]"), ("train[:30]", "train[29:]"), ("train+test", "test")],
)
def test_what_is_trained_on_is_not_held_out(tfds_root, train, held_out):
    with pytest.raises(UserError, match="shares examples with"):
        tfds.splits(options("photos", tfds_root, split=train, eval_split=held_out))


@pytest.mark.parametrize(
    "trained, scored, met",
    [
        ("train[:50%]", "train[50%:]", False),
        ("train[:50%]", "train[:9]", True),
        ("train[:50%]", "train", True),
        ("train+test", "test", True),
        ("train[:5]+test[6:]", "test[:6]", False),
        ("all", "test", True),
        ("train", "test", False),
    ],
)
def test_a_slice_of_which_another_run_has_seen_a_part_is_not_scored(
    tfds_root, trained, scored, met
):
    data = options("photos", tfds_root, split="train[:1]" if scored != "train" else "test")
    data.eval_split = scored
    if scored in ("train[:9]", "train"):
        data.split = "test"
    parts = sources.trained.parts(opened(tfds_root, split=trained, eval_split="absent"))
    before = sources.Trained("runs/before", trained, 9, "other", None, parts)
    unseen = sources.Unseen([before], "give others")
    if met:
        with pytest.raises(UserError, match=r"runs/before trained on images of .* give others"):
            sources.open_all(data, unseen=unseen)
    else:
        assert len(sources.open_all(data, unseen=unseen).test)


def test_a_split_that_is_not_there(tfds_root):
    assert "val" not in tfds.splits(options("photos", tfds_root, split="val[:3]", eval_split="val"))
    with pytest.raises(UserError, match=r'is "trian" \(did you mean "train".*train, test'):
        open_splits(options("photos", tfds_root, split="trian"))


@pytest.mark.parametrize("split", ["train[:foo]", "train[10%", "train[:200%]"])
def test_a_slice_that_is_none(tfds_root, split):
    with pytest.raises(UserError, match=r"is no slice that TFDS understands: write .train\[:90%\]"):
        tfds.splits(options("photos", tfds_root, split=split))


def test_an_empty_slice(tfds_root):
    with pytest.raises(UserError, match="no examples in"):
        opened(tfds_root, split="train[:0]")


def test_part_of_a_split_is_held_out_where_there_is_no_other(tfds_root):
    train, held_out = open_splits(options("small", tfds_root))
    assert len(train) == 9 and len(held_out) == 3
    names = {source.name(i) for source in (train, held_out) for i in range(len(source))}
    assert names == {f"train[{i}]" for i in range(12)}


def test_fingerprints_tell_data_sets_apart_and_not_directories(tfds_root, tmp_path):
    shutil.copytree(tfds_root / "photos", tmp_path / "photos")
    source = opened(tfds_root)
    assert source.fingerprint() == opened(tmp_path).fingerprint()
    assert source.fingerprint() == "photos/1.2.0 train, 48 examples"
    choices = [source.take(np.array(rows)) for rows in ([0, 1], [1, 0], [0, 2])]
    others = [
        opened(tfds_root, split="test"),
        opened(tfds_root, split="train[:9]"),
        opened(tfds_root, "small"),
    ]
    assert len({one.fingerprint() for one in [source, *choices, *others]}) == 7


def test_a_data_set_that_is_gone_is_no_set_of_bad_images(tfds_root, tmp_path):
    shutil.copytree(tfds_root / "photos", tmp_path / "photos")
    source = opened(tmp_path)
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    with pytest.raises(Unreachable, match=r"photos/1\.2\.0 are gone: .*nothing is lost"):
        source.example(TRAIN - 1)


def test_splits_that_nobody_uses_are_named(tfds_root):
    train, test = open_splits(options("photos", tfds_root, split="train[:40]"))
    assert train.notes == test.notes == ()
    train, _ = open_splits(
        options("photos", tfds_root, eval_split="train[40:]", split="train[:40]")
    )
    assert train.notes == ("not used: test (9 images), which is a split",)


def test_the_stamp_changes_when_the_data_set_is_prepared_again(tfds_root, tmp_path):
    shutil.copytree(tfds_root / "photos", tmp_path / "photos")
    source, first, last = (opened(tmp_path, split=s) for s in ("train", "train[:9]", "train[40:]"))
    before = [stamp(one) for one in (source, first, last, opened(tmp_path, split="test"))]
    assert len(set(before)) == 4 and "" not in before
    assert stamp(opened(tmp_path).take(np.arange(5))) == before[0]
    file = next(tmp_path.rglob("photos-train*00000-of*"))
    changed = file.stat().st_mtime_ns
    found = set()
    for content, time in ((b" ", changed), (b"", changed + 1)):
        file.write_bytes(file.read_bytes() + content)
        os.utime(file, ns=(time, time))
        after = [stamp(one) for one in (source, first, last, opened(tmp_path, split="test"))]
        found |= {*after[:2], *before[:2]}
        assert after[2:] == before[2:]
    assert len(found) == 6
