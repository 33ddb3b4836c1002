"""What is read of data sets prepared by TFDS, here from images in memory, against those images."""

from __future__ import annotations

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from data.tfds_sets import NAMES, TEST, TRAIN, opened, photo, pixels, prepare

from simclr_jax.data import sources
from simclr_jax.data.decode import BadImage
from simclr_jax.data.sources import tfds
from simclr_jax.data.sources.tfds_records import Records
from simclr_jax.errors import UserError
from simclr_jax.unlabelled import NO_LABEL

library = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("split, offset, count", [("train", 0, TRAIN), ("test", 48, TEST)])
def test_every_record_is_the_image_it_was_made_of(tfds_root, split, offset, count):
    source = opened(tfds_root, split=split)
    assert len(source) == count and source.classes == 3 and source.channels == 3
    assert source.class_names == tuple(NAMES) and not source.multi_label
    for i in range(count):
        found, label = source.example(i)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, pixels(photo(offset + i)))
        assert label == (offset + i) % 3
        assert source.name(i) == f"{offset + i}.jpg"


def test_labels_are_those_of_the_examples(tfds_root, monkeypatch):
    source = opened(tfds_root).take(np.arange(47, -1, -1)).take(np.array([42, 42, 47, 0, 46]))
    assert source.labels.dtype == np.int32
    np.testing.assert_array_equal(source.labels, [2, 2, 0, 2, 1])
    assert [source.example(i)[1] for i in range(5)] == [2, 2, 0, 2, 1]
    known, rows = opened(tfds_root), np.arange(9, 3, -1)
    assert len(known.labels) == TRAIN
    taken = known.take(rows)
    monkeypatch.setattr(Records, "_labels_at", None)  # without reading them again
    assert taken.take(np.arange(2)).labels.tolist() == taken.labels[:2].tolist()
    monkeypatch.undo()
    np.testing.assert_array_equal(taken.labels, opened(tfds_root).take(rows).labels)


def test_threads_read_what_one_thread_reads(tfds_root):
    alone = opened(tfds_root)
    expected = [alone.example(i)[0] for i in range(TRAIN)]
    shared, order = (
        opened(tfds_root),
        np.random.RandomState(0).permutation(np.repeat(range(TRAIN), 10)),
    )
    with ThreadPoolExecutor(16) as pool:  # readers of the three files are opened in the rush, too
        for i, (found, label) in zip(order, pool.map(shared.example, order), strict=True):
            np.testing.assert_array_equal(found, expected[i])
            assert label == i % 3


