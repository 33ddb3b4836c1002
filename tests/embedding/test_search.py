"""Searching a file of embeddings whose directions are known, and one that an encoder made."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from embedding import embedded
from PIL import Image

from simclr_jax.embedding import embed, embeddings, search
from simclr_jax.errors import UserError, printable
from simclr_jax.reporting import sheet
from simclr_jax.train import saved

ANGLES = np.array([0, 10, 25, 45, 46, 90, 170, 175], float)
COSINE = np.cos(np.deg2rad(ANGLES[:, None] - ANGLES))


def write(path, names, features, directory, labels=None, **about):
    about = embedded.about(directory=str(directory), **about)
    x = np.asarray(features, np.float32)
    count = len(x)
    rows = (np.array(names), np.zeros(count, np.int32), np.arange(count))
    embeddings.write(path, embeddings.Embeddings(x, *rows, labels, about))
    return path


@pytest.fixture
def photos(tmp_path):
    """Write images whose features lie at `ANGLES` in a plane, and return the file."""
    directory = tmp_path / "images"
    directory.mkdir()
    names = [f"{int(angle)}.png" for angle in ANGLES]
    for i, name in enumerate(names):
        Image.new("RGB", (12, 9), (30 * i, 0, 99)).save(directory / name)
    radians = np.deg2rad(ANGLES)
    rows = np.stack([np.cos(radians), np.sin(radians)], axis=1) * (1 + np.arange(8))[:, None]
    return write(tmp_path / "photos.npz", names, rows, directory)


def find(file, **fields):
    """Search, and return what was said and the sheet."""
    said = []
    search.run(search.Options(str(file), **fields), lambda line: said.extend(line.split("\n")))
    out = fields.get("out") or file.with_suffix(".html")
    return said, Path(out).read_text(encoding="utf-8")


def test_the_nearest_of_a_name_in_the_file(photos):
    said, page = find(photos, query=["45.png"], k=3)
    assert said[0].split() == ["query", "45.png"]
    expected = [("46.png", 3), ("25.png", 3), ("10.png", 3)]
    cosines = [COSINE[3, list(ANGLES).index(float(n[:-4]))] for n, _ in expected]
    for line, (name, _), cosine in zip(said[1:4], expected, cosines, strict=True):
        assert line.split() == [f"{cosine:.3f}", name]
    assert page.count('src="data:image/png;base64,') == 4


def test_a_file_in_the_directory_is_the_image_of_that_name(photos):
    said, _ = find(photos, query=[str(photos.parent / "images" / "45.png")], k=1)
    assert said[1].split()[1] == "46.png"


@pytest.mark.parametrize("name", ["a\nb.png", "wh\udcffat.png", "\x1b[2J.png"])
def test_images_whose_names_are_escaped_have_pictures_and_can_be_asked_for(photos, name):
    directory = photos.parent / "images"
    (directory / "45.png").rename(directory / name)
    names = ["45.png" if angle == 45 else f"{int(angle)}.png" for angle in ANGLES]
    shown = printable(name)
    found = embeddings.read(str(photos))
    names = [shown if each == "45.png" else each for each in names]
    write(photos, names, found.features, directory)
    said, page = find(photos, query=[str(directory / name)], k=3)
    assert said[0] == f"query     {shown}" and not [x for x in said if x.startswith("note")]
    assert page.count('src="data:image/png;base64,') == 4


def test_a_query_with_a_byte_that_is_no_text_is_one_line(photos):
    with pytest.raises(UserError, match="is no file, and no name"):
        find(photos, query=["wh\udcffat.jpg"])


def test_pairs_are_listed_the_most_similar_first(photos):
    said, page = find(photos, duplicates=0.96)
    assert said[0] == "4 pairs of similarity 0.96 or more"
    expected = [("45.png", "46.png"), ("170.png", "175.png"), ("0.png", "10.png")]
    assert [tuple(line.split()[1:]) for line in said[1:4]] == expected
    assert [float(line.split()[0]) for line in said[1:4]] == pytest.approx(
        np.cos(np.deg2rad([1, 5, 10])), abs=1e-4
    )
    assert page.count("<img") == 8


def test_pairs_that_the_sheet_has_no_room_for_are_counted(photos, monkeypatch):
    for name, most in (("SPOKEN_PAIRS", 2), ("PICTURED_PAIRS", 3), ("LISTED_PAIRS", 4)):
        monkeypatch.setattr(search, name, most)
    said, page = find(photos, duplicates=0.5)
    count = int((COSINE[np.triu_indices(8, 1)] >= 0.5).sum())
    title = f"{count} pairs of similarity 0.5 or more, of which the sheet has the first 7"
    assert count > 7 and said[0] == title and title in page
    assert "... and 5 more, in the sheet" in said
    assert page.count("<img") == 6 and page.count(".png  ") == 4


@pytest.mark.parametrize(("asked", "pairs"), [(0.5, 13), (0.99999, 0)])
def test_a_threshold_of_no_use_gets_another_from_the_images(photos, asked, pairs):
    """The nearest pair of eight images is what the better threshold finds."""
    said, _ = find(photos, duplicates=asked)
    assert said[0].startswith(f"{pairs} pairs of similarity")
    (note,) = (line for line in said if line.startswith("note"))
    assert ("more pairs than images (8)" if pairs else "no two images are so alike") in note
    better = float(note.partition("--duplicates=")[2].split()[0])
    nearest = COSINE[~np.eye(8, dtype=bool)].max()
    assert nearest - 1e-3 < better <= nearest
    again, _ = find(photos, duplicates=better)
    assert again[0].startswith("1 pairs") and not any(line.startswith("note") for line in again)


def test_a_sheet_of_many_pairs_folds_most_of_them(photos, monkeypatch):
    monkeypatch.setattr(sheet, "FOLDED", 8)
    monkeypatch.setattr(sheet, "UNFOLDED", 6)
    _, page = find(photos, duplicates=0.5)
    at_once, folded = page.split("<summary>10 more</summary>")
    assert at_once.count("<img") == 6 and folded.count("<img") == 20
    _, page = find(photos, duplicates=0.96)
    assert "<summary>" not in page and page.count("<img") == 8


def test_a_sheet_that_was_being_written_is_tidied_away(photos, monkeypatch):
    """What a search that was killed leaves; the next one sweeps it."""
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: 1 / 0)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(ZeroDivisionError):
            find(photos, query=["45.png"])
    (left,) = photos.parent.glob(".photos*")
    os.utime(left, (100, 100))
    find(photos, query=["45.png"])
    assert not list(photos.parent.glob(".photos*"))


def test_without_a_query_some_images_are_chosen_by_the_seed(photos, monkeypatch):
    monkeypatch.setattr(search, "SPREAD", 2)
    pages = [find(photos, seed=seed)[1] for seed in (0, 0, 1, 2, 3)]
    assert pages[0] == pages[1] and len(set(pages)) > 1
    assert pages[0].count(">query<") == 2
    assert pages[0].count("<img") == 2 * 8  # all others, as there are fewer than 12


def test_names_are_text(tmp_path):
    directory = tmp_path / "images"
    directory.mkdir()
    names = ['<script>"&.png', "plain, with a comma.png"]
    for name in names:
        Image.new("RGB", (200, 100)).save(directory / name)
    file = write(tmp_path / "x.npz", names, np.eye(2), directory)
    _, page = find(file, query=[names[1]])
    assert "<script" not in page and html.escape(names[0]) in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "prefers-color-scheme: dark" in page


def test_another_image_is_encoded_by_the_checkpoint(tmp_path, monkeypatch):
    folder = embedded.write_folder(tmp_path / "images")
    file = tmp_path / "x.npz"
    embedded.embed_folder(monkeypatch, folder, file, tmp_path / "run", tap="z")
    copy = tmp_path / "elsewhere.png"
    copy.write_bytes((folder / "b" / "3.png").read_bytes())
    said, _ = find(file, query=[f"{copy},a/2.png"], k=2)
    assert said[1].split() == ["1.000", "b/3.png"]
    assert said[3].split() == ["query", "a/2.png"] and said[4].split()[1] != "a/2.png"


def test_weights_that_have_changed_are_refused(tmp_path, monkeypatch):
    folder = embedded.write_folder(tmp_path / "images", count=2)
    file = tmp_path / "x.npz"
    embedded.embed_folder(monkeypatch, folder, file, tmp_path / "run")
    found = embeddings.read(str(file))
    embeddings.write(file, dataclasses.replace(found, about=found.about | {"weights": "others"}))
    Image.new("RGB", (8, 8)).save(tmp_path / "q.png")
    with pytest.raises(UserError, match="is not the checkpoint that made the embeddings any more"):
        find(file, query=[str(tmp_path / "q.png")])


def test_images_that_have_been_moved(photos):
    directory = photos.parent / "images"
    (directory / "46.png").unlink()
    said, page = find(photos, query=["45.png"], k=3)
    assert any("1 of 4 images in the sheet cannot be read, such as 46.png" in s for s in said)
    assert page.count("<img") == 3
    moved = directory.rename(photos.parent / "elsewhere")
    with pytest.raises(UserError, match=f"none of the images can be read in {directory}"):
        find(photos, query=["10.png"])
    assert find(photos, query=["10.png"], images=str(moved))[1].count("<img") == 7


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Write six images into an archive; return it, its pixels, and what writes embeddings."""
    run = embedded.read_run("", tmp_path / "run")
    monkeypatch.setattr(saved, "read", lambda *_: run)
    path = tmp_path / "data.npz"
    pixels = np.arange(6 * 8 * 8).reshape(6, 8, 8, 1).astype(np.uint8)
    np.savez(path, images=pixels, labels=np.arange(6) % 2)
    data = {"data": str(path), "data_dir": "", "split": "train"}
    opened = embed.open_parts(run, **data)
    about = {"data": data, "fingerprints": [opened["train"].fingerprint()]}
    names = [f"image {i}" for i in range(6)]

    def embedded_as(labels=None, **more):
        file = tmp_path / "x.npz"
        return write(file, names, np.eye(6) + 1, "", labels, **about, **more)

    return path, pixels, embedded_as


