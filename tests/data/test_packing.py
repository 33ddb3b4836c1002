"""Making packed stores: of what, how, and whatever happens meanwhile."""

from __future__ import annotations

import errno
import io
import os
import shutil
import struct
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from data import awkward
from data.packs import SIDE, content, opened, pack, photographs, recipe
from PIL import Image, ImageOps

from simclr_jax.data import sources
from simclr_jax.data.decode import BadImage
from simclr_jax.data.packing import finish, plan, records, run, shards
from simclr_jax.data.sources import tfrecord, tfrecord_files
from simclr_jax.errors import UserError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def straight(root, tmp_path_factory):
    """A store that was packed without interruption, in shards of three images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "MOST_IMAGES", 3)
        return pack(root, tmp_path_factory.mktemp("straight") / "store")


def each(source):
    """Return pixels and label of each example, or why there are none."""
    found = []
    for i in range(len(source)):
        try:
            pixels, label = source.example(i)
            found.append((pixels.shape, pixels.tobytes(), label))
        except BadImage as reason:
            found.append(str(reason))
    return found


# What is made -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_images_that_are_not_shrunk_are_those_of_the_source_the_unreadable_too(tmp_path):
    awkward.write(tmp_path / "awkward")
    fields = {"max_bad_fraction": 0.9}
    store = pack(tmp_path / "awkward", tmp_path / "store", side=4096, fields=fields)
    folder = sources.find(recipe(tmp_path / "awkward", labels=False).data)["train"]()
    packed = opened(store, labels=False)
    assert each(packed) == each(folder)
    assert [packed.name(i) for i in range(len(packed))] == [*map(folder.name, range(len(folder)))]
    bad = [one for one in each(folder) if isinstance(one, str)]
    assert 10 < len(bad) < len(folder) - 10
    assert [one.reason for one in packed.of.unreadable] == bad


def test_splits_labels_and_names_of_classes_are_those_of_the_folder(root, straight):
    for split in ("train", "test"):
        folder, packed = sources.find(recipe(root).data)[split](), opened(straight, split)
        assert packed.labels.tolist() == folder.labels.tolist()
        assert (packed.classes, packed.class_names) == (2, ("a", "b"))
        assert [label for *_, label in each(packed) if label] == [
            label for *_, label in each(folder) if label
        ]
        assert opened(straight, split, labels=False).labels is None
        part = packed.take(np.array([3, 0]))
        assert [part.name(0), part.labels.tolist()] == [
            packed.name(3),
            packed.labels[[3, 0]].tolist(),
        ]
        np.testing.assert_array_equal(part.example(1)[0], packed.example(0)[0])


@pytest.mark.parametrize("square", [False, True])
def test_larger_images_are_shrunk_as_pillow_does(root, tmp_path, square):
    side = 24 if square else 16
    packed = opened(pack(root, tmp_path / "store", square=square, side=side))
    shapes = set()
    for i in range(len(packed)):
        try:
            found = packed.example(i)[0]
        except BadImage:
            continue
        image = Image.open(root / "train" / packed.name(i))
        law = Image.Resampling.BICUBIC
        if square:
            image = ImageOps.fit(image, (side, side), law)
        elif min(image.size) > side:
            image = ImageOps.cover(image, (side, side), law)
        np.testing.assert_array_equal(found, np.asarray(image))
        shapes.add(found.shape)
    assert len(shapes) == 1 if square else len(shapes) > 4
    assert packed.of.shrunk > 2 and (packed.of.enlarged > 0) == square


def test_jpegs_are_near_the_pixels_and_smaller_with_less_quality(tmp_path):
    (tmp_path / "images").mkdir()
    awkward.RGB.resize((90, 60)).save(tmp_path / "images" / "1.png")
    stores = {
        quality: pack(
            tmp_path / "images", tmp_path / f"{quality}", kind="jpeg", side=40, quality=quality
        )
        for quality in (30, 95)
    }
    raw = opened(pack(tmp_path / "images", tmp_path / "raw", side=40)).example(0)[0]
    error, size = {}, {}
    for quality, store in stores.items():
        found = opened(store).example(0)[0]
        assert found.shape == raw.shape == (40, 60, 3)
        error[quality] = np.abs(found.astype(int) - raw).mean()
        size[quality] = (store / "train-00000.bin").stat().st_size
        image = Image.open(io.BytesIO((store / "train-00000.bin").read_bytes()))
        assert (image.format, image.size) == ("JPEG", (60, 40))
    assert error[95] < 3 and error[95] < 0.7 * error[30] and size[30] < size[95]


def write_records(path, encoded):
    """Write a TFRecord file of images whose labels count from 0."""
    with path.open("wb") as file:
        for i, image in enumerate(encoded):
            example = tfrecord._example_class()()
            example.features.feature["image/encoded"].bytes_list.value.append(image)
            example.features.feature["image/class/label"].int64_list.value.append(i % 3)
            example.features.feature["image/filename"].bytes_list.value.append(b"%d.jpg" % i)
            record = example.SerializeToString()
            for part in (struct.pack("<Q", len(record)), record):
                row = np.frombuffer(part, np.uint8)[None]
                check = tfrecord_files._masked(tfrecord_files._crc32c(row))
                file.write(part + check.tobytes())


def test_records_are_packed_with_their_names_and_labels(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "records").mkdir()
    images = [awkward.jpeg(awkward.RGB.resize((9 + i, 12))) for i in range(7)]
    images[4] = images[4][:50]
    write_records(tmp_path / "records" / "train.tfrecord", images)
    store = pack(tmp_path / "records", tmp_path / "store", source="tfrecord")
    source = sources.find(recipe(tmp_path / "records", "tfrecord").data)["train"]()
    packed = opened(store)
    assert each(packed) == each(source) and packed.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert [packed.name(i) for i in range(7)] == [f"{i}.jpg" for i in range(7)]
    assert packed.class_names == ("0", "1", "2") and [*packed.unread] == [4]
    os.utime(tmp_path / "records" / "train.tfrecord", (2e9, 2e9))
    with pytest.raises(UserError, match="1 of 1 record files are not those"):
        pack(tmp_path / "records", store, source="tfrecord")


@pytest.mark.parametrize("kind", ["uint8", "jpeg"])
def test_images_in_memory_keep_channels_and_several_labels(tmp_path, kind):
    pixels = np.repeat(np.arange(0, 240, 40, dtype=np.uint8), 100).reshape(6, 10, 10, 1)
    several = np.random.RandomState(0).randint(-1, 2, (6, 3))
    np.savez(tmp_path / "images.npz", images=pixels, labels=several, class_names=list("xyz"))
    store = pack(tmp_path / "images.npz", tmp_path / "store", source="memory", kind=kind)
    found = opened(store)
    assert found.multi_label and found.labels.tolist() == several.tolist()
    assert (found.classes, found.class_names, found.channels) == (3, ("x", "y", "z"), 1)
    for i in range(6):
        np.testing.assert_allclose(found.example(i)[0], pixels[i], atol=2 * (kind == "jpeg"))
        assert found.example(i)[1] == sources.NO_LABEL


def test_a_store_can_be_packed_smaller(root, straight, tmp_path):
    again = opened(pack(straight, tmp_path / "again", source="packed", side=9))
    first = opened(straight)
    assert [again.name(i) for i in range(len(again))] == [first.name(i) for i in range(len(first))]
    assert min(again.sizes[again.sizes > 0]) == 9
    assert again.of.origin.identity == first.of.origin.identity
    assert [one.reason for one in again.of.unreadable] == [o.reason for o in first.of.unreadable]


def test_lines_tell_what_is_packed_and_where_it_serves(root, tmp_path):
    lines = []
    store = pack(root, tmp_path / "store", lines)
    text = "\n".join(lines)
    assert "uint8, shorter side 16 pixels" in text and "of train (2 classes)" in text
    assert "unreadable: b/05.png" in text and "its place stays empty" in text
    assert f"--config.data.source=packed --config.data.path={store}" in text
    assert "packed: uint8, shorter side 16 pixels, from folder" in opened(store).notes[0]


# Interrupted --------------------------------------------------------------------------------------


class Struck(BaseException):
    """What ends a program wherever it is, in the place of a signal."""


def strike(patch, module, name, call):
    """Let the call of this number of a function end the program before it does anything."""
    made, calls = getattr(module, name), []

    def struck(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise Struck
        return made(*args, **kwargs)

    patch.setattr(module, name, struck)


MOMENTS = {
    "before the plan": (plan.Plan, "write", 1),
    "at the first image": (shards, "record", 5),  # four were made to know the size
    "within a shard": (shards, "record", 3),
    "between a shard and what says so": (shards, "_say", 2),
    "at the end of the last shard": (shards, "_say", 6),
    "before the index of a split": (finish, "_summed", 2),
    "before the manifest": (finish.documents, "write", 3),
    "while what is left over goes": (Path, "unlink", 9),  # six were of files set aside
    "when the plan alone is left": (Path, "unlink", 13),
    "before it gets its name": (run, "_rename", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(root, straight, tmp_path, moment):
    out, module = tmp_path / "store", MOMENTS[moment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "MOST_IMAGES", 3)
        strike(patch, *module)
        with pytest.raises(Struck):
            pack(root, out)
        assert not out.exists()
        with pytest.raises(UserError, match=r"not packed to its end \(.*store.partial is there\)"):
            opened(out)
    with pytest.MonkeyPatch.context() as patch:
        if moment == "before the plan":  # else shards have the size that was planned
            patch.setattr(plan, "MOST_IMAGES", 3)
        pack(root, out)
    assert content(out) == content(straight)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_shards_that_are_there_are_not_made_again(root, straight, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MOST_IMAGES", 3)
    with monkeypatch.context() as patch:
        strike(patch, shards, "_say", 4)
        with pytest.raises(Struck):
            pack(root, tmp_path / "store")
    made, record = [], records.record
    monkeypatch.setattr(shards, "record", lambda *args: made.append(args) or record(*args))
    lines = []
    pack(root, tmp_path / "store", lines)
    total = sum(one.images for one in opened(straight).store.manifest.splits.values())
    assert 0 < len(made) <= total - 9 and any("are there from before" in line for line in lines)
    assert content(tmp_path / "store") == content(straight)


def test_shards_that_were_damaged_meanwhile_are_made_again(root, straight, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MOST_IMAGES", 3)
    with monkeypatch.context() as patch:
        strike(patch, shards, "_say", 5)
        with pytest.raises(Struck):
            pack(root, tmp_path / "store")
    first, second, third, *_ = sorted((tmp_path / "store.partial").glob("*-*.npz"))
    os.truncate(first.with_suffix(".bin"), 7)
    second.write_bytes(second.read_bytes()[:-30])
    third.with_suffix(".bin").unlink()
    pack(root, tmp_path / "store")
    assert content(tmp_path / "store") == content(straight)


def test_a_full_disk_is_one_line_and_what_is_there_stays(root, straight, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MOST_IMAGES", 3)
    sync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot be written .*: free space there and start"):
            pack(root, tmp_path / "store")
    pack(root, tmp_path / "store")
    assert content(tmp_path / "store") == content(straight)


# Refused ------------------------------------------------------------------------------------------


def test_too_small_a_disk_is_said_before_anything_is_written(root, tmp_path, monkeypatch):
    usage = Usage(10**6, 10**6 - 4000, 4000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    said = r"has 4 kB free, and about \d+\.\d kB are needed: .* --format=jpeg"
    with pytest.raises(UserError, match=said):
        pack(root, tmp_path / "store")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "fields, options, message",
    [
        ({}, {"splits": ["trian"]}, r'--splits is "trian" \(did you mean "train"\?\)'),
        ({}, {"side": 8, "out": "gs://b/store"}, "in a bucket: pack to a disk, and copy"),
        ({}, {"out": "nowhere/store"}, "there is no directory .*nowhere"),
        ({}, {"out": "store.partial"}, "name another"),
        ({"image_size": 32}, {}, "--side is 16, less than data.image_size=32: give --side=32"),
        ({"max_bad_fraction": 0.01}, {}, r"b/05.png \(.*\): repair them, or raise data.max_bad"),
        ({"path": "nothing"}, {}, "does not exist"),
        ({"path": "empty"}, {}, "has no images"),
        ({"path": "bad"}, {}, r"none of 3 images looked at is readable, not even 2.png \(.*\)"),
        ({"path": "loose"}, {}, r"has 1 image\(s\) outside its class directories.*labels=False"),
        ({"source": None}, {}, "leaves data.source open"),
        ({"max_bad_fraction": 2.0}, {}, "data.max_bad_fraction is 2.0: it must be in"),
    ],
)
def test_what_cannot_be_packed_is_refused_and_leaves_nothing(
    root, tmp_path, monkeypatch, fields, options, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    for i in range(3):
        (tmp_path / "bad" / f"{i}.png").write_bytes(b"no image")
    for name in ("train/a/1.png", "train/b/2.png", "test/3.png"):
        path = tmp_path / "loose" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        awkward.RGB.save(path)
    before = {*tmp_path.iterdir()}
    config = recipe(fields.pop("path", root))
    with config.unlocked():
        config.data.update(fields) if fields.get("source", "") is not None else None
        if "source" in fields:
            config.data.source = None
    given = run.Options(**{"out": str(tmp_path / "store"), "side": SIDE, "workers": 1} | options)
    with pytest.raises(UserError, match=message) as refused:
        run.pack(config, given, lambda line: None)
    assert "\n" not in str(refused.value)
    assert {path.name for path in {*tmp_path.iterdir()} - before} <= {"store.partial"}
    assert not (tmp_path / "store").exists()


def test_labels_that_cannot_be_used_are_left_out_where_nobody_asks_for_them(tmp_path):
    for name in ("train/a/1.png", "train/b/2.png", "test/3.png"):
        path = tmp_path / "loose" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        awkward.RGB.save(path)
    lines = []
    store = pack(tmp_path / "loose", tmp_path / "store", lines, fields={"labels": False})
    assert any("labels are left out: " in line and "outside its class" in line for line in lines)
    assert opened(store).labels is None
    # And packed where they can be, for the runs that want them.
    (tmp_path / "loose/test/3.png").unlink()
    awkward.RGB.save(tmp_path / "loose/train/a/3.png")
    store = pack(tmp_path / "loose", tmp_path / "other", fields={"labels": False})
    assert opened(store).labels.tolist() == [0, 0, 1]


def test_what_is_there_is_whole_or_of_others(root, straight, tmp_path):
    store = shutil.copytree(straight, tmp_path / "store")
    lines, before = [], content(store)
    pack(root, store, lines)
    assert "is there already, of these images" in lines[-1] and content(store) == before
    for options, said in (
        ({"side": 17}, "already, with side 16, not 17"),
        ({"kind": "jpeg"}, "already, with kind uint8, not jpeg"),
        ({"splits": ["test"]}, "already, with the splits train, test, not test|test, train, not"),
    ):
        with pytest.raises(UserError, match=f"({said}).*: name another --out, or remove"):
            pack(root, store, **options)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    for place in (tmp_path / "other", tmp_path / "other" / "mine.txt"):
        with pytest.raises(UserError, match="is there already, and no packed store: name another"):
            pack(root, place)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=r"is a link or a mounted disk, .*: name a directory inside"
    ):
        pack(root, tmp_path / "link")
    (tmp_path / "other").rename(tmp_path / "new.partial")
    with pytest.raises(UserError, match="nothing that can go on: remove it"):
        pack(root, tmp_path / "new")
    assert content(store) == before and (tmp_path / "new.partial" / "mine.txt").exists()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("change", ["replaced", "added"])
def test_a_source_that_has_changed_is_refused(straight, tmp_path, monkeypatch, whole, change):
    root = photographs(tmp_path / "images")
    with monkeypatch.context() as patch:
        if not whole:
            strike(patch, finish, "_summed", 1)
        try:
            pack(root, tmp_path / "store")
        except Struck:
            assert not whole
    if change == "replaced":
        os.utime(root / "train" / "b" / "01.png", (2e9, 2e9))
        said = "1 of .* images in .*train are not the files that they were .*, such as b/01.png"
    else:
        awkward.RGB.save(root / "train" / "a" / "new.png")
        said = r"with other images or labels of train \(11, now 12\)"
    before = content(tmp_path)
    with pytest.raises(UserError, match=f"{said}.*(another --out|give the same again), or remove"):
        pack(root, tmp_path / "store")
    assert content(tmp_path) == before


def test_a_source_that_changes_while_it_is_packed_is_not_sealed(tmp_path, monkeypatch):
    root = photographs(tmp_path / "images")
    monkeypatch.setattr(plan, "MOST_IMAGES", 3)
    write = shards.write

    def and_replace(source, job, *args):
        if job.first:  # when the first shard is there
            os.utime(root / "train" / "b" / "01.png", (2e9, 2e9))
        return write(source, job, *args)

    monkeypatch.setattr(shards, "write", and_replace)
    said = r"1 of .* images in .*train are not the files that they were .*, such as b/01.png"
    with pytest.raises(UserError, match=rf"{said}.*: remove .*store.partial to pack anew"):
        pack(root, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_two_do_not_pack_into_one(root, tmp_path, monkeypatch):
    def meanwhile(*args):
        with pytest.raises(UserError, match=r"another process is packing into .*store.partial"):
            pack(root, tmp_path / "store")

    with monkeypatch.context() as patch:
        write = run._write

        def both(*args):
            patch.setattr(run, "_write", write)
            meanwhile()
            write(*args)

        patch.setattr(run, "_write", both)
        store = pack(root, tmp_path / "store")
    assert len(opened(store)) == 11
