"""What makes kept features other features, fact by fact, and what does not."""

from __future__ import annotations

import dataclasses
import os

import jax
import numpy as np
import pytest
from judging import noisy
from PIL import Image

from simclr_jax.data import formats
from simclr_jax.data.sources import Images, folder
from simclr_jax.errors import UserError
from simclr_jax.judging import feature_bank
from simclr_jax.recipes import base
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved

PIXELS, LABELS = noisy.draw("train", 40)
SOURCE = Images(PIXELS, LABELS, noisy.CLASSES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return noisy.write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def encoder(run):
    return Encoder.of(saved.read(str(run)))


@pytest.fixture
def computed(monkeypatch):
    """Put numbers in the place of features, and return how many images each call was for."""
    calls = []

    def compute(encoder, source, taps, unreadable):
        calls.append(len(source))
        shape, bad = (len(source), 3), np.zeros(len(source), bool)
        return {tap: {"x": np.full(shape, len(calls), np.float32), "bad": bad} for tap in taps}

    monkeypatch.setattr(feature_bank, "_compute", compute)
    return calls


def ask(encoder, source, cache):
    return feature_bank.extract(encoder, source, ("h",), cache)["h"].x[0, 0]


def with_leaf(encoder, path):
    """Return the encoder with one number of one weight or statistic changed a little."""
    kind, part, *names = path.split("/")
    variables = jax.tree.map(np.array, jax.device_get(encoder.variables))
    tree = variables[kind][part]
    for name in names:
        tree = tree[name]
    leaf = jax.tree.leaves(tree)[-1]
    leaf.flat[-1] = np.nextafter(leaf.flat[-1], np.float32(9))
    return Encoder(encoder.config, variables, encoder.run, encoder.step, encoder.mesh)


def prepared(encoder, **fields):
    return encoder.changed({}, dataclasses.replace(encoder.preprocessing, **fields))


def pixels_with(change):
    pixels = PIXELS.copy()
    change(pixels)
    return Images(pixels, LABELS, noisy.CLASSES)


def one_pixel(pixels):
    pixels[-1, -1, -1, -1] ^= 1


FACTS = {
    "a weight of the encoder": lambda e, s: (with_leaf(e, "params/encoder/stem_conv"), s),
    "a weight of the head": lambda e, s: (with_leaf(e, "params/head"), s),
    "a moving statistic": lambda e, s: (with_leaf(e, "batch_stats/encoder"), s),
    "the network before training": lambda e, s: (e.untrained(), s),
    "the dtype": lambda e, s: (e.changed({"train.dtype": "bfloat16"}), s),
    "what the encoder is shown": lambda e, s: (e.changed({"model.input": "normalised"}), s),
    "the epsilon": lambda e, s: (e.changed({"bn.epsilon": 1e-3}), s),
    "the size": lambda e, s: (prepared(e, size=9), s),
    "the grid": lambda e, s: (prepared(e, grid="opencv"), s),
    "the crop": lambda e, s: (prepared(e, proportion=0.875), s),
    "the channels": lambda e, s: (prepared(e, channels=1), s),
    "a pixel": lambda e, s: (e, pixels_with(one_pixel)),
    "the order": lambda e, s: (e, s.take(np.arange(len(s))[::-1])),
    "an image less": lambda e, s: (e, s.take(np.arange(len(s) - 1))),
    "the shape": lambda e, s: (e, dataclasses.replace(s, pixels=PIXELS.reshape(40, 4, 16, 3))),
}


@pytest.mark.parametrize("fact", list(FACTS))
def test_other_facts_are_computed_and_equal_ones_read(encoder, computed, tmp_path, fact):
    assert ask(encoder, SOURCE, tmp_path) == 1
    changed, source = FACTS[fact](encoder, SOURCE)
    assert ask(changed, source, tmp_path) == 2
    assert (ask(encoder, SOURCE, tmp_path), ask(changed, source, tmp_path)) == (1, 2)
    assert len(computed) == 2


def test_what_decides_no_feature_is_no_reason_to_compute(run, encoder, computed, tmp_path):
    ask(encoder, SOURCE, tmp_path)
    equal = Images(PIXELS.copy(), LABELS.copy(), noisy.CLASSES)
    for other, source in (
        (Encoder.of(saved.read(str(run))), equal),
        (encoder.changed({"data.max_bad_fraction": 0.7, "data.threads": 1}), SOURCE),
        (encoder.changed({"eval.knn_k": 3, "train.batch_size": 24, "seed": 9}), SOURCE),
    ):
        assert ask(other, source, tmp_path) == 1
    assert computed == [40]
    assert ask(encoder, SOURCE, tmp_path / "elsewhere") == 2
    assert ask(encoder, SOURCE, None) == 3 and ask(encoder, SOURCE, None) == 4


def test_features_are_kept_where_one_says(tmp_path):
    assert feature_bank.cache_of(tmp_path, "") == tmp_path / "features"
    assert feature_bank.cache_of(tmp_path, str(tmp_path / "x")) == tmp_path / "x"
    assert feature_bank.cache_of(tmp_path, "none") is None


def write(path, i):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS[i]).save(path.with_suffix(".bmp"))
    path.with_suffix(".bmp").rename(path)  # of one size, whatever is on it
    os.utime(path, (100, 100))


@pytest.fixture
def images(tmp_path):
    for i in range(12):
        for at, split in enumerate(("train", "test")):
            write(tmp_path / "images" / split / "ab"[i % 2] / f"{i}.bmp", i + 12 * at)
    return tmp_path / "images"


def opened(path, split="train"):
    data = base().data
    data.path = str(path)
    return folder.splits(data)[split]()


def replaced_later(path):
    write(path / "train/a/4.bmp", 20)
    os.utime(path / "train/a/4.bmp", ns=(100 * 10**9, 100 * 10**9 + 1000))


