"""Whose vectors a file of embeddings holds, and what is found in it, from the saved weights alone.

Some files cannot be read, classes are partly wrong and splits differ: a row too many, of another
image, split, step or tap is another number.
"""

from __future__ import annotations

import numpy as np
import pytest
from judging import by_hand, noisy
from judging.noisy import CLASSES, PARTS
from PIL import Image

from simclr_jax.embedding import embed, embeddings, search
from simclr_jax.errors import UserError

TRAIN, VAL, TEST = PARTS.values()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("embedded")
    for part in PARTS.values():
        part.write(root / "images")
    return root


@pytest.fixture(scope="module")
def run(root):
    """Return a run on the folder, with two steps, whose recipe does not use the labels."""
    fields = {"data__source": "folder", "data__path": str(root / "images"), "data__labels": False}
    noisy.write_run(root / "run", 5, **fields, seed=1)
    return noisy.write_run(root / "run", 7, **fields)


@pytest.fixture(scope="module")
def embedded(run, root):
    """Return the function that embeds, and reads what is written."""

    def call(checkpoint=run, **fields):
        out, said = root / "x.npz", []
        embed.run(embed.Options(str(checkpoint), str(out), **fields), said.append)
        return embeddings.read(str(out)), said

    return call


def check(got, run, parts, tap):
    """Compare rows with images of the parts, in their order, the unreadable left out."""
    assert got.about["parts"] == [part.split for part in parts]
    assert got.about["fingerprints"] == [part.fingerprint() for part in parts]
    for i, part in enumerate(parts):
        rows = got.part == i
        np.testing.assert_array_equal(got.examples[rows], part.examples)
        names = [f"{part.split}/{part.names[j]}" for j in part.examples]
        assert got.names[rows].tolist() == names
        np.testing.assert_array_equal(got.labels[rows], part.labels)
        expected = noisy.of_run(run, part.pixels, tap)
        np.testing.assert_allclose(got.features[rows], expected, atol=1e-5)
    assert len(got) == sum(len(part.labels) for part in parts)
    assert got.about["class_names"] == [f"c{i}" for i in range(CLASSES)]


def test_rows_are_the_readable_images_of_both_splits(embedded, run, root):
    got, said = embedded()
    check(got, run, (TRAIN, TEST), "h")
    about = got.about
    assert (about["tap"], about["step"], about["checkpoint"]) == ("h", 7, f"{run}@7")
    assert about["directory"] == str(root / "images")
    assert about["data"] == {"data": "", "data_dir": "", "split": ""}
    assert any("3 of 74 images are unreadable" in line for line in said)


@pytest.mark.parametrize(
    "tap, at, split, parts",
    [
        ("z", "", "val", (VAL,)),
        ("head1", "@5", "test,val", (TEST, VAL)),
        ("group3", "@7", "train", (TRAIN,)),
        ("pixels", "", "test", (TEST,)),
    ],
)
def test_taps_steps_and_splits_are_those_asked_for(embedded, run, tap, at, split, parts):
    got, _ = embedded(f"{run}{at}", tap=tap, split=split, cache="none")
    check(got, f"{run}{at}", parts, tap)
    assert (got.about["tap"], got.about["step"]) == (tap, 5 if at == "@5" else 7)
    assert got.about["data"]["split"] == split


def test_images_without_names_are_told_apart_by_their_split(embedded, run, tmp_path):
    arrays = {}
    for split, count in (("train", 9), ("test", 5)):
        arrays[f"{split}_images"], labels = noisy.draw(split, count)
        arrays |= {f"{split}_labels": labels} if split == "train" else {}
    np.savez(tmp_path / "a.npz", **arrays)
    got, _ = embedded(data=str(tmp_path / "a.npz"), cache="none")
    names = [f"{split}: image {i}" for split, n in (("train", 9), ("test", 5)) for i in range(n)]
    assert got.names.tolist() == names
    np.testing.assert_array_equal(got.labels, [*arrays["train_labels"], *[-1] * 5])
    pixels = np.concatenate([arrays["train_images"], arrays["test_images"]])
    np.testing.assert_allclose(got.features, noisy.of_run(run, pixels, "h"), atol=1e-5)
    got, _ = embedded(data=str(tmp_path / "a.npz"), split="train", cache="none")
    assert got.names.tolist() == [f"image {i}" for i in range(9)]
    np.testing.assert_array_equal(got.labels, arrays["train_labels"])


