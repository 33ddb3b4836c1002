"""How few labels and images are enough, at the limit; and by what names choices of labels go."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from stages import noisy, taught
from train import tiny

from simclr_jax import parallel
from simclr_jax.data.sources import NO_LABEL, Images
from simclr_jax.errors import UserError
from simclr_jax.stages import build, labels
from simclr_jax.stages.accuracy import Accuracy
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.labelled_network import LabelledNetwork


def images(counts, unlabelled=0):
    """Return so many images of each class and some without a label."""
    y = np.repeat([*range(len(counts)), NO_LABEL], [*counts, unlabelled]).astype(np.int32)
    return Images(np.zeros((len(y), 8, 8, 3), np.uint8), y, len(counts))


@pytest.mark.parametrize("few, enough", [(4, True), (5, True), (6, False), (7, False)])
def test_few_labels_are_at_most_those_of_the_smallest_class(few, enough):
    """Images without a label are of no class, and an absent class is none."""
    c, train = tiny.recipe(eval__few_labels=few), images((9, 0, 5, 8), unlabelled=3)
    test = images((3, 3, 3, 3))
    if enough:
        build.check_images(c, train, test)
        return
    with pytest.raises(UserError, match=rf"few_labels is {few}, but a class has only 5 .*=5"):
        build.check_images(c, train, test)
    build.check_images(tiny.recipe(eval__few_labels=few, eval__compare=False), train, test)
    build.check_images(taught.recipe(eval__few_labels=few), train, test)


@pytest.mark.parametrize("count, enough", [(1, False), (2, True), (3, True)])
def test_two_held_out_images_are_the_fewest(count, enough):
    c, train = tiny.recipe(), images((9, 9))
    if enough:
        build.check_images(c, train, images((count, 0)))
    else:
        with pytest.raises(UserError, match="there is 1 image to evaluate on"):
            build.check_images(c, train, images((count, 0)))


@pytest.mark.parametrize("use, count", [("7%", None), ("8%", 5), ("12%", 6), ("13%", 7)])
def test_a_share_gives_each_class_one_or_more_or_is_refused(use, count):
    """The share is of the 50 images with a label: 8 % of them are one for each of four classes."""
    train = images((20, 15, 10, 5), unlabelled=8)
    c = taught.recipe(labels__use=use)
    if count is None:
        with pytest.raises(UserError, match=r"7% of 50 images .* of 4 classes: ask for 8%"):
            labels.restrict(c, train)
        return
    chosen = labels.restrict(c, train).labels
    want = [max(1, round(float(use[:-1]) / 100 * n)) for n in (20, 15, 10, 5)]
    np.testing.assert_array_equal(np.bincount(chosen), want)
    assert len(chosen) == count == sum(want)


@pytest.mark.parametrize("number", [1, 4, 5])
def test_a_number_is_of_each_class_of_its_seed_and_part_of_a_larger_one(number):
    split = noisy.split(1, unlabelled=7).images
    known = np.flatnonzero(split.labels != NO_LABEL)
    found = {}
    for seed in (0, 3):
        c = taught.recipe(labels__use=str(number), labels__seed=seed)
        chosen = labels.restrict(c, split)
        rows = known[noisy.few(split.labels[known], number, seed)]
        np.testing.assert_array_equal(chosen.pixels, split.pixels[rows])
        np.testing.assert_array_equal(chosen.labels, split.labels[rows])
        found[seed] = set(rows)
        more = known[noisy.few(split.labels[known], number + 3, seed)]
        assert found[seed] < set(more)
    assert found[0] != found[3]


@pytest.mark.parametrize(
    "use, seed, word",
    [
        ("all", 3, ""),
        ("1%", 0, "1pct_labels-seed0"),
        ("1%", 12, "1pct_labels-seed12"),
        ("0.5%", 1, "0.5pct_labels-seed1"),
        ("25", 0, "25_labels-seed0"),
    ],
)
def test_results_of_other_labels_have_other_names(use, seed, word):
    assert labels.tag(use, seed) == word


def test_a_list_goes_by_its_name_and_content(tmp_path):
    path = tmp_path / "some-names.v2.txt"
    for content in (b"image 1\n", b"image 2\n"):
        path.write_bytes(content)
        assert labels.describe(str(path)) == f"{path}, crc32 {zlib.crc32(content):08x}"
    assert labels.tag(str(path), 1) == "some_names.v2_labels-seed1"
    assert labels.describe("10%") == "10%" and labels.describe("all") == "all"


def test_which_labels_were_learned_from_is_said():
    teacher = {"distill__teacher": "runs/teacher"}
    c = taught.recipe(labels__use="10%", labels__seed=4, data__split="some")
    assert labels.in_words(c) == "10% of some, draw 4"
    assert labels.in_words(taught.recipe("distill", **teacher)) == "none"
    for fields in ({"distill__alpha": 0.5}, {"distill__images": "labelled"}):
        c = taught.recipe("distill", **teacher, **fields, labels__use="3")
        assert labels.in_words(c) == "3 of train, draw 0"


def test_without_held_out_labels_nothing_is_measured():
    c, train = taught.recipe(), images((9, 9))
    test = Images(train.pixels, None, 0)
    judge = Accuracy(c, LabelledNetwork(c, 2), Inputs(c, train, test), parallel.make_mesh(1))
    assert judge.evaluate(None) == {} == judge.compare(None)