def replaced_by_a_longer_one(path):
    file = path / "train/a/4.bmp"
    file.write_bytes(file.read_bytes() + b"\0")
    os.utime(file, (100, 100))


def renamed(path):
    (path / "train/a/4.bmp").rename(path / "train/a/5.bmp")


def moved_to_another_class(path):
    (path / "train/a/4.bmp").rename(path / "train/b/4.bmp")


def removed(path):
    (path / "train/b/11.bmp").unlink()


@pytest.mark.parametrize(
    "change", [replaced_later, replaced_by_a_longer_one, renamed, moved_to_another_class, removed]
)
def test_files_that_change_are_read_again(encoder, computed, images, tmp_path, change):
    cache = tmp_path / "cache"
    assert [ask(encoder, opened(images), cache) for _ in range(2)] == [1, 1]
    change(images)
    assert [ask(encoder, opened(images), cache) for _ in range(2)] == [2, 2]


def test_a_file_that_has_been_repaired_counts(run, tmp_path):
    config = saved.read(str(run))
    encoder = Encoder.of(config).changed({"data.max_bad_fraction": 0.1})
    for i in range(12):
        write(tmp_path / "images" / "ab"[i % 2] / f"{i:02}.bmp", i)
    broken = tmp_path / "images/a/04.bmp"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    found = [feature_bank.extract(encoder, opened(tmp_path / "images"), ("h",), tmp_path)["h"]]
    broken.write_bytes(whole)
    found.append(feature_bank.extract(encoder, opened(tmp_path / "images"), ("h",), tmp_path)["h"])
    names = [f"{i:02}" for i in (*range(0, 12, 2), *range(1, 12, 2))]
    expected = noisy.of_run(run, PIXELS[[int(name) for name in names]], "h")
    rows = np.arange(12)
    for part, kept in zip(found, (rows[rows != names.index("04")], rows), strict=True):
        np.testing.assert_array_equal(part.examples, kept)
        np.testing.assert_allclose(part.x, expected[kept], atol=1e-5)
        np.testing.assert_array_equal(part.labels, (kept >= 6).astype(int))


def test_an_image_counts_once_its_format_can_be_read(encoder, monkeypatch, images, tmp_path):
    """By a package that was installed since: the files are what they were."""
    Image.fromarray(PIXELS[4]).save(images / "train/a/4.bmp", "PNG")
    source, cache = opened(images), tmp_path / "cache"
    every, tolerant = formats.readable(), encoder.changed({"data.max_bad_fraction": 0.5})
    for there in (every, tuple(name for name in every if name != "PNG"), every):
        monkeypatch.setattr(formats, "readable", lambda there=there: there)
        found = feature_bank.extract(tolerant, source, ("h",), cache)["h"]
        left_out = [] if there is every else [source.paths.index("a/4.bmp")]
        np.testing.assert_array_equal(found.examples, np.setdiff1d(np.arange(12), left_out))


def test_an_image_that_one_tap_was_kept_without_is_left_out_of_all(encoder, images, tmp_path):
    """Repaired, and of the size and time that it had: the features of before are still read."""
    file, cache = images / "train/a/4.bmp", tmp_path / "cache"
    tolerant = encoder.changed({"data.max_bad_fraction": 0.5})
    whole, good = file.read_bytes(), np.setdiff1d(np.arange(12), 3)
    file.write_bytes(b"no image".ljust(len(whole)))
    os.utime(file, (100, 100))
    before = feature_bank.extract(tolerant, opened(images), ("h",), cache)
    np.testing.assert_array_equal(before["h"].examples, good)
    file.write_bytes(whole)
    os.utime(file, (100, 100))
    found = feature_bank.extract(tolerant, opened(images), ("h", "z"), cache)
    for tap in ("h", "z"):
        np.testing.assert_array_equal(found[tap].examples, good)
    np.testing.assert_array_equal(found["h"].x, before["h"].x)


@pytest.mark.parametrize("count", [15, 16, 17, 33])
def test_the_last_shard_and_batch_may_be_of_any_size(run, encoder, monkeypatch, tmp_path, count):
    monkeypatch.setattr(feature_bank, "SHARD", 16)
    monkeypatch.setattr(feature_bank, "BATCH", 6)
    source, expected = SOURCE.take(np.arange(count)), noisy.of_run(run, PIXELS, "h")[:count]
    for _ in range(2):  # computed, and read
        found = feature_bank.extract(encoder, source, ("h",), tmp_path)["h"]
        np.testing.assert_allclose(found.x, expected, atol=1e-5)
        np.testing.assert_array_equal(found.examples, np.arange(count))
        np.testing.assert_array_equal(found.labels, LABELS[:count])
    assert len(list(tmp_path.glob("*/h-*.npz"))) == -(-count // 16)


@pytest.mark.parametrize("most, refused", [(0.1, False), (0.0999, True)])
def test_as_many_may_be_unreadable_as_are_allowed(encoder, computed, monkeypatch, most, refused):
    bad = np.isin(np.arange(40), (3, 4, 20, 39))

    def compute(encoder, source, taps, unreadable):
        return {tap: {"x": np.ones((40, 2), np.float32), "bad": bad} for tap in taps}

    monkeypatch.setattr(feature_bank, "_compute", compute)
    tolerant = encoder.changed({"data.max_bad_fraction": most})
    if refused:
        with pytest.raises(UserError, match="4 of 40 images are unreadable"):
            feature_bank.extract(tolerant, SOURCE, ("h",), None)
    else:
        found = feature_bank.extract(tolerant, SOURCE, ("h",), None)["h"]
        np.testing.assert_array_equal(found.examples, np.flatnonzero(~bad))
