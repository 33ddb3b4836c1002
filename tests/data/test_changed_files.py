"""Data of a run that is resumed: gone, changed since it began, or the same ones elsewhere."""

from __future__ import annotations

import base64
import json
import os
import shutil

import numpy as np
import pytest
from data import folders
from data.folders import IMAGE, make, options
from etils import epath

from simclr_jax import documents, files
from simclr_jax.data import sources
from simclr_jax.data.decode import BadImage
from simclr_jax.data.sources import index
from simclr_jax.errors import Unreachable, UserError

SAY = "such as b/2.png: where their content differs, losses are not those of a run that was never"


@pytest.fixture
def begun(tmp_path):
    """Return the images of a run, and where it keeps their index."""
    names = [
        f"{split}/{c}/{i}.png"
        for split, n in (("train", 6), ("test", 4))
        for i in range(n)
        for c in "ab"
    ]
    root, kept = make(tmp_path / "data", *names), epath.Path(tmp_path / "run" / "index")
    for path in root.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    sources.remember(kept, *sources.open_splits(options(root)))
    return root, kept


def resumed(root, kept, **fields):
    """Return what a resumed run is told about its images."""
    train, test = sources.open_splits(options(root, **fields), kept)
    assert (len(train), len(test)) == (12, 8)
    return train.notes, test.notes


def rewrite(path, content=IMAGE + b" ", time=2e9):
    path.write_bytes(content)
    os.utime(path, (time, time))


# Changed ------------------------------------------------------------------------------------------


def test_the_same_files_are_worth_no_word(begun):
    root, kept = begun
    assert resumed(root, kept) == resumed(root, kept, if_changed="refuse") == ((), ())
    copy = root.with_name("moved")
    shutil.copytree(root, copy, copy_function=shutil.copy2)  # as cp -a
    shutil.rmtree(root)
    assert resumed(copy, kept, if_changed="refuse") == ((), ())
    for path in copy.rglob("*.png"):  # an archive that keeps no parts of seconds
        os.utime(path, (1e9 + 0.7, 1e9 + 0.7))
    assert resumed(copy, kept, if_changed="refuse") == ((), ())


@pytest.mark.parametrize(
    "change",
    [
        lambda path: rewrite(path, time=1e9),  # another size
        lambda path: rewrite(path, IMAGE),  # another time
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
    ],
    ids=["size", "time", "gone", "link"],
)
def test_one_image_replaced_is_said_or_refused(begun, change):
    root, kept = begun
    change(root / "train/b/2.png")
    (line,), held_out = resumed(root, kept)
    assert line.startswith(f"1 of 12 images in {root}/train are not the files that they were when")
    assert SAY in line and held_out == ()
    with pytest.raises(
        UserError, match=r"1 of 12 .* b/2.png: bring back .* data.if_changed=say"
    ) as e:
        resumed(root, kept, if_changed="refuse")
    assert "\n" not in str(e.value)


def test_held_out_images_replaced_are_said_too(begun):
    root, kept = begun
    for path in (root / "test").rglob("0.png"):
        rewrite(path)
    notes, (line,) = resumed(root, kept)
    assert notes == () and line.startswith(f"2 of 8 images in {root}/test are not")


def test_a_plain_copy_is_called_what_it_looks_like(begun):
    """All times differ, and no size: that may be harmless, and is no count of changed images."""
    root, kept = begun
    for path in (root / "train").rglob("*.png"):
        os.utime(path, (2e9, 2e9))
    (line,), _ = resumed(root, kept)
    assert line.startswith(f"all 12 images in {root}/train have other times") and "copies" in line
    rewrite(root / "train/a/0.png")
    (line,), _ = resumed(root, kept)
    assert line.startswith("12 of 12 images")


def test_of_very_many_images_some_are_looked_at_unless_all_are_asked_for(begun, monkeypatch):
    root, kept = begun
    monkeypatch.setattr(index, "ALL_LOOKED_AT", 10)
    monkeypatch.setattr(index, "SOME_LOOKED_AT", 4)
    rewrite(root / "train/a/0.png")  # the first
    (line,), _ = resumed(root, kept)
    assert line.startswith("1 of 4 looked at of 12 images")
    rewrite(root / "train/a/0.png", IMAGE, 1e9)
    rewrite(root / "train/a/1.png")  # the second
    assert resumed(root, kept) == ((), ())
    with pytest.raises(UserError, match="1 of 12 images"):
        resumed(root, kept, if_changed="refuse")


def test_an_index_may_be_larger_than_any_other_document(begun, monkeypatch):
    """Of 14 million images it has about 450 MB."""
    assert index.LARGEST / 32 > 100e6 and documents.LARGEST / 32 < 14e6
    root, kept = begun
    monkeypatch.setattr(documents.read, "__defaults__", ("restore it", 100))
    with pytest.raises(UserError, match="of at most 100"):
        documents.read(kept / "index.json", dict)
    assert resumed(root, kept) == ((), ())


def test_files_are_looked_at_once_when_a_run_begins(begun, monkeypatch):
    root, kept = begun
    looked, look_at = [], index.look_at
    monkeypatch.setattr(
        index, "look_at", lambda r, paths: looked.extend(paths) or look_at(r, paths)
    )
    sources.remember(kept, *sources.open_splits(options(root)))
    assert len(looked) == 12 + 8
    looked.clear()
    sources.remember(kept, *sources.open_splits(options(root / "train")))  # a part is held out
    assert len(looked) == 12


