"""Data sets prepared by TFDS, here from images in memory, against those images."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from simclr_jax.data import sources
from simclr_jax.data.decode import BadImage
from simclr_jax.data.read_ahead import ReadAhead
from simclr_jax.data.sources import open_splits, stamp, tfds
from simclr_jax.data.sources.tfds_records import Records
from simclr_jax.errors import Unreachable, UserError
from simclr_jax.unlabelled import NO_LABEL

library = pytest.importorskip("tensorflow_datasets")

TRAIN, TEST = 48, 9
NAMES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encode(pixels, kind):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def photo(i, kind="JPEG"):
    """Return an image file whose size and pixels tell it from the others."""
    random = np.random.RandomState(i)
    height, width = 20 + i, 70 - i
    return encode(random.randint(0, 256, (height, width, 3), dtype=np.uint8), kind)


def pixels(encoded):
    return np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))


def builder_class(title, features, records, register=False, configs=()):
    """Return a TFDS builder that makes `records`, of each split, in their order."""

    class Builder(library.core.GeneratorBasedBuilder, skip_registration=not register):
        name = title
        VERSION = library.core.Version("1.2.0")
        BUILDER_CONFIGS = [library.core.BuilderConfig(name=config) for config in configs]  # noqa: RUF012

        def _info(self):
            return library.core.DatasetInfo(
                builder=self,
                features=library.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, _):
            return {split: self._generate_examples(split) for split in records}

        def _generate_examples(self, split):
            yield from enumerate(records[split])

    return Builder


def prepare(root, *args, file_format="array_record", config=None, shards=1, **kwargs):
    cls = builder_class(*args, **kwargs)
    builder = cls(data_dir=root, file_format=file_format, config=config)
    how = library.download.DownloadConfig(num_shards=shards)
    builder.download_and_prepare(download_config=how)


def photos(count, offset=0):
    return [
        {"image": photo(i), "label": NAMES[i % 3], "file_name": f"{i}.jpg"}
        for i in range(offset, offset + count)
    ]


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Return a data_dir with one data set of each kind."""
    root = tmp_path_factory.mktemp("tfds")
    image, text = library.features.Image(), library.features.Text()
    label = library.features.ClassLabel(names=NAMES)
    prepare(
        root,
        "photos",
        {"image": image, "label": label, "file_name": text},
        {"train": photos(TRAIN), "test": photos(TEST, 48)},
        shards=3,
    )

    random = np.random.RandomState(0)
    small = random.randint(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    png = library.features.Image(shape=(32, 32, 3), encoding_format="png")
    mask = library.features.Image(shape=(32, 32, 1))
    shapes = [
        {
            "mask": one[..., :1],
            "image": one,
            "id": i,
            "coarse": i % 2,
            "label": i % 3,
            "zone": i % 2,
        }
        for i, one in enumerate(small)
    ]
    pair = library.features.ClassLabel(num_classes=2)
    kinds = {"coarse": pair, "label": label, "zone": pair}
    prepare(root, "small", {"mask": mask, "image": png, "id": np.int64, **kinds}, {"train": shapes})

    unlabelled = [{"picture": photo(i), "title": "a"} for i in range(4)]
    prepare(root, "plain", {"picture": image, "title": text}, {"train": unlabelled})
    half = {"train": photos(3), "unlabelled": [{"image": photo(i), "label": -1} for i in range(3)]}
    half["train"] = [{"image": one["image"], "label": one["label"]} for one in half["train"]]
    half["mixed"] = [half["train"][0], half["unlabelled"][0]]
    half["late"] = [*half["unlabelled"], *half["train"]]
    prepare(root, "half", {"image": image, "label": label}, half)

    kinds = library.features.Sequence(label)
    lists = {"labels": kinds, "labels_no_difficult": kinds, "image/filename": text}
    objects = [
        {"labels": ["ant", "cat"], "labels_no_difficult": ["cat"]},
        {"labels": ["bee", "bee"], "labels_no_difficult": ["bee"]},
        {"labels": [], "labels_no_difficult": []},
        {"labels": [-1], "labels_no_difficult": [-1]},  # nobody has looked
        {"labels": [1, -1], "labels_no_difficult": [1, -1]},
    ]
    objects = [
        one | {"image": photo(i), "image/filename": f"{i}.jpg", "views": [i % 2]}
        for i, one in enumerate(objects)
    ]
    lists["views"] = library.features.Sequence(pair)
    prepare(root, "scenes", {"image": image, **lists}, {"train": objects})

    words = [{"text": "none"}]
    prepare(root, "words", {"text": text}, {"train": words})
    old = {"train": unlabelled}
    prepare(root, "old", {"picture": image, "title": text}, old, file_format="tfrecord")
    both = ("one", "two")
    prepare(root, "many", {"picture": image, "title": text}, old, config="two", configs=both)
    return root


def options(name="", path="", **fields):
    data = {"name": name, "path": str(path), "split": "train", "eval_split": "test"}
    rest = {"source": "tfds", "labels": True, "holdout_fraction": 0.25, "index": ""}
    return ConfigDict(data | rest | fields)


def opened(root, name="photos", split="train", **fields):
    return tfds.splits(options(name, root, split=split, **fields))[split]()


# What it reads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("split, offset, count", [("train", 0, TRAIN), ("test", 48, TEST)])
def test_every_record_is_the_image_it_was_made_of(root, split, offset, count):
    source = opened(root, split=split)
    assert len(source) == count and source.classes == 3 and source.channels == 3
    assert source.class_names == tuple(NAMES) and not source.multi_label
    for i in range(count):
        found, label = source.example(i)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, pixels(photo(offset + i)))
        assert label == (offset + i) % 3
        assert source.name(i) == f"{offset + i}.jpg"


