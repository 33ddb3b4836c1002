"""What a recipe leaves open is chosen for the data, said, and never overrides the user."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from simclr_jax import recipes, validation
from simclr_jax.data.decode import BadImage
from simclr_jax.errors import UserError
from simclr_jax.stages.adapt import adapt, as_before

CONFIGS = Path(__file__).parents[2] / "configs"


def recipe(**fields):
    spec = importlib.util.spec_from_file_location("folder_recipe", CONFIGS / "folder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = module.get_config()
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return c


class Source:
    """`count` images of the sizes given, one after another; None is an unreadable one."""

    channels, multi_label = 3, False

    def __init__(self, count, sizes, classes=0):
        self.count, self.sizes, self.classes = count, sizes, classes
        self.labels = np.zeros(count, np.int32) if classes else None

    def __len__(self):
        return self.count

    def name(self, example):
        return f"{example}.jpg"

    def example(self, example):
        size = self.sizes[example % len(self.sizes)]
        if size is None:
            raise BadImage("truncated")
        return np.zeros((*size, 3), np.uint8), -1


def chosen(source, **fields):
    return adapt(recipe(**fields), source, source)[0]


@pytest.mark.parametrize(
    "sizes, side, stem",
    [
        ([(32, 32)], 32, "cifar"),
        ([(28, 28)], 32, "cifar"),
        ([(300, 128), (128, 171), (130, 128)], 128, "imagenet"),
        ([(480, 640), None, (4000, 3000)], 224, "imagenet"),
        ([(500, 170), (90, 90), (170, 900)], 160, "imagenet"),
    ],
)
def test_resolution_follows_the_shorter_side(sizes, side, stem):
    c = chosen(Source(5000, sizes))
    assert (c.data.image_size, c.model.stem) == (side, stem)


@pytest.mark.parametrize(
    "count, batch, epochs, depth",
    [(40, 8, 1000, 18), (3000, 256, 1000, 18), (50_000, 512, 400, 18), (10**6, 512, 100, 50)],
)
def test_batch_and_length_follow_the_number_of_images(count, batch, epochs, depth):
    c = chosen(Source(count, [(64, 64)]))
    assert (c.train.batch_size, c.train.epochs, c.model.depth) == (batch, epochs, depth)
    assert c.eval.every_epochs == epochs / 20
    validation.validate(c, devices=8)


@pytest.mark.parametrize(
    "sizes, k",
    [
        ((20, 20), 6),  # the square root of 40
        ((300, 277), 24),
        ((30_000, 20_000), 200),  # at most
        ((50_000, 100, 100), 100),  # and no more than the smallest class has
        ((600, 3), 5),  # but five
        ((300, 0, 0, 277), 24),
    ],
)
def test_neighbours_that_vote_follow_the_labelled_images(sizes, k):
    source = Source(60_000, [(64, 64)], len(sizes))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    source.labels = np.append(labels, np.full(60_000 - len(labels), -1))
    c, lines = adapt(recipe(), source, source)
    assert c.eval.knn_k == k
    assert any(f"eval.knn_k={k}: the square root of {sum(sizes)} " in line for line in lines)


class Unread(Source):
    """Its labels would have to be read one by one."""

    @property
    def labels(self):
        raise AssertionError("they were read")

    @labels.setter
    def labels(self, _):
        pass


@pytest.mark.parametrize(
    "fields", [{"eval__knn_k": 7, "eval__knn": True}, {"eval__knn": False}, {}], ids=str
)
def test_labels_are_not_read_for_a_number_that_is_given_or_not_used(fields):
    source = Unread(577, [(64, 64)], 3)
    c = recipe(eval__probe=False, **fields) if fields else recipes.base()
    found, _ = adapt(c, source, source)
    assert found.eval.knn_k == {7: 7, 200: 200}.get(c.eval.knn_k, 24)


def test_where_no_neighbours_are_counted_their_number_is_not_talked_of():
    c, lines = adapt(recipe(), *[Source(577, [(64, 64)])] * 2)
    assert c.eval.knn_k == 24 and not any("knn_k" in line for line in lines)


@pytest.mark.parametrize("classes", [0, 7])
def test_probe_and_knn_need_labels(classes):
    c = chosen(Source(5000, [(64, 64)], classes))
    assert c.eval.probe is c.eval.knn is (classes > 0)


def test_what_the_user_set_stays():
    fields = {"data__image_size": 96, "train__batch_size": 24, "eval__knn": False}
    c, lines = adapt(recipe(**fields), *[Source(5000, [(300, 300)], 3)] * 2)
    assert (c.data.image_size, c.train.batch_size, c.eval.knn) == (96, 24, False)
    said = {line.partition("=")[0].split()[1] for line in lines}
    set_here = {field.replace("__", ".") for field in fields}
    assert said == {*recipes.OPEN} - set_here - {"eval.knn_k"}  # of which eval.knn=False needs none


def test_choices_stand_when_a_run_is_resumed():
    """Though images may have vanished or changed: none is looked at."""
    before, _ = adapt(recipe(), *[Source(5000, [(40, 40)])] * 2)
    assert as_before(recipe(), before.to_dict()).to_dict() == before.to_dict()
    changed = as_before(recipe(data__image_size=64), before.to_dict())
    assert changed.data.image_size == 64  # for the comparison of recipes to refuse


def test_a_choice_that_an_old_record_does_not_have_is_the_default():
    before = adapt(recipe(), *[Source(5000, [(40, 40)])] * 2)[0].to_dict()
    del before["eval"]["every_epochs"]
    assert as_before(recipe(), before).eval.every_epochs == recipes.base().eval.every_epochs


def test_a_recipe_without_open_fields_is_left_alone():
    c = recipes.base()
    source = Source(5000, [None], 10)  # not even looked at
    found, lines = adapt(c, source, source)
    assert found.to_dict() == c.to_dict() and not lines


def test_nothing_but_broken_images_is_refused():
    with pytest.raises(UserError, match=r"none of 64 images .*\.jpg \(truncated\)"):
        chosen(Source(5000, [None]))


def test_evaluations_for_one_label_are_off_where_images_may_have_several():
    source = Source(2000, [(32, 32)], classes=5)
    assert chosen(source).eval.probe and chosen(source).eval.knn
    source.multi_label = True
    assert not chosen(source).eval.probe and not chosen(source).eval.knn
