"""Tar files in WebDataset's format, as Python's tarfile writes them and by their bytes."""

from __future__ import annotations

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor

import bucket
import numpy as np
import pytest
from etils import epath
from PIL import Image

from simclr_jax import recipes
from simclr_jax.data import batches, sources
from simclr_jax.data.decode import BadImage
from simclr_jax.data.sources import tar_files, webdataset
from simclr_jax.errors import UserError
from simclr_jax.stages.inputs import Inputs

TRAIN, TEST, CLASSES = 40, 9, 5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pixels(i):
    return np.random.RandomState(i).randint(0, 256, (8, 8, 3), dtype=np.uint8)


def photo(i):
    file = io.BytesIO()
    Image.fromarray(pixels(i)).save(file, "PNG")
    return file.getvalue()


def example(i, **more):
    """Return the files of an example by their names."""
    return {f"{i:06}.png": photo(i), f"{i:06}.cls": b"%d" % (i % CLASSES), **more}


def write(path, entries, form=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in entries.items():
            head = tarfile.TarInfo(name)
            head.size = len(content)
            tar.addfile(head, io.BytesIO(content))
    return path


def together(examples):
    return {name: content for one in examples for name, content in one.items()}


@pytest.fixture
def root(tmp_path):
    """Return a directory of three training files, one without an example, and one to score."""
    for shard, rows in enumerate((range(15), [], range(15, TRAIN))):
        write(tmp_path / "images" / f"train-{shard:06}.tar", together(map(example, rows)))
    write(tmp_path / "images" / "test-000000.tar", together(map(example, range(100, 100 + TEST))))
    return tmp_path / "images"


def options(path, **fields):
    data = recipes.base().data
    data.source, data.path = "webdataset", str(path)
    data.update(fields)
    return data


def opened(path, split="train", **fields):
    return webdataset.splits(options(path, **fields))[split]()


@pytest.mark.parametrize("split, offset, count", [("train", 0, TRAIN), ("test", 100, TEST)])
def test_every_example_is_the_image_that_was_written(root, split, offset, count, capsys):
    for _ in range(2):  # indexed, and by the index that was kept
        source = opened(root, split)
        assert len(source) == count and source.classes == CLASSES
        np.testing.assert_array_equal(source.labels, (offset + np.arange(count)) % CLASSES)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(source.example, range(count)))
        for i, (image, label) in enumerate(found):
            np.testing.assert_array_equal(image, pixels(offset + i))
            assert label == (offset + i) % CLASSES and source.name(i) == f"{offset + i:06}"
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[:4] for line in said].count(
        ["indexing", str(3 - 2 * (count == TEST)), "tar", "file(s)"]
    ) == 1


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_an_example_is(tmp_path, form):
    """By WebDataset's law: files in a row whose names are the same up to the first dot."""
    long = "d/" * 40 + "x" * 60 if form != tarfile.USTAR_FORMAT else "d/x"
    entries = {
        "./a.json": json.dumps({"label": 3, "caption": "a.b"}).encode(),
        "./a.PNG": photo(0),
        f"{long}.txt": b"words",
        f"{long}.left.png": photo(1),
        f"{long}.right.png": photo(2),
        "v1.0/b.png": photo(3),  # a dot in the directory
        "v1.0/b.cls": b" 4\n",
        "c.txt": b"no image",
        "._a.png": b"what macOS adds",
        "README": b"no suffix",
        "e.json": b"[1]",
        "e.png": photo(4),
    }
    write(tmp_path / "0.tar", entries, form)
    source = opened(tmp_path)
    assert [source.name(i) for i in range(len(source))] == ["./a", long, "v1.0/b", "e"]
    assert source.labels.tolist() == [3, -1, 4, -1] and source.classes == 5
    for i, number in enumerate((0, 1, 3, 4)):
        np.testing.assert_array_equal(source.example(i)[0], pixels(number))
    assert "1 example(s) of train have no image that can be read here, and are left out" in (
        source.notes
    )


def test_a_file_that_is_replaced_is_indexed_again(root):
    opened(root)
    write(root / "train-000001.tar", together(map(example, range(200, 230))))
    source = opened(root)
    assert len(source) == TRAIN + 30
    np.testing.assert_array_equal(source.example(15)[0], pixels(200))


def test_an_index_that_is_damaged_is_made_anew(root, tmp_path, capsys):
    opened(root)
    (index,) = (tmp_path / "cache" / "simclr_jax" / "tar").iterdir()
    content = index.read_bytes()
    for damaged in (content[:-40], b"", content.replace(b"\x05", b"\x06")):
        index.write_bytes(damaged)
        assert len(opened(root)) == TRAIN
    assert capsys.readouterr().err.count("indexing") == 4


def test_labels_that_are_no_numbers(tmp_path):
    for name, content in {"cls": b"cat", "json": b'{"label": "cat"}', "other.json": b""}.items():
        write(tmp_path / name / "train.tar", example(0) | {"1.png": photo(1), f"1.{name}": content})
    for name in ("cls", "json"):
        with pytest.raises(UserError, match=r"says of 1 the class 'cat': write the number of the"):
            opened(tmp_path / name)
        assert opened(tmp_path / name, labels=False).labels is None
    assert opened(tmp_path / "other.json").labels.tolist() == [0, -1]


def test_classes_are_those_of_the_training_split(root):
    write(root / "val.tar", {"0.png": photo(0), "0.cls": b"17"})
    with pytest.raises(
        UserError, match="has the label 17, which is none of the 5 classes of train"
    ):
        opened(root, "val")


