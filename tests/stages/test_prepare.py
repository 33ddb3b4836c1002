"""A recipe made ready: what is counted on which images, before a model is built."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from stages import taught
from train import tiny

from simclr_jax.data.sources import NO_LABEL, Opened
from simclr_jax.stages.prepare import prepare


def prepared(config, train):
    test = tiny.sorted_images(3).take(np.arange(21))
    opened = Opened(train, test, train)
    return prepare(config, 1, open_all=lambda *_: opened, read=lambda *_: [])


def recipe(stage="finetune", **fields):
    lengths = {"train__steps": None, "train__epochs": 3.0, "train__batch_size": 8}
    more = {"optim__warmup_epochs": 1.0, "eval__every_epochs": 0.5, "init__run": "runs/first"}
    return taught.recipe(stage, **lengths | more | fields)


@pytest.mark.parametrize("use, images", [("all", 48), ("50%", 24), ("3", 12)])
def test_epochs_warm_up_and_evaluations_count_the_images_with_labels_to_be_used(use, images):
    made = prepared(recipe(labels__use=use), tiny.sorted_images())
    found = made.timetable
    assert (len(made.train), len(made.images)) == (images, 48)
    assert found.examples == images
    # 3 epochs, a started step counted whole; 1 of warm-up, without it; an evaluation every half.
    assert found.total_steps == 3 * images // 8 + 1
    assert found.warmup_steps == images // 8
    assert found.evaluate_every == max(1, round(0.5 * images / 8))
    assert found.epochs == pytest.approx(found.total_steps * 8 / images)


def test_unlabelled_images_are_counted_where_they_are_learned_from():
    """A student learns from all images; a classifier from those that have a label."""
    train = tiny.sorted_images()
    labels = np.where(np.arange(48) % 4 == 1, NO_LABEL, train.labels).astype(np.int32)
    train = dataclasses.replace(train, labels=labels)
    tuned = prepared(recipe(), train)
    assert (tuned.timetable.examples, tuned.images) == (36, train)
    student = recipe("distill", distill__teacher="runs/first", init__run="")
    assert prepared(student, train).timetable.examples == 48
    assert "36 to learn from, 21 held out, 4 classes" in tuned.about()[0]