def test_small_images_with_a_mask_and_three_kinds_of_label(tfds_root):
    source = opened(tfds_root, "small")
    random = np.random.RandomState(0).randint(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    for i in range(12):
        found, label = source.example(i)
        np.testing.assert_array_equal(found, random[i])
        assert label == i % 3  # "label", not "coarse" or "zone"
    assert source.name(7) == "train[7]"
    assert source.take(np.array([3, 7])).name(1) == "train[7]"


def test_a_name_that_is_no_text_is_shown_all_the_same(tmp_path):
    image, text = library.features.Image(), library.features.Text()
    records = {"train": [{"image": photo(0), "file_name": b"caf\xe9\x1b[2J.jpg"}]}
    prepare(tmp_path, "strange", {"image": image, "file_name": text}, records)
    assert opened(tmp_path, "strange").name(0) == r"caf\xe9\x1b[2J.jpg"


def test_several_labels_and_those_only_of_difficult_objects(tfds_root):
    source = opened(tfds_root, "scenes")
    assert source.multi_label and source.classes == 3 and source.class_names == tuple(NAMES)
    assert source.labels.dtype == np.int8
    known = [[-1, 0, 1], [0, 1, 0], [0, 0, 0], [-1, -1, -1], [-1, 1, -1]]
    np.testing.assert_array_equal(source.labels, known)
    for wrong in (3, -2):
        with pytest.raises(
            UserError, match=rf"train\[7\] of .* has label {wrong}, but .* 3 classes"
        ):
            source._labels({"labels": [0, wrong], "labels_no_difficult": [0]}, 7)
    np.testing.assert_array_equal(source.take(np.array([2, 0])).labels[1], [-1, 0, 1])
    found, label = source.example(1)
    np.testing.assert_array_equal(found, pixels(photo(1)))
    assert label == NO_LABEL and source.name(1) == "1.jpg"
    assert opened(tfds_root, "scenes", labels=False).labels is None


@pytest.mark.parametrize(
    "name, split, fields",
    [
        ("plain", "train", {}),
        ("photos", "train", {"labels": False}),
        ("half", "unlabelled", {}),  # TFDS marks these with -1
    ],
)
def test_without_labels(tfds_root, name, split, fields):
    source = opened(tfds_root, name, split, **fields)
    assert source.labels is None and source.classes == 0
    found, label = source.example(1)
    np.testing.assert_array_equal(found, pixels(photo(1)))
    assert label == NO_LABEL


def test_a_label_that_is_missing_among_others_is_none(tfds_root):
    """Also where it is the first, by which a split without any might be told."""
    source = opened(tfds_root, "half", "mixed")
    assert source.labels.tolist() == [0, NO_LABEL] and source.classes == 3
    assert [source.example(i)[1] for i in range(2)] == [0, NO_LABEL]
    source = opened(tfds_root, "half", "late")
    assert source.labels.tolist() == [NO_LABEL] * 3 + [0, 1, 2] and source.classes == 3


def test_each_label_is_read_once_whichever_splits_are_made(tfds_root, monkeypatch):
    read, labels_at = [], Records._labels_at
    monkeypatch.setattr(
        Records, "_labels_at", lambda self, rows: read.extend(rows) or labels_at(self, rows)
    )
    whole = sources.noted(opened(tfds_root), ["a note"])
    train, held_out = whole.take(np.arange(0, 40)), whole.take(np.arange(40, TRAIN))
    assert len(train.labels) == 40 and sorted(read) == list(range(40))
    joined = [*train.labels, *held_out.labels]
    np.testing.assert_array_equal(whole.labels, joined)
    assert sources.noted(whole, ["another"]).labels.tolist() == joined
    assert sorted(read) == list(range(TRAIN))


@pytest.mark.parametrize("labelled", [0, 4, 1999])
def test_one_label_is_found_among_many_records(labelled):
    """It is not among the few that are looked at first, or it is."""

    labels = np.full(2000, NO_LABEL)

    class Many:
        def __init__(self, rows):
            self.labels = labels[rows]

        def __len__(self):
            return len(self.labels)

        take = staticmethod(lambda rows: Many(rows))

    many = Many(slice(None))
    assert tfds._none_labelled(many)
    labels[labelled] = 2
    assert not tfds._none_labelled(many)


def test_broken_files_are_bad_images_and_nothing_else_breaks(tfds_root, tmp_path):
    shutil.copytree(tfds_root / "photos", tmp_path / "photos")
    whole, files = opened(tfds_root), sorted(tmp_path.rglob("photos-train*"))
    files[1].unlink()
    stored = files[0].read_bytes()
    assert stored.count(photo(3)[-90:]) == 1
    files[0].write_bytes(stored.replace(photo(3)[-90:], bytes(90)))
    source, bad = opened(tmp_path), []
    assert source.classes == 3 and len(source) == TRAIN
    for i in range(TRAIN):
        try:
            np.testing.assert_array_equal(source.example(i)[0], whole.example(i)[0])
        except BadImage as reason:
            bad.append(i)
            assert "unreadable record" in str(reason)
            assert source.name(i) == f"train[{i}]"
    assert bad == [3, *range(TRAIN // 3, 2 * TRAIN // 3)]
    expected = np.where(np.isin(range(TRAIN), bad), NO_LABEL, np.arange(TRAIN) % 3)
    np.testing.assert_array_equal(source.labels, expected)


@pytest.mark.parametrize("name, label", [("photos", NO_LABEL), ("scenes", [NO_LABEL] * 3)])
def test_a_record_that_cannot_be_parsed_has_no_label(tfds_root, name, label):
    whole = opened(tfds_root, name)
    raw = [b"\xff\xff\xff", whole.raw[1]]
    source = dataclasses.replace(whole, raw=raw, rows=np.arange(2))
    np.testing.assert_array_equal(source.labels, [label, whole.labels[1]])
    assert source.name(0) == "train[0]"
    for read in (source.example, source.stored_label):
        with pytest.raises(BadImage, match="damaged record"):
            read(0)
