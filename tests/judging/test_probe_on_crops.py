"""The probe on crops and flips: its images keep their labels, and nothing but crop and flip.

An image of one colour is the same whatever is cropped out of it, so its features are known.
"""

from __future__ import annotations

import numpy as np
import pytest
from judging import by_hand, noisy

from simclr_jax.data.sources import Images
from simclr_jax.errors import UserError
from simclr_jax.judging.crop_flip import Views
from simclr_jax.judging.feature_bank import Features
from simclr_jax.judging.solvers import SOLVERS, Settings, Task
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved

COUNT, CLASSES = 23, 3
RANDOM = np.random.RandomState(9)  # colours that the encoder tells apart
COLOURS = RANDOM.randint(0, 256, (COUNT, 1, 1, 3))
PIXELS = np.broadcast_to(COLOURS, (COUNT, 8, 8, 3)).astype(np.uint8)
LABELS = (RANDOM.permutation(COUNT) % CLASSES).astype(np.int32)
SOURCE = Images(PIXELS, LABELS, CLASSES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return noisy.write_run(tmp_path_factory.mktemp("run"), model__input="normalised")


@pytest.fixture(scope="module")
def encoder(run):
    return Encoder.of(saved.read(str(run)))


@pytest.fixture(scope="module")
def vectors(run):
    return noisy.of_run(run, PIXELS, "h"), noisy.of_run(run, PIXELS, "z")


def examples(found, vectors):
    """Return which image each feature vector is of."""
    apart = np.abs(vectors[:, None] - vectors[None]).max(axis=-1) + np.eye(COUNT)
    assert apart.min() > 1e-3
    distance = np.abs(found[:, None] - vectors[None]).max(axis=-1)
    assert distance.min(axis=1).max() < 1e-4
    return distance.argmin(axis=1)


def seen(encoder, vectors, seed, tap="h", steps=9):
    batches = list(Views(encoder, SOURCE, seed).features(tap, 8, steps))
    assert [len(x) for x, _ in batches] == [8] * steps
    images = examples(np.concatenate([x for x, _ in batches]), vectors)
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), LABELS[images])
    return images


def test_each_epoch_has_each_image_once_with_its_label(encoder, vectors):
    images = seen(encoder, vectors[0], seed=1)
    assert len(images) == 72  # three epochs and three images more
    epochs = [images[i : i + COUNT] for i in (0, COUNT, 2 * COUNT)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(COUNT))
    assert not np.array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(seen(encoder, vectors[1], 1, "z"), images)
    assert not np.array_equal(seen(encoder, vectors[0], 2), images)


def test_the_probe_on_crops_is_the_one_on_features_in_another_order(encoder, vectors):
    x, rows = vectors[0], np.array([1, 2, 4, *range(7, COUNT)])  # the others were unreadable
    source = Images(PIXELS, LABELS, CLASSES)
    fit, score = (Features(x[r], LABELS[r], CLASSES, r) for r in (rows, np.array([0, 3, 5, 6])))
    task = Task(encoder, "h", source, fit, None, score, CLASSES, "top-1", fit.known)
    settings = Settings(rates=(5.0, 0.5), epochs=2.5, batch_size=6, augment=True, seed=3)
    (found,) = SOLVERS["sgd"](task, settings)

    def trained(part, rate):
        steps = round(2.5 * len(part) / 6)
        views = Views(encoder, source.take(part), 3).features("h", 6, steps)
        return by_hand.descend(views, x.shape[1], CLASSES, rate, steps)

    fold = by_hand.folds(fit.labels, 10, 3)
    tried = {}
    for rate in settings.rates:
        kernel, bias = trained(rows[fold > 0], rate)
        tried[rate] = by_hand.top_1(x[rows[fold == 0]] @ kernel + bias, LABELS[rows[fold == 0]])
    rate = -by_hand.best({-rate: score for rate, score in tried.items()})
    assert found.protocol["chosen"]["rate for 256 images"] == rate
    kernel, bias = trained(rows, rate)
    np.testing.assert_allclose(found.outputs, score.x @ kernel + bias, atol=1e-3)
    assert found.name == "sgd_crop_flip"
    assert found.protocol["views"] == "crop and flip, new in each epoch"
    assert found.protocol["crop"] == "area 0.08 to 1 of the image"
    assert found.protocol["flip"] == "50% of the images"


def test_views_are_crops_and_flips_and_nothing_else(encoder, monkeypatch):
    """Red rises to the right, green downwards, and blue is one value.

    The run itself looked at whole views, as those of pretext tasks may, and never at their mirror.
    """
    whole = {"crop": False, "flip": 0.0, "area_min": 0.5}
    encoder = encoder.changed({f"augment.views.first.{name}": x for name, x in whole.items()})
    ramp = np.linspace(0, 255, 64)
    planes = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], np.float64(77)), axis=-1)
    pixels = np.repeat(planes[None].astype(np.uint8), 20, axis=0)
    source, views = Images(pixels, np.arange(20, dtype=np.int32) % 2, 2), []

    def extract(images, wanted, batch_size, prepared):
        assert prepared and wanted == ("h",)
        views.append(np.asarray(images))
        return {"h": np.zeros((len(images), 4))}

    monkeypatch.setattr(encoder, "extract", extract)
    list(Views(encoder, source, 0).features("h", 20, 10))
    found = np.concatenate(views)
    assert found.shape == (200, 8, 8, 3) and 0 <= found.min() <= found.max() <= 1
    np.testing.assert_allclose(found[..., 2], 77 / 255, atol=1e-3)
    middle = found[:, 1:-1, 1:-1]
    width = (middle[:, :, -1, 0] - middle[:, :, 0, 0]).mean(axis=1) * 8 / 5
    height = (middle[:, -1, :, 1] - middle[:, 0, :, 1]).mean(axis=1) * 8 / 5
    assert 0.35 < np.mean(width < 0) < 0.65 and (height > 0).all()  # flips are horizontal
    area = np.abs(width) * height
    assert 0.04 < area.min() < 0.2 and area.max() > 0.75 and 0.35 < area.mean() < 0.65
    assert len(np.unique(np.round(width, 5))) > 60  # new ones in each epoch


def test_images_need_one_label_each(encoder):
    with pytest.raises(UserError, match="no labels, which a probe on crops and flips needs"):
        Views(encoder, Images(PIXELS, None, 0), 0)
    both = Images(PIXELS, np.ones((COUNT, 2), np.int8), 2)
    with pytest.raises(UserError, match="may have several labels here"):
        Views(encoder, both, 0)
