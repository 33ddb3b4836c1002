"""What is chosen for the images, at the limits where the choice changes: just below, at, above."""

from __future__ import annotations

import numpy as np
import pytest
from stages.test_adapt import Source, chosen, recipe

from simclr_jax.stages.adapt import adapt

SIDES = (32, 64, 96, 128, 160, 192, 224)


@pytest.mark.parametrize("at", SIDES)
def test_the_size_is_the_largest_listed_one_that_the_median_reaches(at):
    below = {32: 32}.get(at, SIDES[SIDES.index(at) - 1] if at > 32 else 32)
    for side, want in ((at - 1, below), (at, at), (at + 1, at)):
        assert chosen(Source(500, [(side, 2 * side)])).data.image_size == want, side


def test_the_median_and_not_the_mean_or_the_largest_side_decides():
    sizes = [(100, 400), (100, 101), (130, 600), (700, 90), (100, 100)]
    assert chosen(Source(500, sizes)).data.image_size == 96
    assert chosen(Source(500, [(64, 64)] * 2 + [(500, 500)])).data.image_size == 64
    # Between two values the median is their mean, rounded down.
    assert chosen(Source(2, [(90, 90), (102, 102)])).data.image_size == 96
    assert chosen(Source(2, [(90, 90), (101, 101)])).data.image_size == 64


def test_64_images_spread_over_all_of_them_are_looked_at():
    seen = []

    class Counted(Source):
        def example(self, example):
            seen.append(example)
            return super().example(example)

    chosen(Counted(6301, [(50, 50)]))
    assert seen == [100 * i for i in range(64)] and seen[-1] == 6300
    seen.clear()
    chosen(Counted(63, [(50, 50)]))
    assert seen == list(range(63))


@pytest.mark.parametrize("size, stem", [(31, "cifar"), (32, "cifar"), (33, "imagenet")])
def test_the_small_stem_is_for_views_up_to_32_pixels(size, stem):
    assert chosen(Source(500, [(50, 50)]), data__image_size=size).model.stem == stem


@pytest.mark.parametrize("count, depth", [(99_999, 18), (100_000, 18), (100_001, 50)])
def test_the_smaller_network_is_for_up_to_100_000_images(count, depth):
    assert chosen(Source(count, [(50, 50)])).model.depth == depth


@pytest.mark.parametrize(
    "size, count, batch",
    [
        (127, 10_000, 512),
        (128, 10_000, 512),
        (129, 10_000, 256),
        (64, 4095, 256),  # an eighth of 4096 is 512
        (64, 4096, 512),
        (64, 127, 8),
        (64, 128, 16),
        (224, 2047, 128),
        (224, 2048, 256),
        (64, 3, 8),
    ],
)
def test_a_batch_is_a_power_of_2_up_to_an_eighth_of_the_images(size, count, batch):
    c = chosen(Source(count, [(300, 300)]), data__image_size=size)
    assert c.train.batch_size == batch


@pytest.mark.parametrize("count, batch", [(63, 16), (64, 32), (1023, 256), (1024, 512)])
def test_fine_tuning_takes_up_to_half_of_the_images(count, batch):
    c = recipe(data__image_size=64)
    c.stage = "finetune"
    found, lines = adapt(c, *[Source(count, [(70, 70)], 3)] * 2)
    assert found.train.batch_size == batch
    assert any(f"train.batch_size={batch}: half of {count} images, 512" in line for line in lines)


@pytest.mark.parametrize(
    "count, epochs",
    [
        (19_000, 1000),
        (20_000, 1000),
        (20_030, 999),  # 998.5 rounds up
        (40_000, 500),
        (199_000, 101),
        (200_000, 100),
        (300_000, 100),
    ],
)
def test_a_run_sees_20_million_images_in_100_to_1000_epochs(count, epochs):
    c, lines = adapt(recipe(), *[Source(count, [(64, 64)])] * 2)
    assert c.train.epochs == epochs
    assert c.eval.every_epochs == epochs // 20
    seen = f"train.epochs={epochs:.1f}: {epochs * count / 1e6:.3g} million images seen in all"
    assert any(seen in line for line in lines)


@pytest.mark.parametrize("epochs, warmup", [(1, 0.1), (7.77, 0.777), (99, 9.9), (400, 10.0)])
def test_the_rate_rises_in_a_tenth_of_a_short_run(epochs, warmup):
    c = chosen(Source(5000, [(64, 64)]), train__epochs=float(epochs))
    assert c.optim.warmup_epochs == pytest.approx(warmup)


@pytest.mark.parametrize("epochs, every", [(10, 1.0), (39, 1.0), (40, 2.0), (59, 2.0), (100, 5.0)])
def test_there_are_20_evaluations_at_least_an_epoch_apart(epochs, every):
    c = chosen(Source(5000, [(64, 64)]), train__epochs=float(epochs))
    assert c.eval.every_epochs == every


def test_a_length_in_steps_leaves_epochs_open():
    c = recipe(train__steps=50)
    found, lines = adapt(c, *[Source(5000, [(64, 64)])] * 2)
    assert found.train.epochs is None and found.train.steps == 50
    assert not any("train.epochs" in line for line in lines)
    assert found.eval.every_epochs == 1.0
    assert any("every_epochs=1.0: 5 evaluations" in line for line in lines)
    assert found.optim.warmup_epochs == pytest.approx(50 * 512 / 5000 / 10, rel=1e-2)


def test_a_run_of_less_than_an_epoch_promises_no_evaluation():
    _, lines = adapt(recipe(train__steps=3), *[Source(5000, [(64, 64)])] * 2)
    assert "eval.every_epochs=1.0: the run is over before one" in "\n".join(lines)


@pytest.mark.parametrize("train, test, want", [(3, 3, True), (3, 0, False), (0, 3, False)])
def test_labels_are_needed_on_both_sides(train, test, want):
    sides = [Source(500, [(64, 64)], classes) for classes in (train, test)]
    c, lines = adapt(recipe(), *sides)
    assert (c.eval.probe, c.eval.knn) == (want, want)
    said = "3 classes" if want else "the images have no labels"
    assert sum(said in line for line in lines) == 2


def test_each_choice_is_said_with_its_reason():
    _, lines = adapt(recipe(), *[Source(np.int64(3000), [(130, 300)], 7)] * 2)
    text = "\n".join(lines)
    for said in (
        "data.image_size=128: the median shorter side is 130 pixels",
        "model.stem=imagenet: views of 128 pixels",
        "model.depth=18: 3000 images",
        "train.batch_size=256: an eighth of 3000 images, 512 at most at this size",
        "train.epochs=1000.0: 3 million images seen in all",
        "eval.every_epochs=50.0: 20 evaluations",
        "eval.knn=True: 7 classes",
    ):
        assert f"chosen    {said}" in text
