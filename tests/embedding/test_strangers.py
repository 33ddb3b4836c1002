"""What a stranger's file of embeddings makes `search` do: nothing that the user did not ask for."""

from __future__ import annotations

import dataclasses
import html.parser
import os
from pathlib import Path

import numpy as np
import pytest
from embedding import embedded
from PIL import Image

from simclr_jax.data import decode
from simclr_jax.embedding import embeddings, own, pictures, search
from simclr_jax.errors import UserError
from simclr_jax.train import saved

EVIL = "<script>alert('x')</script>\x1b[2J\u202e\"&"


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Return what becomes another user, for as long as it is entered."""

    class Other:
        def __enter__(self):
            self.before = os.environ["XDG_CACHE_HOME"]
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another user"))

        def __exit__(self, *_):
            monkeypatch.setenv("XDG_CACHE_HOME", self.before)

    return Other()


@pytest.fixture
def opened(monkeypatch):
    """Return the files whose bytes were decoded, as far as they are on the disk."""
    found, read = [], Path.read_bytes

    def watched(path):
        found.append(os.path.realpath(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", watched)
    return found


def picture(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), (colour, 0, 99)).save(path)


def write(path, names, directory="", **about):
    rows = (np.zeros(len(names), np.int32), np.arange(len(names)), None)
    said = embedded.about(directory=str(directory), **about)
    features = np.eye(len(names), 9, dtype=np.float32) + 1
    embeddings.write(path, embeddings.Embeddings(features, np.array(names), *rows, said))
    return path


def find(file, **fields):
    said = []
    search.run(search.Options(str(file), **fields), lambda line: said.extend(line.split("\n")))
    return said, file.with_suffix(".html").read_text(encoding="utf-8")


@pytest.fixture
def house(tmp_path):
    """Two images in a directory and a secret beside it, reached by names and by links."""
    for name in ("a.png", "b/c.png"):
        picture(tmp_path / "images" / name)
    picture(tmp_path / "secret" / "s.png", 255)
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret" / "s.png")
    (tmp_path / "images" / "inner.png").symlink_to(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "door").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "images" / "pipe.png")
    return tmp_path


OUTSIDE = ["../secret/s.png", "b/../../secret/s.png", "{}/secret/s.png", "link.png", "door/s.png"]
INSIDE = ["a.png", "b/c.png", "inner.png"]
NOTHING = ["pipe.png", "", "b", "a.png/x", "x" * 400, "no.png"]


def test_names_are_followed_below_the_directory_alone(house, elsewhere, opened):
    outside = [name.format(house) for name in OUTSIDE]
    with elsewhere:
        file = write(house / "x.npz", [*INSIDE, *outside, *NOTHING], house / "images")
    said, page = find(file, images=str(house / "images"), query=["a.png"], k=13)
    assert page.count("<img") == len(INSIDE)
    assert set(opened) & {str(house / "secret" / "s.png")} == set()
    notes = [line for line in said if line.startswith("note")]
    assert len(notes) == 2
    assert f"{len(OUTSIDE)} of 14 images in the sheet are left out: their names lead" in notes[0]
    assert f"{len(NOTHING)} of 14 images in the sheet cannot be read" in notes[1]
    assert "Names and links that lead out of it are not followed" in page


def test_a_strangers_directory_is_not_looked_into(house, elsewhere, opened):
    with elsewhere:
        file = write(house / "x.npz", ["s.png", "no.png"], house / "secret")
    before = len(opened)
    with pytest.raises(UserError, match=r"not of this user's embed.*give --images=DIRECTORY .*say"):
        find(file)
    assert not [path for path in opened[before:] if "secret" in path]
    assert not file.with_suffix(".html").exists()


def test_ones_own_file_is_searched_in_one_command(house, opened):
    """And what embed itself found behind links is shown."""
    file = write(house / "x.npz", [*INSIDE, "link.png", "../secret/s.png"], house / "images")
    assert embeddings.read(str(file)).own
    said, page = find(file, query=["a.png"], k=4)
    assert page.count("<img") == len(INSIDE) + 1
    assert "1 of 5 images in the sheet are left out" in said[-2]
    assert f"Pictures are read in {house / 'images'}, for this user&#x27;s embed found" in page
    moved = file.rename(house / "images" / "y.npz")
    assert embeddings.read(str(moved)).own


def test_no_word_of_ones_own_file_can_be_changed(house):
    file = write(house / "x.npz", INSIDE, house / "images")
    found = embeddings.read(str(file))
    assert own.is_marked(found.about)
    for name, value in (
        ("directory", "/"),
        ("checkpoint", "elsewhere@1"),
        ("data", {"data": "/", "data_dir": "", "split": ""}),
        ("content", "sha256 0"),
        ("mark", ""),
    ):
        assert not own.is_marked(found.about | {name: value})
    # Whoever writes it anew computes all checksums, and has another key, or none.
    kind = embeddings._write_npz
    evil = dataclasses.replace(found, names=found.names[::-1])
    about = found.about | {"content": embeddings._checksum(evil)}
    kind(file, dataclasses.replace(evil, about=embeddings.json.dumps(about)))
    assert not embeddings.read(str(file)).own


def test_the_key_is_of_the_user_alone(elsewhere, tmp_path, monkeypatch):
    with elsewhere:
        first = own.marked({"content": "x"})
        (key,) = (tmp_path / "another user" / "simclr_jax").iterdir()
        assert key.stat().st_mode & 0o777 == 0o600 and key.stat().st_size == own.LENGTH
        assert own.marked({"content": "x"}) == first and own.is_marked(first)
        key.write_bytes(b"short")
        assert not own.is_marked(first) and "mark" not in own.marked({"content": "x"})
    assert not own.is_marked(first)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # where no key can be kept
    assert own.marked({"content": "x"}) == {"content": "x"}


def test_a_strangers_run_is_not_opened(house, elsewhere, monkeypatch):
    asked = []
    monkeypatch.setattr(saved, "read", lambda run, flag: asked.append((run, flag)) or 1 / 0)
    with elsewhere:
        file = write(house / "x.npz", INSIDE, house / "images", checkpoint="/evil/run@1")
    options = {"images": str(house / "images"), "query": [str(house / "secret" / "s.png")]}
    with pytest.raises(UserError, match=r"the run that they name is not opened: give --checkpoint"):
        find(file, **options)
    assert not asked
    with pytest.raises(ZeroDivisionError):
        find(file, checkpoint="mine@3", **options)
    assert asked == [("mine@3", "--checkpoint")]


def test_a_strangers_data_are_not_opened(tmp_path, elsewhere, monkeypatch):
    """Of an archive, too, the user says where it is, and which run divides it."""
    run = embedded.read_run("", tmp_path / "run")
    monkeypatch.setattr(saved, "read", lambda *_: run)
    data = tmp_path / "data.npz"
    np.savez(data, images=np.zeros((4, 8, 8, 1), np.uint8), labels=np.arange(4) % 2)
    with elsewhere:
        file = write(
            tmp_path / "x.npz",
            [f"image {i}" for i in range(4)],
            data={"data": str(data), "data_dir": "", "split": "train"},
            fingerprints=["made up"],
        )
    with pytest.raises(UserError, match="give --images=DIRECTORY"):
        find(file)
    with pytest.raises(UserError, match="give --checkpoint=RUN"):
        find(file, images=str(data))
    with pytest.raises(UserError, match="are not those that were embedded"):
        find(file, images=str(data), checkpoint="mine")


def test_a_strangers_directory_of_data_sets_is_not_opened(tmp_path, elsewhere, monkeypatch):
    """Not for the name of the same data set either, which the user gives."""
    asked = []
    monkeypatch.setattr(saved, "read", lambda *_: None)
    monkeypatch.setattr(pictures, "open_parts", lambda *given: asked.append(given[1:]) or 1 / 0)
    about = {"data": {"data": "tfds:x", "data_dir": "/their/place", "split": "train"}}
    with elsewhere:
        theirs = write(tmp_path / "theirs.npz", ["a", "b"], **about)
    for file in (theirs, write(tmp_path / "mine.npz", ["a", "b"], **about)):
        with pytest.raises(ZeroDivisionError):
            find(file, images="tfds:x", checkpoint="mine")
    assert asked == [("tfds:x", "", "train"), ("tfds:x", "/their/place", "train")]


class Tags(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.seen, self.text = set(), []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)


def test_every_string_of_a_file_is_text(tmp_path, elsewhere, monkeypatch):
    """In the page, and on the terminal, where it must not move the cursor."""
    images = tmp_path / "images"
    names = [f"{i}{EVIL}.png".replace("/", "") for i in range(3)] + ["\udcff\ud800.png"]
    for name in names[:3]:
        picture(images / name)
    with elsewhere:
        file = write(
            tmp_path / "x.npz",
            names,
            EVIL,
            checkpoint=EVIL,
            tap=EVIL,
            weights=EVIL,
            parts=[EVIL],
            class_names=[EVIL],
            fingerprints=[EVIL],
        )
    for fields in ({"query": [names[0]]}, {"duplicates": 0.1}):
        said, page = find(file, images=str(images), **fields)
        tags = Tags(page)
        assert "script" not in tags.seen and any("<script>" in text for text in tags.text)
        assert all(line.isprintable() for line in said)
    with pytest.raises(UserError) as error:
        find(file)
    assert str(error.value).isprintable()
    with pytest.raises(UserError) as error:
        find(file, images=str(images), query=[__file__.replace(".py", ".png")])
    assert str(error.value).isprintable()
    picture(tmp_path / "q.png")
    monkeypatch.setattr(saved, "read", lambda *_: embedded.read_run("", tmp_path / "run"))
    encoder = embedded.encoder()
    monkeypatch.setattr(search.Encoder, "of", lambda *_: encoder)
    with elsewhere:
        write(file, names, images, tap=EVIL, weights=encoder.fingerprint)
    with pytest.raises(UserError, match="the embeddings' tap is"):
        find(file, images=str(images), query=[str(tmp_path / "q.png")], checkpoint="mine")


@pytest.mark.parametrize("name", ["a\0b.npz", "x" * 400 + ".npz", "x://y.npz", "file:///y.npz", ""])
@pytest.mark.parametrize("field", ["embeddings", "out", "images", "query"])
def test_a_path_that_no_file_can_have_is_one_line(house, field, name):
    if not name and field != "embeddings":
        return  # not given
    file = write(house / "x.npz", INSIDE, house / "images")
    if field == "embeddings":
        file = Path(name)
    value = {"out": name.replace(".npz", ".html"), "images": name, "query": [name]}.get(field)
    with pytest.raises(UserError) as error:
        search.run(
            search.Options(
                name if field == "embeddings" else str(file),
                **{**({field: value} if value else {})},
            ),
            lambda line: None,
        )
    assert "\n" not in str(error.value)


def test_only_files_of_images_are_decoded(house, monkeypatch):
    """A pipe would be read for ever, and a file of gigabytes fill the memory."""
    monkeypatch.setattr(decode, "LARGEST", 80)
    sizes = []
    monkeypatch.setattr(decode, "decode", lambda content, rules: sizes.append(len(content)))
    file = write(house / "x.npz", ["a.png", "pipe.png"], house / "images")
    assert (house / "images" / "a.png").stat().st_size > 80
    with pytest.raises(UserError, match="none of the images can be read"):
        find(file)
    assert not sizes
