"""Unreadable images: replaced, listed once, counted; and what is decoded before a run."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from data.test_placements import Photographs, one_size
from etils import epath

from simclr_jax import documents, recipes
from simclr_jax.data import reader, sources
from simclr_jax.data.decode import BadImage
from simclr_jax.data.held_out import HeldOut, Kept
from simclr_jax.data.reader import Reader, Unreadable
from simclr_jax.data.sources import Images
from simclr_jax.errors import UserError
from simclr_jax.stages.inputs import Inputs


def same(positions):
    return positions


def test_the_list_is_kept_over_restarts_and_names_each_image_once(tmp_path):
    path, said = epath.Path(tmp_path) / "unreadable.jsonl", []
    first = Unreadable("train", 100, 0.04, path, said.append)
    for name in ("a.jpg", "b\n.jpg", "a.jpg"):
        first.add(name, "empty file")
    with path.open("a") as file:
        file.write('{"image": "half a li')
    second = Unreadable("train", 100, 0.02, path, said.append)
    second.add("c.jpg", BadImage("truncated"))
    second.add("a.jpg", "empty file")
    lines = [documents.parse(line, dict) for line in path.read_text().splitlines()]
    assert lines == [
        {"image": "a.jpg", "reason": "empty file"},
        {"image": "b\n.jpg", "reason": "empty file"},
        {"image": "c.jpg", "reason": "truncated"},
    ]
    assert len(said) == 4 and all("empty file" in line or "truncated" in line for line in said)
    # b.jpg may have been repaired meanwhile; what was met counts.
    with pytest.raises(UserError, match=r"3 of 100 images \(train\).*d\.jpg \(x\).*jsonl"):
        second.add("d.jpg", "x")
    with pytest.raises(UserError, match="4 of 100"):
        second.add("e.jpg", "x")


def test_a_damaged_list_is_repaired_and_said(tmp_path):
    path, said = epath.Path(tmp_path) / "unreadable.jsonl", []
    good = b'{"image": "a.jpg", "reason": "empty file"}\n'
    odd = [
        b"\xff\xfe",
        b"[]",
        b"3",
        b'{"image": 3, "reason": "x"}',
        b'{"image": "b.jpg"}',
        b"{" * 9,
    ]
    path.write_bytes(b"\n".join(odd) + b"\n" + good + b"half a li")
    Unreadable("train", 100, 0.04, path, said.append)
    assert path.read_text() == documents.line(json.loads(good))
    assert said == [f"note      6 damaged line(s) of {path} are left out"]
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"cannot be read .Is a directory."):
        Unreadable("train", 100, 0.04, path)


def test_what_is_said_moves_no_cursor():
    said = []
    Unreadable("train", 100, 0.5, say=said.append).add("a.jpg", 'text, not an image: "\x1b[2J"')
    assert said[0].isprintable() and r"\x1b[2J" in said[0]


def test_only_the_first_few_are_said(tmp_path):
    said = []
    unreadable = Unreadable("train", 100, 0.5, say=said.append)
    for i in range(20):
        unreadable.add(f"{i}.jpg", "empty file")
    assert len(said) == 3 and len(unreadable) == 20


def test_a_source_of_nothing_but_broken_images_ends():
    broken = Reader(Photographs(range(30)), lambda p: p % 30, Unreadable("train", 30, 0.9))
    with pytest.raises(UserError, match="28 of 30 images"):
        broken.read(np.arange(4))


def test_rows_have_the_numbers_of_the_images_that_were_taken():
    source = Photographs(bad=(3, 4, 9))
    rows = Reader(source, lambda p: 29 - p % 30, Unreadable("train", 30, 0.9)).read(np.arange(30))
    taken = [2 if i in (3, 4) else 8 if i == 9 else i for i in range(29, -1, -1)]
    assert rows.examples.dtype == np.int32 and rows.examples.tolist() == taken
    np.testing.assert_array_equal(rows.labels, taken)
    for image, example in zip(rows.images, taken, strict=True):
        np.testing.assert_array_equal(image, source.example(example)[0])


def test_a_bug_in_a_source_is_not_taken_for_a_bad_image():
    class Faulty(Photographs):
        def example(self, example):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Reader(Faulty(), same, Unreadable("train", 30, 0.9)).read(np.arange(2))


def test_decoded_images_are_those_of_the_source_with_marks_on_the_unreadable():
    images = one_size()

    class Encoded(Photographs):
        def example(self, example):
            return (images.pixels[example], super().example(example)[1])

    unreadable = Unreadable("train", 30, 0.1)
    loaded = reader.load(Encoded(bad=(0, 7)), unreadable, threads=2)
    assert loaded.bad is not None and np.flatnonzero(loaded.bad).tolist() == [0, 7]
    good = np.setdiff1d(np.arange(30), [0, 7])
    np.testing.assert_array_equal(loaded.pixels[good], images.pixels[good])
    np.testing.assert_array_equal(loaded.labels, np.arange(30))  # of unreadable ones too
    assert loaded.classes == 30 and len(unreadable) == 2
    hidden = reader.load(sources.hide_labels(Encoded(bad=(0, 7)), [7, 9]), unreadable, threads=2)
    np.testing.assert_array_equal(
        hidden.labels, np.where(np.isin(range(30), [7, 9]), -1, range(30))
    )
    assert reader.load(images, unreadable, threads=2) is images


def test_images_of_several_sizes_cannot_be_decoded_beforehand():
    with pytest.raises(UserError, match=r"0\.jpg is \d+x\d+ and 1\.jpg \d+x\d+ .*placement=split"):
        reader.load(Photographs(), Unreadable("train", 30, 0.1), threads=2)


def test_held_out_images_are_prepared_in_order_and_bad_ones_left_out():
    source = Photographs(bad=(0, 9))
    unreadable = Unreadable("held_out", 30, 0.1)
    held_out = HeldOut(source, lambda image: image[:4, :4], unreadable, threads=3)
    assert len(held_out) == 30
    part = held_out[5:12]
    for row, image in zip(range(5, 12), part, strict=True):
        want = np.zeros((4, 4, 3)) if row == 9 else source.example(row)[0][:4, :4]
        np.testing.assert_array_equal(image, want)
    assert held_out[0:1].shape == (1, 4, 4, 3)  # nothing readable in this slice
    assert held_out.readable().tolist() == [i for i in range(30) if i not in (0, 9)]
    assert len(unreadable) == 2


@pytest.mark.parametrize("fits", [0, 12, 100])
def test_evaluations_decode_once_what_fits_and_see_the_same(monkeypatch, fits):
    config, lines, decoded = recipes.base(), [], []
    config.augment.placement, config.augment.grid = "canvas", "corner"
    config.augment.canvas, config.data.image_size, config.data.max_bad_fraction = 64, 8, 0.1
    of_one = 8 * 8 * 3 * 4  # float32, of a grid that is not OpenCV's
    config.data.eval_gigabytes = fits * of_one / 1e9
    train, test = Photographs(bad=(3,)), Photographs(bad=(0, 9))
    example = Photographs.example
    monkeypatch.setattr(
        Photographs, "example", lambda self, i: decoded.append(self) or example(self, i)
    )
    inputs = Inputs(config, train, test)
    inputs._say = lines.append
    passes = []
    for _ in range(3):
        found = []
        for source in (test, train):
            with inputs.for_evaluation(source) as images:
                found += [images[:20], images[20:], inputs.readable(source, images)]
        passes.append((found, decoded.count(train), decoded.count(test)))
        decoded.clear()
    first, *others = passes
    for other in others:
        for a, b in zip(first[0], other[0], strict=True):
            np.testing.assert_array_equal(a, b)
    assert first[0][2].tolist() == [i for i in range(30) if i not in (0, 9)]
    assert first[1:] == (30, 30)
    kept = min(fits, 57)
    assert [sum(other[1:]) for other in others] == [60 - kept] * 2  # bad ones are looked at again
    assert len(lines) == (1 + (fits > 28) if fits else 0)
    if fits:
        assert lines[-1].startswith(f"kept      {kept} prepared images for later evaluations, ")
        assert lines[-1].endswith(", the others are decoded each time") == (fits < 57)


def test_what_is_kept_of_an_image_holds_nothing_else():
    whole, kept = np.zeros((100, 100, 3), np.uint8), Kept(1000)
    kept.put("train", 0, whole[:4, :4])
    assert kept.get("train", 0).base is None and kept.bytes == 48
    assert kept.get("held_out", 0) is None


def test_ahead_keeps_the_order_and_raises_what_the_work_raised():
    def work(job):
        if job == 7:
            raise OSError("disk gone")
        return job * job

    found = []
    with ThreadPoolExecutor(4) as pool, pytest.raises(OSError, match="disk gone"):
        for done in reader.ahead(pool, work, range(20), depth=3):
            found.append(done)
    assert found == [i * i for i in range(7)]


def test_memory_is_bounded_by_the_depth():
    started = []
    with ThreadPoolExecutor(2) as pool:
        stream = reader.ahead(pool, started.append, range(1000), depth=5)
        next(stream)
        stream.close()
    assert len(started) <= 6


def test_images_without_labels_have_none():
    image, label = Images(np.zeros((2, 3, 3, 1), np.uint8), None, 0).example(1)
    assert image.shape == (3, 3, 1) and label == -1
