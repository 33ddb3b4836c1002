"""Features kept on disk are those that would be computed, and nothing stale or damaged is used."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from stages.written import write_run
from train import tiny

from simclr_jax import documents, parallel
from simclr_jax.data.sources import Images, folder
from simclr_jax.errors import UserError
from simclr_jax.judging import feature_bank
from simclr_jax.recipes import base
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved

SHARD = 16
TAPS = ("h", "z")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved.read(str(write_run(tmp_path_factory.mktemp("run"))))


@pytest.fixture(scope="module")
def encoder(run):
    return Encoder.of(run)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(feature_bank, "SHARD", SHARD)
    monkeypatch.setattr(feature_bank, "BATCH", SHARD)


@pytest.fixture
def computed(monkeypatch):
    """Return the list of how many images each computation was for, and at which taps."""
    calls, compute = [], feature_bank._compute

    def counted(encoder, source, taps, unreadable):
        calls.append((len(source), tuple(taps)))
        return compute(encoder, source, taps, unreadable)

    monkeypatch.setattr(feature_bank, "_compute", counted)
    return calls


SOURCE = tiny.sorted_images()  # 48: three shards


def write_folder(path, count=20):
    random = np.random.RandomState(0)
    for i in range(count):
        (path / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = random.randint(0, 256, (9 + i % 3, 11, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path / "ab"[i % 2] / f"{i:02}.png")
    return path


def open_folder(path):
    data = base().data
    data.path = str(path)
    return folder.splits(data)["train"]()


def equal(a, b):
    for tap in TAPS:
        np.testing.assert_array_equal(a[tap].x, b[tap].x)
        np.testing.assert_array_equal(a[tap].examples, b[tap].examples)
        np.testing.assert_array_equal(a[tap].labels, b[tap].labels)


def test_one_device_and_eight_give_the_same(run, encoder):
    source = SOURCE.take(np.arange(37))  # neither a multiple of 8 nor of a shard
    one = feature_bank.extract(Encoder.of(run, parallel.make_mesh(1)), source, TAPS, None)
    eight = feature_bank.extract(encoder, source, TAPS, None)
    for tap in TAPS:
        np.testing.assert_allclose(one[tap].x, eight[tap].x, atol=1e-5)
        np.testing.assert_array_equal(one[tap].examples, np.arange(37))
        np.testing.assert_array_equal(one[tap].labels, source.labels)
    np.testing.assert_allclose(eight["h"].x, encoder(source.pixels), atol=1e-5)


def test_what_was_kept_is_read_and_the_rest_computed(encoder, computed, tmp_path):
    first = feature_bank.extract(encoder, SOURCE, ("h",), tmp_path)
    assert computed == [(16, ("h",))] * 3
    both = feature_bank.extract(encoder, SOURCE, TAPS, tmp_path)
    assert computed[3:] == [(16, ("z",))] * 3
    np.testing.assert_array_equal(both["h"].x, first["h"].x)
    equal(feature_bank.extract(encoder, SOURCE, TAPS, tmp_path), both)
    assert len(computed) == 6
    (about,) = tmp_path.glob("*/about.json")
    assert documents.read(about, dict) == feature_bank.key(encoder, SOURCE)


@pytest.mark.parametrize("harm", ["deleted", "cut", "flipped", "emptied", "another", "narrow"])
def test_a_shard_that_is_not_whole_is_computed_again(encoder, computed, tmp_path, harm):
    whole = feature_bank.extract(encoder, SOURCE, TAPS, tmp_path)
    (shard,) = tmp_path.glob("*/h-00001.npz")
    content = shard.read_bytes()
    middle = len(content) // 2
    shard.write_bytes(
        {
            "cut": content[:middle],
            "flipped": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
        }.get(harm, b"")
    )
    if harm == "deleted":
        shard.unlink()
    if harm == "another":
        shard.write_bytes((shard.parent / "h-00000.npz").read_bytes())
    if harm == "narrow":
        np.savez(shard, x=np.zeros((16, 3)), bad=np.zeros(16, bool), of="")
    said = []
    equal(feature_bank.extract(encoder, SOURCE, TAPS, tmp_path, said.append), whole)
    assert computed[3:] == [(16, ("h",))]
    assert sum("made again" in line for line in said) == (harm != "deleted")


def test_other_weights_data_or_preprocessing_have_a_key_of_their_own(run, encoder, tmp_path):
    keys = [feature_bank.key(encoder, SOURCE), feature_bank.key(encoder.untrained(), SOURCE)]
    changed = SOURCE.pixels.copy()
    changed[3, 0, 0, 0] ^= 1
    keys.append(feature_bank.key(encoder, Images(changed, SOURCE.labels, 4)))
    grid = saved.Saved(run.workdir, 7, tiny.recipe(augment__grid="antialias").to_dict(), run.leaves)
    keys.append(feature_bank.key(Encoder.of(grid), SOURCE))
    path = write_folder(tmp_path)
    keys.append(feature_bank.key(encoder, open_folder(path)))
    Image.new("RGB", (9, 11)).save(path / "a" / "00.png")  # another image under the same name
    keys.append(feature_bank.key(encoder, open_folder(path)))
    assert len({json.dumps(key) for key in keys}) == len(keys)


def test_images_of_any_size_are_read_and_unreadable_ones_left_out(run, encoder, tmp_path):
    config = tiny.recipe(data__max_bad_fraction=0.2)
    tolerant = Encoder.of(saved.Saved(run.workdir, 7, config.to_dict(), run.leaves))
    path = write_folder(tmp_path / "images")
    source = open_folder(path)
    bad = [3, 16, 17, 18]  # the second shard has one image left
    for i in bad:
        (path / source.paths[i]).write_bytes(b"no image")
    said = []
    cache = tmp_path / "cache"
    found = feature_bank.extract(tolerant, source, TAPS, cache, said.append)
    good = np.setdiff1d(np.arange(20), bad)
    np.testing.assert_array_equal(found["z"].examples, good)
    np.testing.assert_array_equal(found["z"].labels, source.labels[good])
    images = [source.example(int(i))[0] for i in good]
    np.testing.assert_allclose(found["z"].x, encoder(images, tap="z"), atol=1e-5)
    assert any(f"unreadable: {source.name(3)}" in line for line in said)
    with pytest.raises(UserError, match=r"of 20 images are unreadable .* --max_bad_fraction"):
        for _ in range(2):  # however much was kept before
            feature_bank.extract(encoder, source, TAPS, cache)
    said.clear()
    equal(feature_bank.extract(tolerant, source, TAPS, cache, said.append), found)
    assert "note      4 of 20 images are unreadable and left out" in said
