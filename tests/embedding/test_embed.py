"""From images to a file of embeddings, with a tiny encoder that was never trained."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from embedding import embedded
from etils import epath
from PIL import Image

from simclr_jax.data import decode
from simclr_jax.data.sources import Images
from simclr_jax.embedding import embed, embeddings
from simclr_jax.errors import UserError
from simclr_jax.recipes import base


@pytest.fixture
def folder(tmp_path):
    return embedded.write_folder(tmp_path / "images")


@pytest.fixture
def run(tmp_path, monkeypatch):
    def call(folder, out="x.npz", **fields):
        file = tmp_path / out
        workdir = tmp_path / "run"
        return file, embedded.embed_folder(monkeypatch, folder, file, workdir, **fields)

    return call


def test_rows_are_what_the_encoder_makes_of_the_files(folder, run):
    file, said = run(folder)
    got = embeddings.read(str(file))
    assert len(got) == 24 and len(set(got.names)) == 24
    images = [decode.decode((folder / name).read_bytes()) for name in got.names]
    np.testing.assert_allclose(got.features, embedded.encoder()(images), atol=1e-5)
    # Any number of unreadable images is left out here; the encoder's own recipe is not told so.
    assert embedded.encoder().config.data.max_bad_fraction == base().data.max_bad_fraction
    classes = [got.about["class_names"][label] for label in got.labels]
    assert classes == [name.split("/")[0] for name in got.names]
    assert got.about["directory"] == str(folder)
    assert (got.about["tap"], got.about["weights"]) == ("h", embedded.encoder().fingerprint)
    assert any("images/s" in line for line in said)


def test_one_image_is_enough(run, tmp_path):
    """Training would hold some out of it."""
    (tmp_path / "one").mkdir()
    Image.new("RGB", (9, 12), "red").save(tmp_path / "one" / "only.png")
    file, _ = run(tmp_path / "one", data=str(tmp_path / "one"))
    got = embeddings.read(str(file))
    assert got.names.tolist() == ["only.png"] and got.about["parts"] == ["train"]


def test_parquet_holds_the_same(folder, run):
    pytest.importorskip("pyarrow")
    first, second = (embeddings.read(str(run(folder, f"x{s}")[0])) for s in embeddings.SUFFIXES)
    for name in ("features", "names", "part", "examples", "labels"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.about == second.about
    assert second.features.dtype == np.float32


def test_several_labels_survive_either_file(tmp_path):
    pytest.importorskip("pyarrow")
    labels = np.array([[1, 0], [-1, 1], [0, 0]], np.int8)
    names = np.array(["a", "b", "ü"])
    x = embeddings.Embeddings(
        np.eye(3, 4, dtype=np.float32),
        names,
        np.zeros(3, np.int32),
        np.arange(3),
        labels,
        embedded.about(),
    )
    for suffix in embeddings.SUFFIXES:
        embeddings.write(tmp_path / f"x{suffix}", x)
        got = embeddings.read(str(tmp_path / f"x{suffix}"))
        np.testing.assert_array_equal(got.labels, labels)
        np.testing.assert_array_equal(got.names, names)


def test_the_same_command_continues(folder, run, tmp_path):
    run(folder, cache=str(tmp_path / "kept"))
    _, said = run(folder, cache=str(tmp_path / "kept"))
    assert any("features were kept" in line for line in said)


def test_a_split_and_images_that_cannot_be_read(folder, run):
    for split in ("train", "test"):
        (folder / split).mkdir()
    for i, path in enumerate(sorted(folder.glob("[ab]/*"))):
        target = folder / ("test" if i % 4 == 0 else "train") / path.parent.name / path.name
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    (folder / "test" / "a" / "broken.png").write_bytes(b"no image")
    got = embeddings.read(str(run(folder, split="test")[0]))
    assert len(got) == 6
    assert all(name.startswith("test/") and "broken" not in name for name in got.names)
    got = embeddings.read(str(run(folder)[0]))
    assert sorted({name.split("/")[0] for name in got.names}) == ["test", "train"]
    assert got.about["parts"] == ["train", "test"]


def test_where_no_image_can_be_read_no_flag_that_is_not_there_is_named(folder, run):
    for path in folder.glob("[ab]/*"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"22 of 22 images are unreadable .*: repair them$"):
        run(folder, cache="none")


def test_labels_that_cannot_be_used_are_left_out(folder, run):
    (folder / "train" / "a").mkdir(parents=True)
    (folder / "train" / "b").mkdir()
    (folder / "test").mkdir()
    for i, path in enumerate(sorted(folder.glob("[ab]/*"))):
        path.rename(folder / ("test" if i % 4 == 0 else f"train/{path.parent.name}") / path.name)
    file, said = run(folder)
    assert embeddings.read(str(file)).labels is None
    assert any("labels are left out" in line for line in said)


@pytest.mark.parametrize(
    "workdir, data_dir, said",
    [
        ("runs/a", "sets", ("HERE/runs/a@7", "HERE/sets")),
        ("gs://bucket/runs/a", "gs://bucket/sets", ("gs://bucket/runs/a@7", "gs://bucket/sets")),
        ("/runs/a", "", ("/runs/a@7", "")),
    ],
)
def test_places_are_named_as_they_are_found_from_anywhere(
    tmp_path, monkeypatch, workdir, data_dir, said
):
    monkeypatch.chdir(tmp_path)
    run = embedded.read_run("", epath.Path(workdir))
    parts = {"train": Images(np.zeros((2, 8, 8, 3), np.uint8), None, 0)}
    options = embed.Options("run", "x.npz", "tfds:x", data_dir)
    about = embed._about(options, run, embedded.encoder(), parts)
    want = tuple(place.replace("HERE", str(tmp_path)) for place in said)
    assert (about["checkpoint"], about["data"]["data_dir"]) == want


def test_classes_have_names_where_only_a_later_part_has_labels(run, tmp_path):
    pixels = np.arange(6 * 64 * 3).reshape(6, 8, 8, 3).astype(np.uint8)
    more = {"test_labels": np.arange(6) % 2, "class_names": np.array(["ant", "cup"])}
    np.savez(tmp_path / "d.npz", train_images=pixels, test_images=255 - pixels, **more)
    got = embeddings.read(str(run("", data=str(tmp_path / "d.npz"))[0]))
    assert got.about["class_names"] == ["ant", "cup"]
    np.testing.assert_array_equal(got.labels, [*[-1] * 6, 0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize(
    ("out", "change", "message"),
    [
        ("x.csv", {}, r"x.csv must end in .npz or .parquet"),
        ("nowhere/x.npz", {}, "cannot be written"),
        ("x.npz", {"tap": "g"}, '--tap is "g"'),
        ("x.npz", {"split": "val"}, '--split is "val"'),
    ],
)
def test_user_errors(folder, run, out, change, message):
    with pytest.raises(UserError, match=message):
        run(folder, out, **change)


def test_a_missing_pyarrow_is_named_before_any_work(folder, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install 'pyarrow>=15'"):
        run(folder, "x.parquet")


def test_a_failed_write_leaves_what_was_there(folder, run, tmp_path, monkeypatch):
    file, _ = run(folder)
    before = file.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match="No space left on device"):
        run(folder)
    assert file.read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
