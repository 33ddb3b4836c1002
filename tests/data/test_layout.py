"""Directories as splits or as classes: no name decides alone, and all images are accounted for."""

from __future__ import annotations

import re

import numpy as np
import pytest
from data.folders import make, opened, options

from simclr_jax import recipes
from simclr_jax.data import sources
from simclr_jax.data.sources import folder
from simclr_jax.errors import UserError
from simclr_jax.judging import datasets
from simclr_jax.judging.datasets import Wanted


def tree(root, **counts):
    """Write so many images in each directory; `_` stands for none of them."""
    for name, count in counts.items():
        make(root, *(f"{'' if name == '_' else f'{name}/'}{i}.png" for i in range(count)))
    return root


def accounted(root, **fields):
    """Return the images that are used, and those that notes say are not."""
    data = options(root, **fields)
    train, test = sources.open_splits(data)
    used = {str(part.root / path) for part in (train, test) for path in part.paths}
    notes = [note for note in train.notes if "not used" in note]
    counts = [int(n) for note in notes for n in re.findall(r"(\d+) images?\b", note)]
    return len(used), sum(counts), " ".join(notes)


SPLIT = {"train": 6, "test": 3}


@pytest.mark.parametrize(
    "there, fields, used, words",
    [
        # A class is never taken for a split by its name alone.
        ({"train": 5, "plane": 4, "ship": 6}, {"layout": "classes"}, 15, ()),
        ({"Train": 5, "plane": 4, "ship": 6}, {"layout": "classes"}, 15, ()),
        ({"train": 5, "test": 4, "valid": 6}, {"layout": "classes"}, 15, ()),
        ({"cat": 5, "dog": 4, "cow": 6}, {}, 15, ()),
        ({"cat": 5, "dog": 4, "_": 6}, {}, 15, ()),
        # All are named like splits, or two are.
        (SPLIT, {}, 9, ()),
        ({"Train": 6, "TEST": 3}, {}, 9, ()),
        ({**SPLIT, "validation": 5}, {}, 9, ("validation (5 images)",)),
        ({**SPLIT, "validation": 5}, {"eval_split": "validation"}, 11, ("test (3 images)",)),
        ({**SPLIT, "extra": 7}, {}, 9, ("extra (7 images)", "data.split=extra")),
        ({**SPLIT, "extra": 7}, {"eval_split": "extra"}, 13, ("test (3 images)",)),
        ({**SPLIT, "extra": 7, "_": 2}, {}, 9, ("extra (7 images)", "2 images in none")),
        ({**SPLIT, "Train": 7}, {}, 9, ("Train (7 images)",)),
        ({**SPLIT, **{f"d{i}": 1 for i in range(9)}}, {}, 9, ("d0 (1 image)", "4 more")),
        # A recipe names one of its own accord.
        ({"photos": 6, "other": 3}, {"split": "photos"}, 6, ("other (3 images)",)),
        ({"train": 6, "dev": 3, "extra": 2}, {"eval_split": "dev"}, 9, ("extra (2 images)",)),
        # Said outright: each directory is a split.
        ({"train": 6, "cat": 3, "dog": 2}, {"layout": "splits"}, 6, ("cat (3 images)", "dog (2 ")),
        ({"train": 6, "Train": 3}, {"layout": "splits"}, 6, ("Train (3 images)",)),
        ({"a": 6, "b": 3}, {"layout": "splits", "split": "b"}, 3, ("a (6 images)",)),
        ({"train": 6, "_": 3}, {"layout": "splits"}, 6, ("3 images in none",)),
    ],
)
@pytest.mark.parametrize("labels", [True, False])
def test_all_images_are_used_or_counted(tmp_path, there, fields, used, words, labels):
    if labels and fields.get("layout") == "splits":
        labels = False  # no classes below
    tree(tmp_path, **there)
    make(tmp_path, "train.txt/notes.txt")  # a directory without images counts for nothing
    found, counted, said = accounted(tmp_path, labels=labels, **fields)
    assert found == used and found + counted == sum(there.values())
    assert all(word in said for word in words) and bool(said) == bool(words)


