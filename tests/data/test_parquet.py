"""Parquet files as `datasets` writes them: structures of bytes and path, names of classes noted."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor

import bucket
import numpy as np
import pytest
from etils import epath
from PIL import Image

from simclr_jax import recipes
from simclr_jax.data import batches, sources
from simclr_jax.data.decode import BadImage
from simclr_jax.data.sources import parquet
from simclr_jax.errors import UserError
from simclr_jax.stages.inputs import Inputs

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

TRAIN, TEST, GROUP = 40, 9, 7
NAMES = ("ant", "bee", "cat", "dog", "eel")


def pixels(i):
    return np.random.RandomState(i).randint(0, 256, (8, 8, 3), dtype=np.uint8)


def photo(i):
    file = io.BytesIO()
    Image.fromarray(pixels(i)).save(file, "PNG")
    return file.getvalue()


def images(rows):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": photo(i), "path": f"{i}.png"} for i in rows], kind)


def write(path, columns, noted=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if noted is not None:
        said = json.dumps({"info": {"features": noted}}).encode()
        table = table.replace_schema_metadata({b"huggingface": said})
    pq.write_table(table, path, row_group_size=GROUP, **options)
    return path


CLASSED = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}


def of(rows):
    return {"image": images(rows), "label": pa.array([i % len(NAMES) for i in rows], pa.int64())}


@pytest.fixture
def root(tmp_path):
    """Return a directory as a repository of the Hub has it, with two training files."""
    write(tmp_path / "set/data/train-00000-of-00002.parquet", of(range(15)), CLASSED)
    write(tmp_path / "set/data/train-00001-of-00002.parquet", of(range(15, TRAIN)), CLASSED)
    write(tmp_path / "set/data/test-00000-of-00001.parquet", of(range(100, 100 + TEST)), CLASSED)
    return tmp_path / "set"


def options(path, **fields):
    data = recipes.base().data
    data.source, data.path = "parquet", str(path)
    data.update(fields)
    return data


def opened(path, split="train", **fields):
    return parquet.splits(options(path, **fields))[split]()


@pytest.mark.parametrize("split, offset, count", [("train", 0, TRAIN), ("test", 100, TEST)])
@pytest.mark.parametrize("held", [1, parquet.HELD], ids=["one group", "all groups"])
def test_every_row_is_the_image_that_was_written(root, split, offset, count, held, monkeypatch):
    monkeypatch.setattr(parquet, "HELD", held)
    source = opened(root, split)
    assert len(source) == count and source.class_names == NAMES and source.classes == len(NAMES)
    np.testing.assert_array_equal(source.labels, (offset + np.arange(count)) % len(NAMES))
    order = np.random.RandomState(0).permutation(count)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.example, order.tolist()))
    for i, (image, label) in zip(order.tolist(), found, strict=True):
        np.testing.assert_array_equal(image, pixels(offset + i))
        assert label == (offset + i) % len(NAMES) and source.name(i) == f"{offset + i}.png"


def test_a_group_is_read_once_however_many_ask_for_it(root, monkeypatch):
    source, read = opened(root), []
    real = parquet.ParquetRows._read
    monkeypatch.setattr(
        parquet.ParquetRows, "_read", lambda self, *a: (read.append(a[2]), real(self, *a))[1]
    )
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(source.example, range(15)))
    assert sorted(read) == [0, 1, 2]  # 7, 7 and 1 row of the first file


def test_bytes_alone_and_labels_of_other_kinds(tmp_path):
    columns = {"jpg": pa.array([photo(i) for i in range(3)], pa.binary())}
    columns["text"] = pa.array(["a", "b", "c"])
    columns["cls"] = pa.array([2, None, 0], pa.uint8())
    write(tmp_path / "train.parquet", columns)
    source = opened(tmp_path)
    assert source.labels.tolist() == [2, -1, 0] and source.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(source.example(1)[0], pixels(1))
    assert source.name(1) == "train[1]"
    assert opened(tmp_path, labels=False).labels is None
    write(tmp_path / "train.parquet", {n: x for n, x in columns.items() if n != "cls"})
    assert opened(tmp_path).labels is None


def test_of_several_labels_a_user_chooses(tmp_path):
    fine, coarse = pa.array([0, 1, 2]), pa.array([0, 0, 1])
    noted = {
        n: {"names": list(x), "_type": "ClassLabel"} for n, x in (("fine", "abc"), ("coarse", "xy"))
    }
    write(
        tmp_path / "train.parquet", {"img": images(range(3)), "fine": fine, "coarse": coarse}, noted
    )
    with pytest.raises(
        UserError, match=r"several columns of labels: choose one by data.name, of fine, c"
    ):
        opened(tmp_path)
    with pytest.raises(UserError, match=r'data.name is "coarce".*did you mean "coarse"'):
        opened(tmp_path, name="coarce")
    assert opened(tmp_path, name="coarse").class_names == ("x", "y")
    assert opened(tmp_path, labels=False).classes == 0


@pytest.mark.parametrize(
    "columns, noted, words",
    [
        ({"label": pa.array([1])}, None, "has no column of images, but label: give files with a"),
        ({"i": images([0]), "label": pa.array([-2])}, None, "has the label -2: number from 0"),
        ({"i": images([0]), "label": pa.array([5])}, CLASSED, "label 5, and names of 5 classes"),
        ({"i": images([]), "label": pa.array([], pa.int64())}, None, "has no rows: choose another"),
    ],
)
def test_what_is_no_data_set_is_one_line(tmp_path, columns, noted, words):
    write(tmp_path / "train.parquet", columns, noted)
    with pytest.raises(UserError, match=words):
        opened(tmp_path)


def test_files_that_do_not_go_together(root):
    write(
        root / "data/train-00001-of-00002.parquet", {"other": images([0]), "label": pa.array([1])}
    )
    with pytest.raises(UserError, match=r"train-00001-of-00002.parquet has other columns than"):
        opened(root)
    (root / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"1 of 2 files such as .*, not number 1"):
        opened(root)


def test_damage(root):
    path = root / "data/train-00000-of-00002.parquet"
    content = path.read_bytes()
    for other in (content[:-100], b"", b"PAR1" + bytes(100), content[: len(content) // 2]):
        path.write_bytes(other)
        with pytest.raises(
            UserError, match=r"is no Parquet file, or is damaged: .*: copy it again"
        ):
            opened(root)
    at = content.index(photo(0)[:40])
    path.write_bytes(content[: at - 60] + bytes(60) + content[at:])  # the head of a page
    source = opened(root)
    with pytest.raises(BadImage, match="row group 0: "):
        source.example(0)
    np.testing.assert_array_equal(source.example(7)[0], pixels(7))


def test_rows_without_bytes(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [None, {"bytes": None, "path": "a.png"}, {"bytes": b"", "path": None}]
    write(tmp_path / "train.parquet", {"image": pa.array(cells, kind)})
    source = opened(tmp_path)
    for i in range(3):
        with pytest.raises(BadImage):
            source.example(i)
    assert [source.name(i) for i in range(3)] == ["train[0]", "a.png", "train[2]"]


def test_a_bucket_holds_what_a_disk_holds(root, tmp_path):
    with bucket.at(tmp_path / "bucket"):
        for file in (root / "data").iterdir():
            (epath.Path("gs://fake/set") / file.name).write_bytes(file.read_bytes())
        source = opened("gs://fake/set")
        assert source.raw.fetch(np.arange(5, 9)) == [photo(i) for i in range(5, 9)]


@pytest.mark.parametrize("order", ["random", "stream"])
def test_batches_have_each_image_once_an_epoch_with_its_label(root, order):
    pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
    c = recipes.base()
    c.data = options(root, image_size=8, threads=2, order=order)
    c.data.update({"stream_block": 4, "stream_window": 8, "stream_lanes": 2})
    c.augment.placement, c.augment.canvas = "canvas", 16
    source, _ = sources.open_splits(c.data)
    assert (order == "random") == any("row group of up to 7" in note for note in source.notes)
    requests = (batches.request(step, 20, slice(None)) for step in range(4))
    seen = []
    for batch in Inputs(c, source, source).stream(requests):
        seen += batch["example"].tolist()
        np.testing.assert_array_equal(batch["label"], batch["example"] % len(NAMES))
        for i, canvas in zip(batch["example"], batch["canvas"], strict=True):
            np.testing.assert_array_equal(canvas[:8, :8], pixels(i))
    assert sorted(seen[:TRAIN]) == sorted(seen[TRAIN:]) == [*range(TRAIN)] != seen[:TRAIN]


def test_without_pyarrow_it_says_what_to_install(root, monkeypatch):
    parquet._parquet.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"data.source=parquet needs pyarrow: pip install "):
        opened(root)
    parquet._parquet.cache_clear()


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001-a09b74b3ef9c3b56", "test-00000-of-00001-7c1d4e0000000042"),
        ("train2017-00000", "test2017-00000"),
        ("train-512px-0", "test-512px-0"),
        ("birds_train", "birds_test"),
        ("0000", "test"),
    ],
)
def test_the_splits_that_names_tell(tmp_path, names):
    """Older files of the Hub end in a hash; images to be scored must not be trained on."""
    for name, rows in zip(names, (range(5), range(100, 103)), strict=True):
        write(tmp_path / f"{name}.parquet", of(rows), CLASSED)
    found = parquet.splits(options(tmp_path))
    assert {split: len(open_it()) for split, open_it in found.items()} == {"train": 5, "test": 3}


def test_one_set_in_two_places_is_refused(root):
    for path in (root / "data").glob("train-*"):
        (root / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="are files of one name: keep one of them"):
        opened(root)