def test_a_disk_that_is_full_is_one_line(begun, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    root, kept = begun
    monkeypatch.setattr(files, "write_atomically", full)
    with pytest.raises(UserError, match=r"index cannot be written .No space left on device.: free"):
        sources.remember(kept, *sources.open_splits(options(root)))


def test_a_new_run_has_nothing_to_compare_with(begun):
    root, _ = begun
    rewrite(root / "train/a/0.png")
    assert sources.open_splits(options(root, if_changed="refuse"))[0].notes == ()


# Gone ---------------------------------------------------------------------------------------------


def opened(begun):
    root, kept = begun
    return sources.open_splits(options(root), kept)[0]


def test_an_image_that_is_missing_is_a_bad_image(begun):
    source = opened(begun)
    (begun[0] / "train/a/0.png").unlink()
    shutil.rmtree(begun[0] / "train/b")
    for row in (0, len(source) - 1):
        with pytest.raises(BadImage, match="No such file"):
            source.example(row)


@pytest.mark.parametrize("what", ["moved", "split moved", "emptied", "a file", "link"])
def test_data_that_are_gone_are_no_bad_images(begun, what):
    """The directory was moved away, or its disk is no more mounted there."""
    root, _ = begun
    if what == "link":  # as to another disk, right below the split
        (root / "train/b").rename(root / "elsewhere")
        (root / "train/b").symlink_to(root / "elsewhere")
    source = opened(begun)
    last = len(source) - 1
    source.example(last)
    if what == "link":
        (root / "elsewhere").rename(root / "lost")
    elif what == "split moved":
        (root / "train").rename(root / "elsewhere")
    else:
        root.rename(root.with_name("elsewhere"))
    if what == "emptied":
        (root / "train").mkdir(parents=True)
    elif what == "a file":
        root.write_text("")
    with pytest.raises(Unreachable, match=r"are gone .*first: b/5\.png.*nothing is lost") as e:
        source.example(last)
    assert e.value.code == 75 and str(e.value).count("\n") == 0


@pytest.fixture
def linked(tmp_path):
    """Return a folder whose images are links into a disk of their own, one of them from nowhere."""
    names = [f"{c}/{i}.png" for i in range(6) for c in "ab"]
    disk, root = make(tmp_path / "disk", *names), tmp_path / "data"
    for name in (*names, "b/broken.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(disk / name if "broken" not in name else "/nowhere/b/6.png")
    return disk, root


@pytest.mark.parametrize("resumed", [False, True])
def test_images_that_are_links_into_a_disk_that_is_gone_are_no_bad_images(
    linked, tmp_path, resumed
):
    """As DVC and Hugging Face keep them."""
    (disk, root), kept = linked, epath.Path(tmp_path / "run" / "index")
    source = folders.opened(root)
    sources.remember(kept, source)
    if resumed:
        source = sources.find(options(root), kept)["train"]()
    broken = source.paths.index("b/broken.png")
    (disk / source.paths[0]).unlink()
    for row in (0, broken):  # missing by itself, and never there
        with pytest.raises(BadImage, match="No such file"):
            source.example(row)
    disk.rename(disk.with_name("elsewhere"))
    with pytest.raises(Unreachable, match=r"data are gone .*nothing is lost"):
        source.example(1)
    with pytest.raises(BadImage, match="No such file"):
        source.example(broken)
    for if_changed in ("say", "refuse"):
        with pytest.raises(Unreachable, match=r"data are gone .*nothing is lost"):
            sources.find(options(root, if_changed=if_changed), kept)["train"]()
    # Outside a run nobody knows what was there.
    with pytest.raises(BadImage, match="No such file"):
        folders.opened(root).example(1)


@pytest.mark.parametrize("what", ["moved", "emptied"])
def test_a_resumed_run_whose_data_are_gone_may_try_again(begun, what):
    root, kept = begun
    shutil.rmtree(root)
    if what == "emptied":
        root.mkdir()
    with pytest.raises(Unreachable, match=f"data.path={root} is not there any more.*nothing is lo"):
        sources.open_splits(options(root), kept)
    with pytest.raises(UserError) as told:  # a new run has a mistake in its recipe
        sources.open_splits(options(root))
    assert told.value.code == 1


@pytest.mark.parametrize("source", ["memory", "tfrecord", "tfds"])
def test_other_sources_that_are_gone_may_be_tried_again(tmp_path, source):
    data = options(tmp_path / "gone", source=source)
    with pytest.raises(Unreachable, match="not there any more"):
        sources.find(data, epath.Path(tmp_path))


def test_the_index_of_a_run_says_what_its_images_were(begun):
    _, kept = begun
    content = json.loads((kept / "index.json").read_text())
    part = content["splits"]["test"]
    assert part["images"] == 8 and part["files"] == {
        c: [f"{i}.png" for i in range(4)] for c in "ab"
    }
    marks = np.frombuffer(base64.b64decode(part["marks"]), "<u4").reshape(8, 2)
    np.testing.assert_array_equal(marks, [[len(IMAGE), 1e9]] * 8)