def test_images_of_an_archive_are_found_in_it(archive):
    path, pixels, embedded_as = archive
    file = embedded_as()
    _, page = find(file, query=["image 4"], k=2)
    shown = re.findall('base64,([^"]*)"', page)
    with Image.open(io.BytesIO(base64.b64decode(shown[0]))) as image:
        np.testing.assert_array_equal(np.asarray(image)[..., :1], pixels[4])
    np.savez(path, images=pixels[::-1], labels=np.arange(6) % 2)
    with pytest.raises(UserError, match="are not those that were embedded"):
        find(file, query=["image 4"], k=2)


SEVERAL = [[1, 0, -1], [0, 1, 1], [-1, -1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    "labels, classes",
    [
        ([2, 0, -1, 1, 0, -1], ["cup", "ant", "", "class 1", "ant", ""]),
        (SEVERAL, ["ant", "class 1, cup", "", "cup", "ant, class 1, cup", ""]),
    ],
    ids=["one label", "several labels"],
)
def test_an_image_is_said_to_be_of_its_classes_and_of_no_others(archive, labels, classes):
    """Not of a class to be ignored in it, nor of the last one where it has no label."""
    *_, embedded_as = archive
    file = embedded_as(np.array(labels, np.int8), class_names=["ant", "1", "cup"])
    said, _ = find(file, query=[f"image {i}" for i in range(6)], k=1)
    told = [line.split("query", 1)[1].strip() for line in said if line.startswith("query")]
    want = [f"image {i}: {name}" if name else f"image {i}" for i, name in enumerate(classes)]
    assert told == want[: len(told)] and len(told) >= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 8}, "--k=8, but there are 8 images: choose 1 to 7"),
        ({"duplicates": 1.5}, "--duplicates=1.5 must be above 0"),
        ({"query": ["11.png"]}, r'--query=11.png is no file, and no name in .* as "0.png"'),
        ({"query": [__file__]}, "--query=.* cannot be used: .*not an image"),
        ({"out": "sheet.txt"}, "--out=sheet.txt must end in .html"),
        ({"out": "nowhere/sheet.html"}, "cannot be written"),
    ],
)
def test_user_errors(photos, change, message):
    with pytest.raises(UserError, match=message):
        find(photos, **change)


def test_files_that_are_no_embeddings(tmp_path):
    with pytest.raises(UserError, match="is no file"):
        find(tmp_path / "x.npz")
    with pytest.raises(UserError, match=r"must end in .npz or .parquet"):
        find(tmp_path / "x.html")
    np.savez(tmp_path / "x.npz", features=np.eye(3))
    with pytest.raises(UserError, match="holds no embeddings"):
        find(tmp_path / "x.npz")
    for name, said in (("y.npz", "is no archive to use"), ("y.parquet", "holds no embeddings")):
        (tmp_path / name).write_bytes(b"neither")
        with pytest.raises(UserError, match=said):
            find(tmp_path / name)