def test_all_splits_of_other_data_are_embedded_and_of_the_runs_own_its_two(embedded, run, root):
    got, said = embedded(data=str(root / "images"), cache="none")
    check(got, run, (TRAIN, TEST, VAL), "h")
    assert not any("not used" in line for line in said)
    got, said = embedded()
    check(got, run, (TRAIN, TEST), "h")
    (line,) = [line for line in said if "not used" in line]
    count = len(list((root / "images/val").rglob("*.png")))
    assert line == f"note      not used: val ({count} images), which is a split"
    _, said = embedded(split="val,train", cache="none")
    assert any("not used: test (" in line for line in said)


def test_what_a_folder_holds_besides_is_said(embedded, root, tmp_path):
    for name, split in (("plane", "test"), ("train", "train")):
        (tmp_path / name).symlink_to(root / "images" / split)
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "1.CR2").write_text("")
    with pytest.raises(UserError, match=f"beside plane .*--data=classes:{tmp_path}"):
        embedded(data=str(tmp_path), cache="none")
    got, said = embedded(data=f"splits:{tmp_path}", split="plane", cache="none")
    assert got.about["data"]["data"] == f"splits:{tmp_path}"
    notes = [line for line in said if line.startswith("note ")]
    for words in ("not used: train (", "not read: 1 file, 1 *.cr2", "up, which is ."):
        assert any(words in note for note in notes), notes


def find(file, **fields):
    said = []
    search.run(search.Options(str(file), **fields), lambda line: said.extend(line.split("\n")))
    return said, file.with_suffix(".html").read_text(encoding="utf-8")


def test_the_nearest_are_those_of_the_vectors_at_the_tap(embedded, run, root, tmp_path):
    """Of an image in the file, which is not its own neighbour, and of another one."""
    got, _ = embedded(tap="z", split="val", cache="none")
    vectors = noisy.of_run(run, VAL.pixels, "z")
    file = root / "x.npz"
    new = noisy.draw("test", 90)[0][77]
    Image.fromarray(new).save(tmp_path / "new.png")
    name = got.names[11]
    said, _ = find(file, query=[name, str(tmp_path / "new.png")], k=4)
    outside = noisy.of_run(run, new[None], "z")
    for start, query, own in ((0, vectors[11:12], 11), (5, outside, None)):
        (cosines,) = by_hand.cosines(vectors, query)
        order = [i for i in np.argsort(-cosines) if i != own][:4]
        lines = [line.split() for line in said[start + 1 : start + 5]]
        assert [line[1] for line in lines] == [got.names[i] for i in order]
        found = [float(line[0]) for line in lines]
        np.testing.assert_allclose(found, cosines[order], atol=6e-4)
        assert cosines[order[0]] < 0.9999


@pytest.mark.parametrize(
    "count, k, nearest", [(38, None, 12), (13, None, 12), (12, None, 11), (9, 8, 8)]
)
def test_as_many_are_shown_as_there_are_or_were_asked_for(embedded, root, count, k, nearest):
    got, _ = embedded(split="val")
    few = embeddings.Embeddings(
        got.features[:count],
        got.names[:count],
        got.part[:count],
        got.examples[:count],
        got.labels[:count],
        got.about,
    )
    embeddings.write(root / "few.npz", few)
    _, page = find(root / "few.npz", query=[got.names[3]], k=k)
    assert page.count("<img") == 1 + nearest


def test_pairs_are_as_similar_as_asked_or_more(embedded, run, root):
    got, _ = embedded(split="test")
    vectors = noisy.of_run(run, TEST.pixels, "h")
    cosines = np.triu(by_hand.cosines(vectors, vectors), 1)
    ranked = np.sort(cosines[cosines > 0])[::-1]
    least = float(np.round((ranked[14] + ranked[15]) / 2, 5))
    said, _ = find(root / "x.npz", duplicates=least)
    assert said[0] == f"15 pairs of similarity {least:g} or more"
    pairs = np.argwhere(cosines >= least)
    lines = [line.split() for line in said[1:16]]
    named = {frozenset(line[1:]) for line in lines}
    assert named == {frozenset(got.names[pair].tolist()) for pair in pairs}
    np.testing.assert_allclose([float(line[0]) for line in lines], ranked[:15], atol=6e-5)


def test_images_chosen_by_the_seed_are_spread_over_the_file(embedded, root, monkeypatch):
    monkeypatch.setattr(search, "SPOKEN_QUERIES", 100)
    got, _ = embedded(split="test")
    position = {name: i for i, name in enumerate(got.names)}
    chosen = []
    for seed in (0, 1, 0):
        said, _ = find(root / "x.npz", seed=seed, k=2)
        rows = [position[line.split()[1]] for line in said if line.startswith("query")]
        bounds = [part[[0, -1]] for part in np.array_split(np.arange(len(got)), 12)]
        assert all(low <= row <= high for row, (low, high) in zip(rows, bounds, strict=True))
        chosen.append(rows)
    assert chosen[0] == chosen[2] != chosen[1]
