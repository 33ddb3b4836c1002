"""What a directory opens to: splits, labels, order, a kept index; and awkward files, each named."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import re
import shutil
import zlib

import numpy as np
import pytest
from data import awkward
from data.folders import IMAGE, make, opened, options
from etils import epath
from PIL import Image

from simclr_jax import errors
from simclr_jax.data import decode, sources
from simclr_jax.data.decode import BadImage
from simclr_jax.data.sources import changes, folder
from simclr_jax.errors import Unreachable, UserError
from simclr_jax.unlabelled import NO_LABEL

# Pillow says much about damaged metadata.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

CASES = awkward.cases()


# Awkward files ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def awkward_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("awkward")
    written = {case.name: case for case in awkward.write(root)}
    source = opened(root, labels=False)
    return source, {path: i for i, path in enumerate(source.paths)}, written


@pytest.mark.parametrize("name", [case.name for case in CASES], ids=ascii)
def test_awkward(awkward_folder, name):
    source, numbers, written = awkward_folder
    if name not in written:
        pytest.skip("this file system refuses such a file")
    case = written[name]
    assert (name in numbers) == (case.expected is not None)
    if isinstance(case.expected, str):
        with pytest.raises(BadImage) as refused:
            source.example(numbers[name])
        assert case.expected in str(refused.value)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 120
    elif case.expected is not None:
        pixels, label = source.example(numbers[name])
        assert pixels.dtype == np.uint8 and label == NO_LABEL
        encoded = (source.root / name).read_bytes()
        assert decode.size(io.BytesIO(encoded)) == pixels.shape[:2] == case.expected.shape[:2]
        assert pixels.shape == case.expected.shape
        difference = np.abs(pixels.astype(float) - case.expected)
        assert difference.max() <= case.within


def test_there_are_enough_awkward_files_and_no_others(awkward_folder):
    source, numbers, written = awkward_folder
    assert len(written) >= 55 and len({case.name for case in CASES}) == len(CASES)
    assert set(numbers) <= set(written)
    assert all(source.name(i).isprintable() for i in range(len(source)))
    assert source.name(numbers["names/line\nbreak.png"]) == "names/line\\nbreak.png"


# Splits -----------------------------------------------------------------------------------------


def test_one_directory_is_one_split_sorted_at_any_depth(tmp_path):
    make(tmp_path, "b.png", "a/z.PNG", "a/y/x/w.jpeg", "B.webp", "a.bmp")
    splits = folder.splits(options(tmp_path, split="photos", labels=False))
    assert list(splits) == ["photos"]
    source = splits["photos"]()
    names = ["B.webp", "a.bmp", "a/y/x/w.jpeg", "a/z.PNG", "b.png"]
    assert source.paths == names and [source.name(i) for i in range(5)] == names
    assert (len(source), source.channels, source.classes, source.labels) == (5, 3, 0, None)


def test_subdirectories_are_splits_in_any_case(tmp_path):
    make(tmp_path, "Train/a.png", "test/b.png", "valid/c.png", "Extra/d.png", "notes/e.png")
    splits = folder.splits(options(tmp_path, eval_split="extra"))
    assert set(splits) == {"train", "test", "valid", "extra"}
    assert {split: splits[split]().paths for split in ("train", "extra")} == {
        "train": ["a.png"],
        "extra": ["d.png"],
    }


# Labels -----------------------------------------------------------------------------------------


def test_directories_below_the_split_are_classes(tmp_path):
    make(tmp_path, "train/dog/1.png", "train/cat/x/2.png", "train/ant/3.png", "test/cat/4.png")
    train, test = opened(tmp_path), opened(tmp_path, "test")
    assert train.class_names == test.class_names == ("ant", "cat", "dog")
    assert train.paths == ["ant/3.png", "cat/x/2.png", "dog/1.png"]
    np.testing.assert_array_equal(train.labels, [0, 1, 2])
    np.testing.assert_array_equal(test.labels, [1])  # a number of the training split's
    assert train.labels.dtype == np.int32 and train.classes == test.classes == 3
    assert [train.example(i)[1] for i in range(3)] == [0, 1, 2]
    assert train.notes == ()
    assert test.notes == ("test has no image of 2 class(es): ant, dog",)


@pytest.mark.parametrize(
    "names, note",
    [
        (["1.png", "2.png"], None),
        (["only/1.png", "only/2.png"], "no labels: all images lie in one directory, only"),
        (["a/1.png", "b/2.png", "3.png"], "1 image(s), such as 3.png, lie beside 2 directories"),
    ],
)
def test_no_labels_and_no_dummy_class(tmp_path, names, note):
    source = opened(make(tmp_path, *names))
    assert source.labels is None and source.classes == 0 and source.class_names == ()
    assert source.example(0)[1] == NO_LABEL
    assert [note in found for found in source.notes] == [True] if note else not source.notes


def test_labels_can_be_left_out(tmp_path):
    make(tmp_path, "train/a/1.png", "train/b/2.png", "test/unknown/3.png", "test/4.png")
    for split in ("train", "test"):
        source = opened(tmp_path, split, labels=False)
        assert source.labels is None and source.classes == 0 and not source.notes


def test_an_unlabelled_training_split_makes_all_unlabelled(tmp_path):
    make(tmp_path, "train/only/1.png", "test/a/1.png", "test/b/2.png")
    test = opened(tmp_path, "test")
    assert test.labels is None and test.classes == 0
    assert len(opened(tmp_path).notes) == 1 and not test.notes  # said once


# The kept index ---------------------------------------------------------------------------------


def test_files_added_later_do_not_disturb_a_resumed_run(tmp_path):
    root, kept = (
        make(tmp_path / "data", "train/a/1.png", "train/b/2.png"),
        tmp_path / "run" / "data",
    )
    make(root, "train/a/1/x.png", "train/a/3.png")
    odd = os.fsdecode(b"train/b/\xff\xfe\n\xc3\xa9.png")
    make(root, odd)
    before = opened(root, kept=epath.Path(kept))
    before.take(np.array([0])).remember(epath.Path(kept))  # of all, whatever part is held
    make(root, "train/a/0.png", "train/c/3.png", "test/c/9.png", "val/1.png")
    (root / "train/b/2.png").unlink()

    splits = folder.splits(options(root), epath.Path(kept))
    after = splits["train"]()
    assert list(splits) == ["train"]  # a split that appears would end the holding out
    assert after.paths == before.paths and after.class_names == ("a", "b")
    assert after.fingerprint() == before.fingerprint()
    assert after.example(after.paths.index("b/\udcff\udcfe\né.png"))[0].shape == (24, 36, 3)
    with pytest.raises(BadImage, match="No such file"):
        after.example(after.paths.index("b/2.png"))
    assert len(opened(root)) == 6  # a new run sees the new files


def test_the_index_holds_what_was_opened(tmp_path):
    root, kept = make(tmp_path / "data", "train/1.png", "test/2.png", "val/3.png"), tmp_path / "run"
    splits = folder.splits(options(root))
    train = splits["train"]()
    splits["test"]()
    train.remember(epath.Path(kept))
    content = json.loads((kept / "index.json").read_text())
    make(root, "train/0.png", "val/4.png")
    assert {name: part["files"] for name, part in content["splits"].items()} == {
        "train": {"": ["1.png"]},
        "test": {"": ["2.png"]},
        "val": None,
    }
    assert len(opened(root, "val", kept=epath.Path(kept))) == 2
    assert [path.name for path in kept.iterdir()] == ["index.json"]


@pytest.mark.parametrize(
    "content",
    [
        *("", '{"train"', "[]", "{}", "[1]", '{"train": {"files": {}}}', '{"train": 3}', "\xff"),
        '{"train": {"directory": "..", "files": {"": ["x.png"]}}}',
        '{"train": {"directory": "", "files": {"/etc": ["x.png"]}}}',
        '{"train": {"directory": "", "files": {"a/../..": ["x.png"]}}}',
        '{"train": {"directory": "", "files": {"": ["../x.png"]}}}',
        '{"train": {"directory": "", "files": {"": ["x.png"]}, "marks": "AAAA"}}',
        '{"format": 2, "splits": {}, "notes": []}',
        '{"format": 2, "splits": {"train": {"directory": "", "files": {"": [3]}}}, "notes": []}',
    ],
)
def test_a_damaged_index_is_named(tmp_path, content):
    root = make(tmp_path / "data", "1.png")
    (tmp_path / "index.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"index\.json cannot be used .*: restore it, or remove"):
        folder.splits(options(root), epath.Path(tmp_path))


def test_no_flipped_bit_of_an_index_goes_unnoticed(tmp_path):
    root = make(tmp_path / "data", "train/a/1.png", "train/b/2.png", "test/a/3.png")
    kept = epath.Path(tmp_path / "run")
    opened(root).remember(kept)
    whole = (kept / "index.json").read_bytes()
    before = opened(root, kept=kept).fingerprint()
    for at in np.random.RandomState(0).choice(8 * len(whole), 200, replace=False):
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
        (kept / "index.json").write_bytes(damaged)
        try:
            assert opened(root, kept=kept).fingerprint() == before
        except UserError as error:
            assert "index.json" in str(error) and "\n" not in str(error)


def test_an_index_of_an_older_version_still_counts(tmp_path):
    """Whatever the layout would be today: the run goes on with the images that it has."""
    root = make(tmp_path / "data", "train/a/1.png", "train/b/2.png", "plane/c/3.png")
    content = {"train": {"directory": "train", "files": {"a": ["1.png"], "b": ["2.png"]}}}
    (tmp_path / "index.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
    with pytest.raises(UserError, match="beside"):
        opened(root)
    source = opened(root, kept=epath.Path(tmp_path))
    assert source.paths == ["a/1.png", "b/2.png"] and not source.changes(thorough=True)
    assert source.fingerprint() == opened(root / "train").fingerprint()


def test_the_fingerprint_tells_data_apart_wherever_they_lie(tmp_path):
    root = make(tmp_path / "here", "train/a/1.png", "train/b/2.png", "train/b/3.png")
    source = opened(root)
    shutil.copytree(root, tmp_path / "there")
    assert opened(tmp_path / "there").fingerprint() == source.fingerprint()
    assert source.fingerprint().startswith("3 files, ")
    others = {
        opened(root, labels=False).fingerprint(),
        source.take(np.array([0, 1])).fingerprint(),
        source.take(np.array([0, 2])).fingerprint(),
        source.take(np.array([0, 2, 1])).fingerprint(),
        *(
            dataclasses.replace(source, paths=[name, *source.paths[1:]]).fingerprint()
            for name in ("a/\udcff.png", "a/\udcfe.png")
        ),
    }
    assert len(others | {source.fingerprint()}) == 7


def test_the_stamp_is_that_of_earlier_versions(tmp_path, monkeypatch):
    """Features are kept by it. Here each file is looked at by a thread of its own."""
    monkeypatch.setattr(changes, "PART", 1)
    source = opened(make(tmp_path, *(f"{c}/{i}.png" for i in range(9) for c in "ab")))
    text = ""
    for path in source.paths:
        status = (tmp_path / path).stat()
        text += f"{path}\0{status.st_size} {status.st_mtime_ns}\0"
    assert sources.stamp(source) == f"{zlib.crc32(text.encode()):08x}"


def test_the_stamp_changes_when_a_file_is_replaced(tmp_path):
    source = opened(make(tmp_path, "a/1.png", "b/2.png"))
    before, fingerprint = sources.stamp(source), source.fingerprint()
    assert before == sources.stamp(opened(tmp_path))
    file = tmp_path / "b/2.png"
    changed = file.stat().st_mtime_ns
    found = {before}
    for content, time in ((IMAGE + b" ", changed), (IMAGE, changed + 1)):
        file.write_bytes(content)
        os.utime(file, ns=(time, time))
        found.add(sources.stamp(source))
    file.unlink()
    found.add(sources.stamp(source))
    assert len(found) == 4 and source.fingerprint() == fingerprint


def test_take(tmp_path):
    source = opened(make(tmp_path, *(f"{i % 2}/{i}.png" for i in range(6))))
    part = source.take(np.array([5, 0]))
    assert part.paths == [source.paths[5], source.paths[0]] and len(part) == 2
    np.testing.assert_array_equal(part.labels, [1, 0])
    assert part.classes == 2 and part.example(0)[1] == 1


def test_a_file_that_vanishes_is_a_bad_image(tmp_path):
    source = opened(make(tmp_path, "1.png", "2.png"), labels=False)
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").unlink()
    (tmp_path / "2.png").mkdir()
    for number, reason in enumerate(["No such file", "Is a directory"]):
        with pytest.raises(BadImage, match=reason):
            source.example(number)


@pytest.mark.parametrize("within", [(os, "fstat"), (Image, "open")], ids=["bytes", "header"])
def test_a_disk_that_does_not_answer_is_no_bad_image(tmp_path, monkeypatch, within):
    def refuse(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    source = opened(make(tmp_path, "1.png", "2.png"))
    message = r"1\.png cannot be read at the moment"
    monkeypatch.setattr(decode, "LOOKED_INTO", 10)  # of a larger file the header is read first
    with monkeypatch.context() as patch, pytest.raises(Unreachable, match=message) as told:
        patch.setattr(*within, refuse)
        source.example(0)
    assert told.value.code == 75


@pytest.mark.parametrize("number", sorted(errors.OF_THE_PROGRAM))
def test_what_the_program_may_not_is_no_bad_image_and_no_lost_disk(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    root, kept = make(tmp_path / "data", "1.png", "2.png"), epath.Path(tmp_path / "run")
    source = opened(root, labels=False)
    ways = {
        "fstat": lambda: source.example(0),
        "scandir": lambda: opened(root),
        "scandir ": lambda: sources.find(options(root), kept),
    }
    for call, way in ways.items():
        with monkeypatch.context() as patch, pytest.raises(UserError) as told:
            patch.setattr(os, call.strip(), refuse)
            way()
        assert errors.REMEDIES[number] in str(told.value) and told.value.code == 1
        assert "disk" not in str(told.value) and "\n" not in str(told.value)


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, fields, message",
    [
        ([], {"path": ""}, "data.path is empty: set data.path=DIRECTORY"),
        ([], {"path": "gs://bucket/x"}, "gs://bucket/x is no local directory"),
        ([], {"path": "/does/not/exist"}, "data.path=/does/not/exist does not exist"),
        (["x.npz"], {"path": "ROOT/x.npz"}, "is a file: data.source=folder takes a directory"),
        (["a.png"], {"name": "cifar"}, "data.name is cifar"),
        ([], {}, "has no images (*.jpg, *.png, *.webp, *.bmp, ...): it is empty"),
        (["a.TXT", "b.txt", "c/d.txt", "e"], {}, "it has 4 other file(s): 3 *.txt, 1 with"),
        ([".x.png", ".y/z.png"], {}, "it has 2 other file(s): 2 hidden"),
        (["test/a.png", "val/b.png"], {}, 'data.split is "train", but ROOT has test, val'),
        (
            ["train/a/1.png", "train/b/2.png", "test/zoo/3.png", "test/a/4.png"],
            {"open": "test"},
            "ROOT/test has the class zoo, of which train has no image: give train some or move",
        ),
        (
            ["train/a/1.png", "train/b/2.png", "test/3.png"],
            {"open": "test"},
            "ROOT/test has 1 image(s) outside its class directories, such as 3.png",
        ),
    ],
)
def test_mistakes(tmp_path, names, fields, message):
    make(tmp_path, *names)
    fields = {"path": "ROOT"} | fields
    fields["path"] = fields["path"].replace("ROOT", str(tmp_path))
    split = fields.pop("open", "train")
    with pytest.raises(UserError, match=re.escape(message.replace("ROOT", str(tmp_path)))) as told:
        opened(split=split, **fields)
    # Doors that evaluate open folders too, and have no flags such as --config.data.path.
    assert "\n" not in str(told.value) and "--config" not in str(told.value)


@contextlib.contextmanager
def as_nobody(tmp_path):
    """Give up root's right to read everything for a while."""
    if os.geteuid() != 0:
        yield
        return
    for directory in (tmp_path, *tmp_path.parents[:2]):  # what pytest made, for its user alone
        directory.chmod(0o755)
    os.seteuid(65534)
    try:
        if not os.access(tmp_path, os.R_OK, effective_ids=True):
            pytest.skip("only root may enter the directory of temporary files")
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("closed, words", [("b", "cannot be listed"), (".", "cannot be read")])
def test_a_directory_that_may_not_be_read_is_no_empty_one(tmp_path, closed, words):
    root = make(tmp_path / "data", "a/1.png", "b/2.png")
    path = root if closed == "b" else root / "a"
    (root / closed).chmod(0)
    try:
        with as_nobody(tmp_path), pytest.raises(UserError, match=f"{words}: Permission denied"):
            opened(path)
    finally:
        (root / closed).chmod(0o700)