def test_labels_are_those_of_the_examples(root, monkeypatch):
    source = opened(root).take(np.arange(47, -1, -1)).take(np.array([42, 42, 47, 0, 46]))
    assert source.labels.dtype == np.int32
    np.testing.assert_array_equal(source.labels, [2, 2, 0, 2, 1])
    assert [source.example(i)[1] for i in range(5)] == [2, 2, 0, 2, 1]
    known, rows = opened(root), np.arange(9, 3, -1)
    assert len(known.labels) == TRAIN
    taken = known.take(rows)
    monkeypatch.setattr(Records, "_labels_at", None)  # without reading them again
    assert taken.take(np.arange(2)).labels.tolist() == taken.labels[:2].tolist()
    monkeypatch.undo()
    np.testing.assert_array_equal(taken.labels, opened(root).take(rows).labels)


def test_threads_read_what_one_thread_reads(root):
    alone = opened(root)
    expected = [alone.example(i)[0] for i in range(TRAIN)]
    shared, order = opened(root), np.random.RandomState(0).permutation(np.repeat(range(TRAIN), 10))
    with ThreadPoolExecutor(16) as pool:  # readers of the three files are opened in the rush, too
        for i, (found, label) in zip(order, pool.map(shared.example, order), strict=True):
            np.testing.assert_array_equal(found, expected[i])
            assert label == i % 3