def damaged(content):
    """Yield what a copy may have become, and what is said of it."""
    second = content.index(b"000001.png")
    yield content[: second + 700], "is damaged, at byte .*: it breaks off"
    yield content[: second + 100], "is damaged, at byte .*: what follows is no head"
    yield content[:second] + b"?" + content[second + 1 :], "is damaged, at byte .*: what follows is"
    yield content[:300], "is no tar file, or is damaged, "
    yield b"", "is no tar file, or is damaged, empty file"
    yield b"\xff\xd8" * 600, "is no tar file, or is damaged, "
    yield b"\x1f\x8b" + content, "is compressed, and would have to be read from its start: unpack"


def test_damage_is_one_line_that_names_the_file(tmp_path):
    path = write(tmp_path / "train.tar", together(map(example, range(3))))
    content = path.read_bytes()
    for other, words in damaged(content):
        path.write_bytes(other)
        with pytest.raises(UserError, match=words) as error:
            opened(tmp_path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    path.write_bytes(content[:-1024])  # some writers leave out the blocks of zeros at the end
    assert len(opened(tmp_path)) == 3


def test_no_image_and_no_file(tmp_path):
    write(tmp_path / "train.tar", {"a.txt": b""})
    with pytest.raises(UserError, match=r"train.tar has no image that can be read here"):
        opened(tmp_path)
    (tmp_path / "train.tar").unlink()
    (tmp_path / "train.tgz").touch()
    with pytest.raises(
        UserError, match=r"no file such as train-000000.tar .*\(it has .*train.tgz\)"
    ):
        opened(tmp_path)


def test_an_image_that_cannot_be_read(tmp_path):
    path = write(tmp_path / "train.tar", {"0.png": photo(0)[:60], "1.png": b"", "2.png": photo(2)})
    source = opened(tmp_path)
    for i in range(2):
        with pytest.raises(BadImage):
            source.example(i)
    path.write_bytes(path.read_bytes()[:2100])
    with pytest.raises(BadImage, match=r"train.tar ends at byte 2100"):
        source.example(2)


def test_a_bucket_holds_what_a_disk_holds(root, tmp_path):
    with bucket.at(tmp_path / "bucket") as stand_in:
        for file in root.iterdir():
            (epath.Path("gs://fake/images") / file.name).write_bytes(file.read_bytes())
        source = opened("gs://fake/images", index="gs://fake/index")
        stand_in.reads.clear()
        records = source.raw.fetch(np.arange(15))
        assert records == [photo(i) for i in range(15)] and len(stand_in.reads) == 1


@pytest.mark.parametrize("order", ["random", "stream"])
def test_batches_have_each_image_once_an_epoch_with_its_label(root, order):
    pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
    source, c = opened(root), recipes.base()
    c.data.update({"image_size": 8, "threads": 2, "order": order})
    c.data.update({"stream_block": 4, "stream_window": 8, "stream_lanes": 2})
    c.augment.placement, c.augment.canvas = "canvas", 16
    requests = (batches.request(step, 20, slice(None)) for step in range(4))
    seen = []
    for batch in Inputs(c, source, source).stream(requests):
        seen += batch["example"].tolist()
        np.testing.assert_array_equal(batch["label"], batch["example"] % CLASSES)
        for i, canvas in zip(batch["example"], batch["canvas"], strict=True):
            np.testing.assert_array_equal(canvas[:8, :8], pixels(i))
    assert sorted(seen[:TRAIN]) == sorted(seen[TRAIN:]) == [*range(TRAIN)] != seen[:TRAIN]


def test_a_directory_of_tars_stands_for_itself(root, tmp_path):
    """As an archive beside the images that were unpacked from it does not."""
    data = options(root, source="folder")
    train, test = sources.open_splits(data)
    assert len(train) == TRAIN and len(test) == TEST and train.classes == CLASSES
    for name in ("a", "b"):
        (tmp_path / "unpacked" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "unpacked" / name / f"{i}.png").write_bytes(photo(i))
    write(tmp_path / "unpacked" / "train.tar", example(0))
    found = sources.find(options(tmp_path / "unpacked", source="folder"))
    assert len(found["train"]()) == 6
    write(tmp_path / "flat" / "train.tar", example(0))
    (tmp_path / "flat" / "0.png").write_bytes(photo(0))
    assert len(sources.find(options(tmp_path / "flat", source="folder"))["train"]()) == 1


def test_a_run_that_goes_on_knows_its_files(root, tmp_path):
    kept = epath.Path(tmp_path / "run" / "index")
    data = options(root)
    sources.remember(kept, *sources.open_splits(data))
    assert sources.open_splits(data, kept)[0].notes == ()
    write(root / "train-000002.tar", together(map(example, range(15, 15 + TRAIN))))
    assert "train-000002.tar" in sources.open_splits(data, kept)[0].notes[-1]


def test_takes_by_number(root):
    paths = sorted(epath.Path(root).glob("train-*.tar"))
    records = tar_files.TarFiles(paths, epath.Path(root.parent / "kept"))
    assert records.take(np.array([20, 3])).fetch(np.arange(2)) == [photo(20), photo(3)]


def test_an_index_with_labels_serves_who_wants_none(root, capsys):
    """As the processes that pack, each of which would read all heads again."""
    opened(root)
    source = opened(root, labels=False)
    assert source.labels is None and capsys.readouterr().err.count("indexing") == 1
    np.testing.assert_array_equal(source.example(20)[0], pixels(20))
