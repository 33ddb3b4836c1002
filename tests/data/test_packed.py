"""Packed stores as a source: order, placements, buckets, what was trained on; and what damages."""

from __future__ import annotations

import contextlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bucket
import numpy as np
import pytest
from data.packs import content, opened, pack, photographs, recipe
from etils import epath

from simclr_jax import documents, validation
from simclr_jax.data import batches, sources
from simclr_jax.data.decode import BadImage
from simclr_jax.data.packing import plan, run
from simclr_jax.data.packing.verify import verify
from simclr_jax.data.sources import Trained, Unseen, packed_files, packed_shards, trained
from simclr_jax.errors import Unreachable, UserError
from simclr_jax.stages import build
from simclr_jax.stages.inputs import Inputs

BATCH = 8


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("images"), 40)


@pytest.fixture(scope="module")
def exact(root, tmp_path_factory):
    """A store of pixels as they were, in shards of seven images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "MOST_IMAGES", 7)
        return pack(root, tmp_path_factory.mktemp("exact") / "store", side=64)


@pytest.fixture
def store(exact, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(exact, tmp_path / "store")


def seen(config, steps=6, first=0):
    """Return the batches of a run from a step on."""
    train, test = sources.open_splits(config.data)
    inputs = Inputs(config, train, test)
    requests = (batches.request(step, BATCH) for step in range(first, first + steps))
    return list(inputs.stream(requests))


def of_crops(path, source, **fields):
    config = recipe(path, source, threads=1, **fields)
    config.augment.placement, config.augment.grid = "split", "opencv"
    config.train.batch_size = BATCH
    return config


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# A source like any other --------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["packed", "folder"])
def test_a_run_sees_what_it_would_see_of_the_folder(root, exact, source):
    """The same images in the same order, others in the place of unreadable ones, the same crops."""
    expected = seen(of_crops(root, "folder"))
    assert_equal(seen(of_crops(exact, source)), expected)
    assert len({int(i) for batch in expected for i in batch["example"]}) < len(
        {tuple(at) for batch in expected for at in batch["position"].tolist()}
    )
    assert_equal(seen(of_crops(exact, source), steps=2, first=4), expected[4:])


def test_squares_go_to_the_device(root, tmp_path):
    store = pack(root, tmp_path / "store", square=True)
    config = recipe(store, "packed")
    config.train.batch_size = BATCH
    config.data.resident = True
    validation.validate(config, 1)
    inputs = Inputs(config, *sources.open_splits(config.data))
    found, packed = inputs.train, opened(store)
    assert found.pixels.shape == (len(packed), 16, 16, 3)
    assert np.flatnonzero(found.bad).tolist() == [*packed.unread] and len(packed.unread) > 3
    for i in np.flatnonzero(~found.bad):
        np.testing.assert_array_equal(found.pixels[i], packed.example(i)[0])
    assert found.labels.tolist() == packed.labels.tolist()
    config = recipe(pack(root, tmp_path / "other"), "packed")
    with pytest.raises(UserError, match="placement=device needs images of one size, but"):
        Inputs(config, *sources.open_splits(config.data))


def test_hidden_labels_and_the_commonest_questions(exact):
    packed = opened(exact)
    hidden = sources.hide_labels(packed, np.array([0, 2]))
    assert hidden.example(2)[1] == sources.NO_LABEL and packed.example(2)[1] != sources.NO_LABEL
    assert hidden.fingerprint() != packed.fingerprint()
    assert packed.take(np.arange(3)).fingerprint() != packed.fingerprint()
    assert packed.fingerprint() == opened(exact).fingerprint()
    assert packed.fingerprint() != opened(exact, labels=False).fingerprint()


def test_a_bucket_is_read_by_blocks(exact, tmp_path):
    fields = {"order": "stream", "stream_block": 4, "stream_window": 8, "stream_lanes": 2}
    expected = seen(of_crops(exact, "packed", **fields))
    with bucket.at(tmp_path / "bucket") as stand_in:
        for name, held in content(exact).items():
            stand_in().pipe_file(f"gs://fake/store/{name}", held)
        config = of_crops("gs://fake/store", "packed", **fields)
        validation.validate(config, 1)
        stand_in.reads.clear()
        found = seen(config)
        reads = [name for name, *_ in stand_in.reads if name.endswith(".bin")]
        verify("gs://fake/store", lambda line: None)
    assert_equal(found, expected)
    assert 0 < len(reads) < 30, "blocks, not images"


# What was trained on ------------------------------------------------------------------------------


def test_the_images_of_a_folder_are_known_again_in_the_store(root, exact):
    folder, packed = sources.find(recipe(root).data)["train"](), opened(exact)
    held_out = Trained(
        "runs/one",
        "train",
        len(folder),
        trained.identity(folder),
        2,
        trained.parts(folder),
        sizes=trained.sizes(folder),
    )
    data = recipe(exact, "packed", eval_split="none").data
    whole = sources.open_all(data, unseen=Unseen([held_out]))
    assert whole.held_out == 2 and "in place of" in whole.notes[0]
    data.eval_split = "test"
    sources.open_all(data, unseen=Unseen([held_out]))  # another directory
    with pytest.raises(UserError, match="runs/one trained on images of train"):
        trained.check(packed, "train", Unseen([held_out], "name others"), data, "train")


# Of another recipe --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"image_size": 32}, r"image_size is 32, but .* was packed with --side=16: .* --side=32"),
        ({"white_level": "range"}, "white_level is range, but .* was packed with full: leave it"),
        ({"layout": "classes"}, "layout is classes, but .* says itself which splits it has"),
        ({"name": "one"}, "data.name is one, but a pack has no variants"),
        ({"path": ""}, "data.path is empty"),
        ({"path": "nothing"}, "does not exist: `python -m simclr_jax.pack` makes a packed store"),
        ({"split": "trian"}, r'data.split is "trian" \(did you mean "train"\?\)'),
    ],
)
def test_a_recipe_that_a_store_does_not_serve_is_refused(root, tmp_path, fields, message):
    data = recipe(pack(root, tmp_path / "store"), "packed").data
    data.update(fields)
    with pytest.raises(UserError, match=message):
        sources.open_splits(data)


def test_a_stream_of_a_store_that_is_called_a_folder_says_what_it_is(exact):
    config = of_crops(exact, "folder", order="stream")
    with pytest.raises(UserError, match=r"order=random, or --config.data.source=packed if that"):
        validation.validate(config, 1)
    config.data.source = "packed"
    validation.validate(config, 1)


def test_of_images_that_were_small_nothing_is_lost(root, exact):
    sources.open_splits(recipe(exact, "packed", image_size=128).data)
    with pytest.raises(UserError, match=r"is no packed store \(it has no pack.json\)"):
        opened(root)


# Damaged ------------------------------------------------------------------------------------------


def flip(path, at=100):
    held = bytearray(path.read_bytes())
    held[at] ^= 1
    path.write_bytes(held)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda s: os.truncate(s / "train-00001.bin", 99), r"train-00001.bin has 99 of \d+ bytes"),
        (lambda s: (s / "train-00001.bin").unlink(), "train-00001.bin is missing: copy it again"),
        (lambda s: flip(s / "train.npz"), r"damaged, (its checksum is wrong|such as train.npz)"),
        (lambda s: (s / "train.npz").unlink(), "train.npz is missing"),
        (lambda s: flip(s / "pack.json"), "pack.json cannot be used"),
        (lambda s: (s / "pack.json").write_text("{}"), "has the format None, and this program"),
        (
            lambda s: documents.write(s / "pack.json", {"format": 1}),
            r"cannot be used \(.*missing required field",
        ),
    ],
)
def test_what_is_cut_or_damaged_is_said_when_it_is_opened(store, damage, message):
    damage(store)
    for look in (lambda: opened(store), lambda: verify(store)):
        with pytest.raises(UserError, match=message) as refused:
            look()
        assert "\n" not in str(refused.value)


def swap(arrays):
    arrays["length"][:2] = arrays["length"][1::-1]


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("size"),
        lambda arrays: arrays.update(length=arrays["length"] * 2**40),
        lambda arrays: arrays.update(length=-arrays["length"]),
        lambda arrays: arrays.update(length=arrays["length"].astype(float)),
        lambda arrays: arrays.update(crc32=arrays["crc32"][1:]),
        lambda arrays: arrays.update(names=arrays["names"][:-1]),
        lambda arrays: arrays.update(labels=arrays["labels"] + 2),
        lambda arrays: arrays.update(labels=arrays["labels"][:, None]),
        swap,
    ],
)
def test_an_index_that_is_not_of_the_shards_is_refused(store, change):
    with np.load(store / "train.npz") as file:
        arrays = dict(file)
    change(arrays)
    np.savez(store / "train.npz", **arrays)
    held, index = documents.read(store / "pack.json", dict), (store / "train.npz").read_bytes()
    checks = {"bytes": len(index), "crc32": packed_files.checksum(index)}
    held["splits"]["train"]["index"].update(checks)
    documents.write(store / "pack.json", held)
    with pytest.raises(UserError, match=r"train.npz is not of the 32 images"):
        opened(store)


def test_a_stranger_s_manifest_moves_no_cursor(store):
    held = documents.read(store / "pack.json", dict)
    one, source = held["splits"]["train"], {"path": "\x1b[2J"}
    one["notes"], held["source"] = ["a\x1b[2Jb"], source
    one["unreadable"][0]["reason"] = "\x1b[2J"
    documents.write(store / "pack.json", held)
    packed = opened(store)
    assert packed.notes[-1] == r"a\x1b[2Jb" and packed.notes[0].endswith(r"from None \x1b[2J")
    with pytest.raises(BadImage, match=r"^\\x1b\[2J$"):
        packed.example(one["unreadable"][0]["row"])


def test_a_stranger_s_manifest_leads_nowhere_else(store):
    held = documents.read(store / "pack.json", dict)
    held["splits"]["train"]["index"]["file"] = "../../etc/passwd"
    documents.write(store / "pack.json", held)
    with pytest.raises(UserError, match=r"names ../../etc/passwd, which is elsewhere"):
        opened(store)


def test_a_damaged_image_is_unreadable_and_the_others_are_not(store):
    packed, lines = opened(store), []
    verify(store, lines.append)
    assert "every checksum is right" in lines[-1]
    good = [packed.example(i)[0] for i in range(9, 14) if i not in packed.unread]
    row = 8  # the second image of the second shard
    flip(store / "train-00001.bin", int(packed.sizes[7].prod()) * 3 + 5)
    again = opened(store)
    with pytest.raises(BadImage, match=r"damaged in train-00001.bin: its checksum is wrong"):
        again.example(row)
    with pytest.raises(BadImage):
        again.example(row)  # nor later
    for found, image in zip((i for i in range(9, 14) if i not in packed.unread), good, strict=True):
        np.testing.assert_array_equal(again.example(found)[0], image)
    said = rf"1 of \d+ files of .* are damaged, such as train-00001.bin \(image {again.name(row)}\)"
    with pytest.raises(UserError, match=said):
        verify(store, lines.append)


def test_files_replaced_since_a_run_began_are_said_or_refused(store, tmp_path):
    kept, data = epath.Path(tmp_path / "run"), recipe(store, "packed").data
    sources.remember(kept, *sources.open_splits(data))
    assert [len(one.notes) for one in sources.open_splits(data, kept)] == [1, 1]
    before = sources.stamp(opened(store))
    os.utime(store / "train-00001.bin", (2e9, 2e9))
    said = sources.open_splits(data, kept)[0].notes[-1]
    assert "1 of 6 record files are not those that the run began with, such as train-00001" in said
    assert sources.stamp(opened(store)) != before
    data.if_changed = "refuse"
    with pytest.raises(UserError, match=r"train-00001.bin: bring back those"):
        sources.open_splits(data, kept)


def test_a_store_that_is_gone_may_come_back_and_a_shard_may_not(store, tmp_path):
    packed, other = opened(store), opened(store)
    (store / "train-00001.bin").unlink()
    with pytest.raises(UserError, match=r"train-00001.bin cannot be read \(No such file") as lost:
        packed.example(8)  # one file, and not each of its images
    assert lost.value.code == 1
    assert packed.example(0)[0].ndim == 3
    store.rename(tmp_path / "elsewhere")
    assert packed.example(0)[0].ndim == 3  # of a file that is open
    with pytest.raises(Unreachable, match=r"store are gone .*: bring them back"):
        other.example(0)


@pytest.mark.parametrize("source", ["packed", "folder"])
@pytest.mark.parametrize(
    "when, name",
    [("opened", "train-00001.bin"), ("read", "train-00001.bin"), ("opened", "pack.json")],
)
def test_files_that_are_links_into_a_cache_may_come_back(store, tmp_path, when, name, source):
    shard, cache = store / name, tmp_path / "cache"
    cache.mkdir()
    shard.rename(cache / "ab12")
    shard.symlink_to(cache / "ab12")
    data = recipe(store, source).data
    packed = sources.find(data)["train"]()
    cache.rename(tmp_path / "unmounted")
    with pytest.raises(Unreachable, match=rf"missed first: {name}\): bring them back"):
        packed.example(8) if when == "read" else sources.find(data)["train"]()
    (tmp_path / "unmounted").rename(cache)
    assert packed.example(8)[0].ndim == 3


def test_few_files_are_open_however_many_shards_there_are(store, monkeypatch):
    monkeypatch.setattr(packed_shards, "MOST_OPEN", 2)
    packed, place = opened(store), f"{store}/"

    def held():
        links = [*Path("/proc/self/fd").iterdir()]
        return [os.fspath(link.readlink()) for link in links if link.is_symlink()]

    good = [i for i in range(32) if i not in packed.unread]
    expected = [opened(store).example(i)[0].tobytes() for i in good]
    for _ in range(2):
        assert [packed.example(i)[0].tobytes() for i in good] == expected
        assert sum(name.startswith(place) for name in held()) <= 2
    with ThreadPoolExecutor(8) as pool:
        mixed = np.random.RandomState(0).permutation(np.repeat(good, 20)).tolist()
        found = pool.map(lambda i: packed.example(i)[0].tobytes(), mixed)
        assert list(found) == [expected[good.index(i)] for i in mixed]
    packed.shards._open.clear()
    assert not any(name.startswith(place) for name in held())


def test_a_shard_that_was_replaced_while_it_was_closed_is_verified_again(store, monkeypatch):
    monkeypatch.setattr(packed_shards, "MOST_OPEN", 1)
    packed, shard = opened(store), store / "train-00001.bin"
    before = packed.example(8)[0]
    packed.example(0)  # closes it
    np.testing.assert_array_equal(packed.example(8)[0], before)
    packed.example(0)
    held = bytearray(shard.read_bytes())
    shard.unlink()
    held[int(packed.sizes[7].prod()) * 3 + 5] ^= 1
    shard.write_bytes(held)
    with pytest.raises(BadImage, match="its checksum is wrong"):
        packed.example(8)


def test_an_index_may_be_larger_than_a_document(store, monkeypatch):
    remedy, _ = documents.content.__defaults__
    monkeypatch.setattr(documents.content, "__defaults__", (remedy, 100))  # for 2 GiB
    monkeypatch.setattr(packed_files, "PIECE", 7)
    assert len(opened(store)) == 32
    flip(store / "train.npz")
    with pytest.raises(UserError, match=r"train.npz is damaged, its checksum is wrong"):
        opened(store)


def test_views_larger_than_what_was_left_of_images_are_refused(root, exact, tmp_path):
    small = pack(root, tmp_path / "store")
    for store, refused in ((small, True), (exact, False)):
        config = recipe(store, "packed")
        config.augment.views.second.update(size=32, group="large")
        opened_splits = sources.open_splits(config.data)
        with contextlib.ExitStack() as stack:
            if refused:
                said = r"views.second.size is 32, but .* with --side=16: .* --side=32 .*size=16 or"
                stack.enter_context(pytest.raises(UserError, match=said))
            build.check_images(config, *opened_splits)
    with pytest.raises(UserError, match=r"--side is 16, less than augment.views.second.size=32"):
        run.pack(config, run.Options(str(tmp_path / "other"), side=16), lambda line: None)


def test_a_shard_that_is_cut_under_way_is_no_signal(store):
    packed = opened(store)
    packed.example(0)
    os.truncate(store / "train-00000.bin", 10)
    with pytest.raises(UserError, match=r"train-00000.bin was cut since it was opened: copy it"):
        packed.example(1)


def test_names_are_found_by_number():
    text = "a.png\ncafé.png\n\nlast\n".encode()
    names = packed_files.Names(np.frombuffer(text, np.uint8))
    assert [names[i] for i in range(4)] == ["a.png", "café.png", "", "last"]


def test_stores_of_other_pixels_are_told_apart(root, exact, tmp_path):
    one, other = opened(exact), opened(pack(root, tmp_path / "store"))
    assert one.fingerprint() != other.fingerprint()
    assert trained.identity(one) == trained.identity(other)
    assert [one.name(i) for i in range(9)] == [other.name(i) for i in range(9)]
