"""Finding images: each directory once, by a path that no disk decides, and all else counted."""

from __future__ import annotations

import itertools
import os
import re
import socket

import pytest
from data.folders import make, opened

from simclr_jax import extras
from simclr_jax.data import formats
from simclr_jax.data.sources import searching
from simclr_jax.data.sources.folder import SUFFIXES
from simclr_jax.errors import Unreachable, UserError


def search(root, say=lambda line: None):
    return searching.search(root, SUFFIXES, say)


def reversed_entries(monkeypatch):
    listed = searching._entries
    monkeypatch.setattr(searching, "_entries", lambda path: reversed([*listed(path)]))


def test_the_order_is_not_the_file_systems(tmp_path, monkeypatch):
    root = make(tmp_path, *(f"{i % 7}/{i}.png" for i in range(60)))
    before = opened(root)
    reversed_entries(monkeypatch)
    after = opened(root)
    assert after.paths == before.paths and after.fingerprint() == before.fingerprint()


# Links --------------------------------------------------------------------------------------------


def test_links_are_followed_and_circles_are_not(tmp_path):
    outside = make(tmp_path / "outside", "x.png", "deep/y.png")
    root = make(tmp_path / "root", "a/1.png")
    (root / "b").symlink_to(outside)
    (root / "a/circle").symlink_to(root)
    (outside / "back").symlink_to(root / "a")
    (root / "self").symlink_to("self")
    found = search(root)
    assert found.images == ["a/1.png", "b/deep/y.png", "b/x.png"]
    assert found.again == {"a/circle": "", "b/back": "a"}
    assert found.others == {"links to nothing": 1}
    assert found.notes() == [
        "not read: 1 file, 1 links to nothing",
        "counted once: 2 directories that links reach again, such as a/circle, which is .",
    ]


@pytest.mark.parametrize("above", ["..", "../..", "/"])
def test_a_link_to_what_is_above_is_not_entered(tmp_path, above):
    root = make(tmp_path / "a/data", "1.png", "b/2.png")
    make(tmp_path, "secret.png")
    (root / "b/up").symlink_to(root / above if above != "/" else "/")
    found = search(root)
    assert found.images == ["1.png", "b/2.png"] and found.again == {"b/up": ".."}
    said = "counted once: 1 directory that links reach again, such as b/up, which is above it"
    assert found.notes() == [said]


def test_directories_that_all_link_to_one_another_are_searched_once(tmp_path):
    """There are 9! ways through these, and 20 s would not be enough for them."""
    names = "abcdefghi"
    for name in names:
        make(tmp_path, f"{name}/{name}.png")
    for one, other in itertools.permutations(names, 2):
        (tmp_path / one / f"to_{other}").symlink_to(tmp_path / other)
    found = search(tmp_path)
    assert found.images == [f"{name}/{name}.png" for name in names]
    assert len(found.again) == 9 * 8
    assert "72 directories that links reach again" in found.notes()[0]


@pytest.mark.parametrize("backwards", [False, True])
def test_which_path_to_a_directory_counts_does_not_depend_on_the_disk(
    tmp_path, monkeypatch, backwards
):
    """The one without links; of several with links the first in order."""
    root = make(tmp_path / "root", "z/cats/1.png", "z/2.png")
    outside = make(tmp_path / "outside", "3.png", "in/4.png")
    for name, target in {
        "a": root / "z/cats",
        "m": outside / "in",
        "c": outside,
        "b": outside,
    }.items():
        (root / name).symlink_to(target)
    if backwards:
        reversed_entries(monkeypatch)
    found = search(root)
    assert found.images == ["b/3.png", "b/in/4.png", "z/2.png", "z/cats/1.png"]
    assert found.again == {"a": "z/cats", "c": "b", "m": "b/in"}


def test_held_out_images_are_not_trained_on_by_a_link(tmp_path):
    root = make(tmp_path, "train/1.png", "test/2.png", "test/3.png")
    (root / "train/more").symlink_to(root / "test")
    source = opened(root, labels=False)
    assert source.paths == ["1.png"]
    assert any("train/more, which is test" in note for note in source.notes)


def test_what_lies_too_deep_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "DEEPEST", 3)
    found = search(make(tmp_path, "a/b/c/1.png", "a/b/c/d/2.png", "a/b/c/d/e/3.png"))
    assert found.images == ["a/b/c/1.png"] and found.deep == ("a/b/c/d",)
    assert found.notes() == ["not entered: 1 directory deeper than 3 others, such as a/b/c/d"]


# What is no image ---------------------------------------------------------------------------------


def test_what_is_not_read_is_counted_by_kind(tmp_path):
    make(tmp_path, *(f"{i}.CR2" for i in range(201)), "1.svg", "a/x.txt", "a/y.txt", "README")
    make(tmp_path, *(f"{i}.jpeg" for i in range(30)), ".z.png", ".thumbs/1.png", ".notes")
    (tmp_path / "gone").symlink_to("nowhere")
    kinds = "201 *.cr2, 2 *.txt, 2 hidden, 1 *.svg, 1 links to nothing, 1 of other kinds"
    source = opened(tmp_path, labels=False)
    assert len(source) == 30 and source.notes == (f"not read: 208 files, {kinds}",)


def test_what_would_make_files_readable_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "readable", lambda: ("JPEG", "PNG"))
    make(tmp_path, "1.png", "2.HEIC", "3.heic", "4.CR2")
    (line,) = searching.search(tmp_path, formats.suffixes(), print).notes()
    assert line == f"not read: 3 files, 2 *.heic, 1 *.cr2 (*.heic: {extras.install('heic')})"


def test_only_files_are_images(tmp_path):
    make(tmp_path, "1.png", "directory.png/2.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null.png").symlink_to(os.devnull)
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    (tmp_path / "file.png").symlink_to("1.png")
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(tmp_path / "socket.png"))
        found = search(tmp_path)
    assert found.images == ["1.png", "broken.png", "directory.png/2.png", "file.png"]
    assert found.others == {"no files": 4}


def test_regular_files_cost_no_look_at_each(tmp_path, monkeypatch):
    """The kind of an entry comes with its name; a million files would cost a million looks."""
    root = make(tmp_path, *(f"{i % 3}/{i}.png" for i in range(90)))
    looked = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **_: looked.append(path) or stat(path))
    assert len(search(root).images) == 90 and len(looked) < 20


# On the way ---------------------------------------------------------------------------------------


def test_a_long_search_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    root = make(tmp_path, *(f"{i}/{i}.png" for i in range(5)))
    searching.search(root, SUFFIXES)
    assert capsys.readouterr().err == ""  # it took no time
    monkeypatch.setattr(searching, "EVERY_SECS", 0.0)
    searching.search(root, SUFFIXES)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"searching {root}: 4 images in 6 directories so far"
    monkeypatch.setattr(searching, "LOOKS", 1)  # within a directory too
    said = []
    search(make(tmp_path / "flat", *(f"{i}.png" for i in range(4))), said.append)
    assert [int(re.search(r"(\d+) images", line)[1]) for line in said] == [0, 1, 2, 3]


@pytest.mark.parametrize("number, kind", [(5, Unreachable), (116, Unreachable), (13, UserError)])
def test_a_disk_that_fails_is_told_from_a_directory_that_may_not_be_read(
    tmp_path, monkeypatch, number, kind
):
    make(tmp_path, "a/1.png")

    def refuse(path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} cannot be listed: ")) as told:
        search(tmp_path)
    assert type(told.value) is kind
