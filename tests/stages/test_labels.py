"""Which labels a stage may use: drawn, listed, nested, hidden; the same ones everywhere."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image
from stages import taught

from simclr_jax import recipes
from simclr_jax.data import sources
from simclr_jax.data.sources import NO_LABEL, Images
from simclr_jax.errors import UserError
from simclr_jax.judging.feature_bank import Features
from simclr_jax.stages import labels


def images(count=400, classes=4):
    """Return images each of which says its number."""
    number = np.arange(count)
    pixels = np.stack([number % 256, number // 256, 0 * number], -1).astype(np.uint8)
    pixels = np.broadcast_to(pixels[:, None, None], (count, 2, 2, 3)).copy()
    return Images(pixels, (number * 7 % classes).astype(np.int32), classes)


def numbers(source):
    pixels = source.pixels[:, 0, 0].astype(int)
    return pixels[:, 0] + 256 * pixels[:, 1]


def restricted(source, stage="finetune", **fields):
    if stage == "distill":
        fields = {"distill__teacher": "runs/teacher", "distill__alpha": 0.5} | fields
    return labels.restrict(taught.recipe(stage, **fields), source)


def test_a_share_is_drawn_from_each_class():
    chosen = restricted(images(), labels__use="10%")
    np.testing.assert_array_equal(np.bincount(chosen.labels), [10] * 4)
    assert np.all(np.diff(numbers(chosen)) > 0)
    np.testing.assert_array_equal(chosen.labels, numbers(chosen) * 7 % 4)
    other = restricted(images(), labels__use="10%", labels__seed=1)
    assert set(numbers(other)) != set(numbers(chosen))


def test_one_per_cent_is_part_of_ten():
    for seed in range(3):
        few, more = (
            set(numbers(restricted(images(), labels__use=use, labels__seed=seed)))
            for use in ("1%", "10%")
        )
        assert len(few) == 4 and len(more) == 40 and few < more


@pytest.mark.parametrize("wanted", ["5%", "7", "all"])
def test_the_rows_are_those_of_a_linear_probe(wanted):
    """`linear_probe --labels=5% --seed=3` judges on the labels that fine-tuning saw."""
    source = images()
    number = np.arange(len(source))
    fit = Features(np.zeros((len(source), 1)), source.labels, 4, number)
    rows = fit.take(labels.allowed(wanted, fit.known, fit.examples, source, seed=3)).examples
    chosen = restricted(source, labels__use=wanted, labels__seed=3)
    np.testing.assert_array_equal(numbers(chosen), rows)


def test_unlabelled_images_are_not_drawn():
    source = images()
    known = np.where(np.arange(len(source)) % 2, NO_LABEL, source.labels)
    source = dataclasses.replace(source, labels=known)
    assert not np.any(numbers(restricted(source, labels__use="all")) % 2)
    few = restricted(source, labels__use="3")
    assert not np.any(numbers(few) % 2) and len(few) == 3 * len(np.unique(few.labels))


def test_distillation_keeps_all_images_and_hides_labels():
    source = images()
    seen = set(numbers(restricted(source, labels__use="10%")))
    found = restricted(source, "distill", labels__use="10%")
    np.testing.assert_array_equal(found.pixels, source.pixels)
    want = [label if i in seen else NO_LABEL for i, label in enumerate(source.labels)]
    np.testing.assert_array_equal(found.labels, want)
    assert found.classes == 4 and found.fingerprint() != source.fingerprint()
    alone = restricted(source, "distill", labels__use="10%", distill__images="labelled")
    assert set(numbers(alone)) == seen
    unread = restricted(source, "distill", distill__alpha=1.0)
    assert unread is source


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        path = tmp_path / "images" / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 10 * i, np.uint8)).save(path)
    data = recipes.base().data
    data.source, data.path, data.holdout_fraction = "folder", str(tmp_path / "images"), 0.1
    return sources.open_splits(data)[0]


def test_labels_of_files_are_hidden_wherever_they_are_read(folder):
    rows = np.flatnonzero(folder.labels == 1)
    found = sources.hide_labels(folder, rows)
    assert len(found) == len(folder) and found.class_names == folder.class_names
    assert found.fingerprint() != folder.fingerprint()
    assert sources.notes(found) == sources.notes(folder)
    part = found.take(np.arange(1, len(folder)))
    for row, label in enumerate(folder.labels):
        want = NO_LABEL if label == 1 else label
        pixels, seen = found.example(row)
        assert seen == found.labels[row] == want and found.name(row) == folder.name(row)
        np.testing.assert_array_equal(pixels, folder.example(row)[0])
        assert row == 0 or part.example(row - 1)[1] == part.labels[row - 1] == want
    np.testing.assert_array_equal(folder.labels[rows], 1)  # the original is as it was


@pytest.mark.parametrize("name", [lambda path: path, lambda path: path.split("/")[-1]])
def test_a_file_lists_images(folder, tmp_path, name):
    """By their paths, or by their last parts as the official lists do."""
    wanted = [folder.name(row) for row in (5, 2)]
    (tmp_path / "list.txt").write_text("".join(f"{name(path)}\r\n" for path in wanted))
    chosen = restricted(folder, labels__use=str(tmp_path / "list.txt"))
    assert [chosen.name(row) for row in range(len(chosen))] == wanted[::-1]


REFUSED = {
    "nonsense": ("some", "labels.use=some is neither"),
    "nothing": ("", "labels.use= is neither"),
    "less than one of each": ("0.5%", r"0.5% of 400 images .* of 4 classes: ask for 1%"),
    "a share of nothing": ("0%", "share of labels is 0"),
    "a share that is no number": ("nan%", "share of labels is nan"),
    "more than all": ("200%", "share of labels is 200"),
    "none": ("0", "labels per class is 0"),
    "more than there are": ("101", "100 examples but 101"),
}


@pytest.mark.parametrize("wanted, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_drawn_is_refused(wanted, message):
    with pytest.raises(UserError, match=message):
        restricted(images(), labels__use=wanted)


def test_the_share_that_is_asked_for_instead_is_enough():
    """10 of 1443 are 0.693 %: rounded to 0.69 % they would be refused again."""
    source = images(1443, classes=10)
    with pytest.raises(UserError, match="less than one for each") as refused:
        restricted(source, labels__use="0.1%")
    (share,) = (w for w in str(refused.value).partition("ask for ")[2].split() if "%" in w)
    assert len(restricted(source, labels__use=share)) == 10


LISTS = {
    "empty": (b"\n\n", "names no image"),
    "other images": (b"image 1\nimage 4000\n", "names 2 images, of which 1 are"),
    "no text": (b"\x89PNG\xff\xfe\n", "names 1 images, of which 0 are"),
}


@pytest.mark.parametrize("content, message", LISTS.values(), ids=LISTS)
def test_lists_that_do_not_fit_are_refused(tmp_path, content, message):
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(UserError, match=message):
        restricted(images(), labels__use=str(tmp_path / "list"))


@pytest.mark.parametrize("stage", ["finetune", "distill"])
def test_images_without_one_label_each_are_refused(stage):
    source = images()
    none = dataclasses.replace(source, labels=None, classes=0)
    unknown = dataclasses.replace(source, labels=np.full(len(source), NO_LABEL, np.int32))
    for unlabelled in (none, unknown):
        with pytest.raises(UserError, match=f"training images have no labels, .* stage {stage}"):
            restricted(unlabelled, stage)
    several = dataclasses.replace(source, labels=np.ones((len(source), 4), np.int8))
    if stage == "distill":
        with pytest.raises(UserError, match="several labels"):
            restricted(several, stage)
    else:  # each class is a question of its own
        assert len(restricted(several, stage)) == len(source)