@pytest.mark.parametrize(
    "there, words",
    [
        (
            {"train": 5, "plane": 4, "ship": 6},
            ["train (5 images) beside plane (4 images) and ship (6 "],
        ),
        ({"cat": 5, "valid": 4}, ["valid (4 images) beside cat (5 images)"]),
        ({"Train": 5, "plane": 4}, ["Train (5 images) beside plane (4 images)"]),
        ({"train": 5, "Train": 4}, ["train (5 images) beside Train (4 images)"]),
        ({"train": 5, "_": 4}, ["train (5 images) beside 4 images in none"]),
        (dict(test=5, cat=2, **{"a b": 1}), ["test (5 images) beside a b (1 image) and cat (2 "]),
    ],
)
@pytest.mark.parametrize("labels", [True, False])
def test_one_name_beside_others_is_for_a_user_to_decide(tmp_path, there, words, labels):
    tree(tmp_path, **there)
    with pytest.raises(UserError) as told:
        folder.splits(options(tmp_path, labels=labels))
    said = str(told.value)
    words = [*words, "data.layout=splits", "data.layout=classes", f"--data=classes:{tmp_path}"]
    assert all(word in said for word in words) and "\n" not in said
    # Either remedy works, and accounts for every image.
    for layout in ("splits", "classes"):
        split = next(name for name in there if name.lower() in ("train", "test", "valid"))
        fields = {"labels": False, "layout": layout, "split": split, "eval_split": "none"}
        found, counted, _ = accounted(tmp_path, **fields)
        assert found + counted == sum(there.values())
        assert (counted == 0) == (layout == "classes")


def test_a_class_called_train_is_a_class(tmp_path):
    tree(tmp_path, train=3, plane=2)
    source = opened(tmp_path, layout="classes")
    assert source.class_names == ("plane", "train")
    np.testing.assert_array_equal(source.labels, [0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    "there, fields, message",
    [
        (
            {"TRAIN": 2, "Train": 3, "test": 1},
            {},
            "TRAIN and Train, any of which may be the split train",
        ),
        ({"_": 3}, {"layout": "splits"}, "no directory with images: set data.layout=classes"),
        ({"a": 1, "b": 2}, {"layout": "splits"}, 'data.split is "train", but ROOT has a, b'),
    ],
)
def test_refused(tmp_path, there, fields, message):
    tree(tmp_path, **there)
    with pytest.raises(UserError, match=re.escape(message.replace("ROOT", str(tmp_path)))):
        folder.splits(options(tmp_path, **fields))


def test_why_a_split_has_no_images_is_said(tmp_path):
    tree(tmp_path, test=2, val=1)
    for i in range(7):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / f"train/{i}.xyz").write_text("")
    with pytest.raises(UserError, match=r'data.split is "train", but .* has test, val.*7 \*\.xyz'):
        folder.splits(options(tmp_path))


def test_a_resumed_run_keeps_its_layout(tmp_path):
    """Directories that come later, of any name, change nothing."""
    root, kept = tree(tmp_path / "data", train=3, test=2), tmp_path / "run"
    first = sources.open_splits(options(root, labels=False))
    sources.remember(kept, *first)
    tree(root, validation=2, plane=9)
    again = sources.open_splits(options(root, labels=False), kept)
    assert [a.fingerprint() for a in again] == [a.fingerprint() for a in first]
    assert again[0].notes == first[0].notes == ()
    # A new one is told of both.
    notes = sources.open_splits(options(root, labels=False))[0].notes
    assert "plane (9 images)" in notes[0] and "validation (2 images)" in notes[1]


# Doors --------------------------------------------------------------------------------------------


def test_doors_say_which_splits_they_do_not_use(tmp_path):
    for split in ("train", "test", "validation", "spare"):
        tree(tmp_path, **{f"{split}/a": 2, f"{split}/b": 2})
    recipe = recipes.base()
    recipe.data = options("")  # of a run on other images

    def notes(**fields):
        return datasets.open_data(recipe, tmp_path / "run", Wanted(str(tmp_path), **fields)).notes

    assert notes() == [
        "not used: spare (4 images), which are no splits: data.split=spare would name one"
    ]
    assert any("test (4 images), which is a split" in n for n in notes(eval_split="validation"))


@pytest.mark.parametrize("layout, classes", [("classes", 2), ("splits", 0)])
def test_doors_take_the_layout_before_the_directory(tmp_path, layout, classes):
    tree(tmp_path, train=20, plane=20)
    recipe = recipes.base()
    recipe.data = options("", layout="splits")
    with pytest.raises(UserError, match=f"--data={layout}:{tmp_path}"):
        datasets.open_data(recipe, tmp_path / "run", Wanted(str(tmp_path)))
    wanted = Wanted(f"{layout}:{tmp_path}")
    opened = datasets.open_data(recipe, tmp_path / "run", wanted)
    assert opened.fit.classes == classes
    assert len(opened.fit) + len(opened.score) == (40 if classes else 20)