def test_small_images_with_a_mask_and_three_kinds_of_label(root):
    source = opened(root, "small")
    random = np.random.RandomState(0).randint(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    for i in range(12):
        found, label = source.example(i)
        np.testing.assert_array_equal(found, random[i])
        assert label == i % 3  # "label", not "coarse" or "zone"
    assert source.name(7) == "train[7]"
    assert source.take(np.array([3, 7])).name(1) == "train[7]"


def test_a_name_that_is_no_text_is_shown_all_the_same(tmp_path):
    image, text = library.features.Image(), library.features.Text()
    records = {"train": [{"image": photo(0), "file_name": b"caf\xe9\x1b[2J.jpg"}]}
    prepare(tmp_path, "strange", {"image": image, "file_name": text}, records)
    assert opened(tmp_path, "strange").name(0) == r"caf\xe9\x1b[2J.jpg"


def test_several_labels_and_those_only_of_difficult_objects(root):
    source = opened(root, "scenes")
    assert source.multi_label and source.classes == 3 and source.class_names == tuple(NAMES)
    assert source.labels.dtype == np.int8
    known = [[-1, 0, 1], [0, 1, 0], [0, 0, 0], [-1, -1, -1], [-1, 1, -1]]
    np.testing.assert_array_equal(source.labels, known)
    for wrong in (3, -2):
        with pytest.raises(
            UserError, match=rf"train\[7\] of .* has label {wrong}, but .* 3 classes"
        ):
            source._labels({"labels": [0, wrong], "labels_no_difficult": [0]}, 7)
    np.testing.assert_array_equal(source.take(np.array([2, 0])).labels[1], [-1, 0, 1])
    found, label = source.example(1)
    np.testing.assert_array_equal(found, pixels(photo(1)))
    assert label == NO_LABEL and source.name(1) == "1.jpg"
    assert opened(root, "scenes", labels=False).labels is None


@pytest.mark.parametrize(
    "name, split, fields",
    [
        ("plain", "train", {}),
        ("photos", "train", {"labels": False}),
        ("half", "unlabelled", {}),  # TFDS marks these with -1
    ],
)
def test_without_labels(root, name, split, fields):
    source = opened(root, name, split, **fields)
    assert source.labels is None and source.classes == 0
    found, label = source.example(1)
    np.testing.assert_array_equal(found, pixels(photo(1)))
    assert label == NO_LABEL


def test_a_label_that_is_missing_among_others_is_none(root):
    """Also where it is the first, by which a split without any might be told."""
    source = opened(root, "half", "mixed")
    assert source.labels.tolist() == [0, NO_LABEL] and source.classes == 3
    assert [source.example(i)[1] for i in range(2)] == [0, NO_LABEL]
    source = opened(root, "half", "late")
    assert source.labels.tolist() == [NO_LABEL] * 3 + [0, 1, 2] and source.classes == 3


def test_each_label_is_read_once_whichever_splits_are_made(root, monkeypatch):
    read, labels_at = [], Records._labels_at
    monkeypatch.setattr(
        Records, "_labels_at", lambda self, rows: read.extend(rows) or labels_at(self, rows)
    )
    whole = sources.noted(opened(root), ["a note"])
    train, held_out = whole.take(np.arange(0, 40)), whole.take(np.arange(40, TRAIN))
    assert len(train.labels) == 40 and sorted(read) == list(range(40))
    joined = [*train.labels, *held_out.labels]
    np.testing.assert_array_equal(whole.labels, joined)
    assert sources.noted(whole, ["another"]).labels.tolist() == joined
    assert sorted(read) == list(range(TRAIN))


@pytest.mark.parametrize("labelled", [0, 4, 1999])
def test_one_label_is_found_among_many_records(labelled):
    """It is not among the few that are looked at first, or it is."""
    from simclr_jax.data.sources import tfds

    labels = np.full(2000, NO_LABEL)

    class Many:
        def __init__(self, rows):
            self.labels = labels[rows]

        def __len__(self):
            return len(self.labels)

        take = staticmethod(lambda rows: Many(rows))

    many = Many(slice(None))
    assert tfds._none_labelled(many)
    labels[labelled] = 2
    assert not tfds._none_labelled(many)


def test_broken_files_are_bad_images_and_nothing_else_breaks(root, tmp_path):
    shutil.copytree(root / "photos", tmp_path / "photos")
    whole, files = opened(root), sorted(tmp_path.rglob("photos-train*"))
    files[1].unlink()
    stored = files[0].read_bytes()
    assert stored.count(photo(3)[-90:]) == 1
    files[0].write_bytes(stored.replace(photo(3)[-90:], bytes(90)))
    source, bad = opened(tmp_path), []
    assert source.classes == 3 and len(source) == TRAIN
    for i in range(TRAIN):
        try:
            np.testing.assert_array_equal(source.example(i)[0], whole.example(i)[0])
        except BadImage as reason:
            bad.append(i)
            assert "unreadable record" in str(reason)
            assert source.name(i) == f"train[{i}]"
    assert bad == [3, *range(TRAIN // 3, 2 * TRAIN // 3)]
    expected = np.where(np.isin(range(TRAIN), bad), NO_LABEL, np.arange(TRAIN) % 3)
    np.testing.assert_array_equal(source.labels, expected)


@pytest.mark.parametrize("name, label", [("photos", NO_LABEL), ("scenes", [NO_LABEL] * 3)])
def test_a_record_that_cannot_be_parsed_has_no_label(root, name, label):
    whole = opened(root, name)
    raw = [b"\xff\xff\xff", whole.raw[1]]
    source = dataclasses.replace(whole, raw=raw, rows=np.arange(2))
    np.testing.assert_array_equal(source.labels, [label, whole.labels[1]])
    assert source.name(0) == "train[0]"
    for read in (source.example, source.stored_label):
        with pytest.raises(BadImage, match="damaged record"):
            read(0)


# Splits -------------------------------------------------------------------------------------------


def test_slices_are_parts_of_their_split(root):
    first, rest = "train[:25%]", "train[25%:]"
    found = tfds.splits(options("photos", root, split=first, eval_split=rest))
    assert list(found) == ["train", "test", first, rest]
    parts = [found[name]() for name in (first, rest)]
    names = [part.name(i) for part in parts for i in range(len(part))]
    assert [len(part) for part in parts] == [12, 36]
    assert names == [f"{i}.jpg" for i in range(TRAIN)]
    assert parts[1].example(0)[1] == 12 % 3


@pytest.mark.parametrize(
    "train, held_out",
    [("train", "train[90%:]"), ("train[:30]", "train[29:]"), ("train+test", "test")],
)
def test_what_is_trained_on_is_not_held_out(root, train, held_out):
    with pytest.raises(UserError, match="shares examples with"):
        tfds.splits(options("photos", root, split=train, eval_split=held_out))


@pytest.mark.parametrize(
    "trained, scored, met",
    [
        ("train[:50%]", "train[50%:]", False),
        ("train[:50%]", "train[:9]", True),
        ("train[:50%]", "train", True),
        ("train+test", "test", True),
        ("train[:5]+test[6:]", "test[:6]", False),
        ("all", "test", True),
        ("train", "test", False),
    ],
)
def test_a_slice_of_which_another_run_has_seen_a_part_is_not_scored(root, trained, scored, met):
    data = options("photos", root, split="train[:1]" if scored != "train" else "test")
    data.eval_split = scored
    if scored in ("train[:9]", "train"):
        data.split = "test"
    parts = sources.trained.parts(opened(root, split=trained, eval_split="absent"))
    before = sources.Trained("runs/before", trained, 9, "other", None, parts)
    unseen = sources.Unseen([before], "give others")
    if met:
        with pytest.raises(UserError, match=r"runs/before trained on images of .* give others"):
            sources.open_all(data, unseen=unseen)
    else:
        assert len(sources.open_all(data, unseen=unseen).test)


def test_a_split_that_is_not_there(root):
    assert "val" not in tfds.splits(options("photos", root, split="val[:3]", eval_split="val"))
    with pytest.raises(UserError, match=r'is "trian" \(did you mean "train".*train, test'):
        open_splits(options("photos", root, split="trian"))


@pytest.mark.parametrize("split", ["train[:foo]", "train[10%", "train[:200%]"])
def test_a_slice_that_is_none(root, split):
    with pytest.raises(UserError, match=r"is no slice that TFDS understands: write .train\[:90%\]"):
        tfds.splits(options("photos", root, split=split))


def test_an_empty_slice(root):
    with pytest.raises(UserError, match="no examples in"):
        opened(root, split="train[:0]")


def test_part_of_a_split_is_held_out_where_there_is_no_other(root):
    train, held_out = open_splits(options("small", root))
    assert len(train) == 9 and len(held_out) == 3
    names = {source.name(i) for source in (train, held_out) for i in range(len(source))}
    assert names == {f"train[{i}]" for i in range(12)}


def test_fingerprints_tell_data_sets_apart_and_not_directories(root, tmp_path):
    shutil.copytree(root / "photos", tmp_path / "photos")
    source = opened(root)
    assert source.fingerprint() == opened(tmp_path).fingerprint()
    assert source.fingerprint() == "photos/1.2.0 train, 48 examples"
    choices = [source.take(np.array(rows)) for rows in ([0, 1], [1, 0], [0, 2])]
    others = [opened(root, split="test"), opened(root, split="train[:9]"), opened(root, "small")]
    assert len({one.fingerprint() for one in [source, *choices, *others]}) == 7


def test_a_data_set_that_is_gone_is_no_set_of_bad_images(root, tmp_path):
    shutil.copytree(root / "photos", tmp_path / "photos")
    source = opened(tmp_path)
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    with pytest.raises(Unreachable, match=r"photos/1\.2\.0 are gone: .*nothing is lost"):
        source.example(TRAIN - 1)


def test_splits_that_nobody_uses_are_named(root):
    train, test = open_splits(options("photos", root, split="train[:40]"))
    assert train.notes == test.notes == ()
    train, _ = open_splits(options("photos", root, eval_split="train[40:]", split="train[:40]"))
    assert train.notes == ("not used: test (9 images), which is a split",)


def test_the_stamp_changes_when_the_data_set_is_prepared_again(root, tmp_path):
    shutil.copytree(root / "photos", tmp_path / "photos")
    source, first, last = (opened(tmp_path, split=s) for s in ("train", "train[:9]", "train[40:]"))
    before = [stamp(one) for one in (source, first, last, opened(tmp_path, split="test"))]
    assert len(set(before)) == 4 and "" not in before
    assert stamp(opened(tmp_path).take(np.arange(5))) == before[0]
    file = next(tmp_path.rglob("photos-train*00000-of*"))
    changed = file.stat().st_mtime_ns
    found = set()
    for content, time in ((b" ", changed), (b"", changed + 1)):
        file.write_bytes(file.read_bytes() + content)
        os.utime(file, ns=(time, time))
        after = [stamp(one) for one in (source, first, last, opened(tmp_path, split="test"))]
        found |= {*after[:2], *before[:2]}
        assert after[2:] == before[2:]
    assert len(found) == 6


# Finding it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, path",
    [
        ("photos", ""),
        ("photos:1.2.0", ""),
        ("photos:1.*.*", ""),
        ("", "photos/1.2.0"),
        ("many/two", ""),
        ("", "many/two/1.2.0"),
    ],
)
def test_by_name_version_configuration_or_directory(root, name, path):
    source = opened(root / path, name)
    np.testing.assert_array_equal(source.example(0)[0], pixels(photo(0)))


def test_tensorflow_is_not_loaded(root):
    program = (
        "import sys; from ml_collections import ConfigDict\n"
        "from simclr_jax.data.sources import tfds\n"
        "print('tensorflow_datasets' in sys.modules)\n"
        f"data = ConfigDict({options('photos', root).to_dict()})\n"
        "source = tfds.splits(data)['train'](); source.example(1), source.labels, source.name(1)\n"
        "print('tensorflow' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout.split() == ["False", "False"], ended.stderr


@pytest.mark.parametrize(
    "name, path, said",
    [
        ("", "", "data.name is empty"),
        ("", "none", "it has no dataset_info.json"),
        ("photos", "photos/1.2.0", "is itself a prepared data set: leave data.name=photos empty"),
        ("cifar1O", "", 'did you mean "cifar10"'),
        ("a b:c", "", "write NAME, NAME/CONFIG or NAME:VERSION"),
        ("imagenet2012", "", "not prepared in .*: docs/imagenet.md"),
        ("imagenet2012_subset/1pct", "", "not prepared in .*: docs/imagenet.md"),
        ("imagenet2012_subset/1percent", "", 'did you mean "10?pct"'),
        ("photos:7.0.0", "", "TFDS has no data set of this name, nor is one in"),
        ("words", "", r"no image.*features: text"),
    ],
)
def test_a_data_set_that_cannot_be_opened(root, name, path, said):
    with pytest.raises(UserError, match=said) as error:
        tfds.splits(options(name, root / path if path or name else ""))
    # Doors that evaluate have no flags such as --config.data.name.
    assert "\n" not in str(error.value) and "--config" not in str(error.value)


def test_tfrecord_is_read_as_array_record_is(root, tmp_path):
    new = opened(root)
    image = library.features.Image()
    kinds = {"image": image, "label": library.features.ClassLabel(names=NAMES)}
    kinds["file_name"] = library.features.Text()
    splits = {"train": photos(TRAIN), "test": photos(TEST, 48)}
    prepare(tmp_path, "photos", kinds, splits, file_format="tfrecord", shards=3)
    old = opened(tmp_path)
    assert (len(old), old.classes, old.class_names) == (TRAIN, 3, tuple(NAMES))
    assert old.fingerprint() == new.fingerprint() and all("tfrecord" in f.name for f in old.files)
    np.testing.assert_array_equal(old.labels, new.labels)
    for source in (old, new):
        source.raw.announce([np.arange(10, 20)])
        assert all(coming.exception() is None for coming, _ in source.raw._where.values())
    for i in (0, 15, 16, 17, 33, 47):
        np.testing.assert_array_equal(old.example(i)[0], new.example(i)[0])
    # Labels of neighbours are read together, by themselves if one of them is damaged.
    fetched = old.raw.fetch
    for damaged in (None, 40):
        asked = []

        def fetch(rows, damaged=damaged, asked=asked):
            asked.append(len(rows))
            if damaged in rows:
                raise BadImage("damaged record")
            return fetched(rows)

        raw = ReadAhead(old.raw._raw, fetch)
        again = dataclasses.replace(old, raw=raw, rows=np.tile(np.arange(TRAIN), 4))
        np.testing.assert_array_equal(again.labels, np.tile(new.labels, 4))
        assert asked == [32] * 6
    assert old.take(np.arange(0)).labels.shape == (0,)
    # A slice starts and ends within files.
    part, like = (opened(where, split="train[10:40]") for where in (tmp_path, root))
    assert [part.name(i) for i in range(30)] == [like.name(i) for i in range(30)]
    assert part.fingerprint() == like.fingerprint()
    file = sorted(tmp_path.rglob("photos-train*"))[1]
    file.write_bytes(file.read_bytes() * 2)
    with pytest.raises(UserError, match=r"has 32 records, but photos/1\.2\.0 was prepared with 16"):
        opened(tmp_path)


def test_a_format_that_is_not_read(root, tmp_path):
    shutil.copytree(root / "old", tmp_path / "old")
    description = tmp_path / "old/1.2.0/dataset_info.json"
    content = json.loads(description.read_text()) | {"fileFormat": "riegeli"}
    description.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"as riegeli, .*convert_format --dataset_version_dir=.*old"
    ):
        tfds.splits(options("old", tmp_path))


def test_one_that_was_converted_is_read_as_array_record(root, tmp_path):
    shutil.copytree(root / "old", tmp_path / "old")
    description = tmp_path / "old/1.2.0/dataset_info.json"
    content = json.loads(description.read_text()) | {"alternativeFileFormats": ["array_record"]}
    description.write_text(json.dumps(content))
    for file in (root / "plain/1.2.0").glob("*array_record*"):  # the same records
        shutil.copy(file, description.with_name(file.name.replace("plain", "old")))
    source = opened(tmp_path, "old", split="train[1:]")
    np.testing.assert_array_equal(source.example(0)[0], pixels(photo(1)))
    assert source.files and all("array_record" in path.name for path in source.files)


def test_the_command_for_a_known_data_set_prepares_it(tmp_path):
    image = {"image": library.features.Image()}
    builder_class("known_pictures", image, {"train": [{"image": photo(1)}]}, register=True)
    data = options("known_pictures", tmp_path / "a 'dir'")
    with pytest.raises(UserError, match="not prepared") as error:
        tfds.splits(data)
    python, flag, code = shlex.split(str(error.value).partition("dir': ")[2])
    assert (python, flag) == ("python", "-c")
    exec(code)
    np.testing.assert_array_equal(tfds.splits(data)["train"]().example(0)[0], pixels(photo(1)))


def test_without_tensorflow_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install .*'tensorflow-datasets[<>]"):
        tfds.splits(options("photos"))


@pytest.mark.e2e
def test_the_imagenet_recipe_without_the_data_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    command = [sys.executable, "-m", "simclr_jax.main", "--config=configs/imagenet.py"]
    ended = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"], capture_output=True, text=True
    )
    assert ended.returncode == 1
    said = ended.stderr.strip().splitlines()
    assert said == ["error: data.name=imagenet2012 is not prepared: docs/imagenet.md says how to"]
