"""TFRecord files, here as TensorFlow writes them, on a disk and in a stand-in for a bucket."""

from __future__ import annotations

import gzip
import io
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import bucket
import numpy as np
import pytest
from etils import epath
from PIL import Image

from simclr_jax import files, recipes
from simclr_jax.data import batches, sources
from simclr_jax.data.decode import BadImage
from simclr_jax.data.placements import Request
from simclr_jax.data.sources import sharded, tfrecord, tfrecord_files
from simclr_jax.errors import Unreachable, UserError
from simclr_jax.stages.inputs import Inputs

tf = pytest.importorskip("tensorflow")

TRAIN, TEST, CLASSES = 50, 9, 5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def photo(i):
    """Return a PNG of 8x9 pixels that tells its number."""
    file = io.BytesIO()
    pixels = np.random.RandomState(i).randint(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def example(i, image="image/encoded", label="image/class/label", **more):
    features = {
        image: tf.train.Feature(bytes_list=tf.train.BytesList(value=[photo(i)])),
        label: tf.train.Feature(int64_list=tf.train.Int64List(value=[i % CLASSES])),
        "image/filename": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"%d.png" % i])),
        "image/object/bbox/xmin": tf.train.Feature(float_list=tf.train.FloatList(value=[0.5])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features | more)).SerializeToString()


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


@pytest.fixture
def root(tmp_path):
    """Return a directory of three training files, one of them empty, and one to validate on."""
    cuts = (0, 20, 20, TRAIN)
    for shard, (a, b) in enumerate(itertools.pairwise(cuts)):
        name = f"train-{shard:05}-of-00003"
        write(tmp_path / "images" / name, map(example, range(a, b)))
    write(tmp_path / "images/validation-00000-of-00001", map(example, range(100, 100 + TEST)))
    return tmp_path / "images"


def options(path, **fields):
    data = recipes.base().data
    data.source, data.path, data.eval_split = "tfrecord", str(path), "validation"
    data.update(fields)
    return data


def opened(path, split="train", **fields):
    return tfrecord.splits(options(path, **fields))[split]()


# What it reads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("split, offset, count", [("train", 0, TRAIN), ("validation", 100, TEST)])
def test_every_record_is_the_image_that_was_written(root, split, offset, count):
    source = opened(root, split)
    assert len(source) == count and source.classes == CLASSES
    np.testing.assert_array_equal(source.labels, (offset + np.arange(count)) % CLASSES)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.example, range(count)))
    for i, (pixels, label) in enumerate(found):
        expected = np.array(Image.open(io.BytesIO(photo(offset + i))))
        np.testing.assert_array_equal(pixels, expected)
        assert label == (offset + i) % CLASSES and source.name(i) == f"{offset + i}.png"


@pytest.mark.parametrize("heads", [tfrecord_files.HEADS, 1, 4])
def test_records_of_any_length_in_any_order(tmp_path, monkeypatch, heads):
    monkeypatch.setattr(tfrecord_files, "HEADS", heads)
    random = np.random.RandomState(0)
    records = [random.bytes(n) for n in (0, 1, 300_000, 7, 0, 65536, 12, 300_000, 5)]
    write(tmp_path / "a", records[:6])
    write(tmp_path / "b", records[6:])
    found = tfrecord_files.TFRecordFiles(
        [epath.Path(tmp_path / name) for name in "ab"], tmp_path / "kept"
    )
    assert [found[i] for i in range(9)] == records and found.counts.tolist() == [6, 3]
    for _ in range(20):
        rows = random.randint(0, 9, random.randint(1, 12))
        assert found.fetch(rows) == [records[row] for row in rows]
    part = found.take(np.array([8, 2, 2]))
    assert part.fetch(np.arange(3)) == [records[8], records[2], records[2]]


def test_the_splits_that_files_tell(tmp_path):
    names = {
        "train-00000-of-01024": "train",
        "imagenet2012-train.tfrecord-00001-of-01024": "train",
        "test.tfrecords": "test",
        "flowers_val_3.tfrecord": "val",
        "extra/0.tfrecord": "extra",
        "extra/part-00001-of-2": "extra",
    }
    for name in [*names, "dataset_info.json", "labels.txt", "README"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = sharded.find(options(tmp_path), tfrecord.KIND)
    assert {split: len(paths) for split, paths in found.items()} == {
        split: list(names.values()).count(split) for split in names.values()
    }


def test_sets_of_files_that_are_complete(tmp_path):
    for name in ("a-train.tfrecord-00000-of-00001", "b_train-0-of-2", "b_train-1-of-2"):
        write(tmp_path / name, [example(1)])
    for name in ("train.tfrecord", "train-7", "train/part-00000-of-00001"):
        write(tmp_path / name, [example(1)])
    for name in ("from_1_train-00001-of-00002", "from_1_train-00002-of-00002"):
        write(tmp_path / name, [example(1)])
    assert len(opened(tmp_path)) == 8


@pytest.mark.parametrize(
    "absent, more, said",
    [
        (["train-00001"], [], "images has 2 of 3 files such as train-00000-of-00003, not number 1"),
        (["train-00002", "train-00000"], [], r"has 1 of 3 .*, not number 0: copy all of them"),
        ([], ["train.tfrecord-00001-of-00002"], "two sets, such as .*-of-00003 and .*-of-00002: k"),
        ([], ["train-00003-of-00003"], "has train-00003-of-00003 besides 3 such files: remove it"),
        ([], ["train-2-of-3"], "has train-2-of-3 besides 3 such files: remove it"),
        (["train-00002"], ["train-2-of-00004"], "two sets"),
    ],
)
def test_sets_of_files_that_are_not(root, absent, more, said):
    for name in absent:
        (root / f"{name}-of-00003").unlink()
    for name in more:
        write(root / name, [example(1)])
    with pytest.raises(UserError, match=said) as error:
        opened(root)
    assert "\n" not in str(error.value)
    assert len(opened(root, "validation", labels=False)) == TEST


@pytest.mark.parametrize("label", [-(2**40), -2])
def test_labels_that_are_no_classes(tmp_path, label, capsys):
    feature = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    records = [example(0), example(1, **{"image/class/label": feature})]
    write(tmp_path / "one/train.tfrecord", records)
    for _ in range(2):  # read, and kept
        with pytest.raises(UserError, match=f"train of .* has the label {label}.*number from 0"):
            opened(tmp_path / "one")
    assert capsys.readouterr().err.count("the labels of 2 records, once") == 1
    assert opened(tmp_path / "one", labels=False).labels is None


def labelled(*labels):
    features = [tf.train.Feature(int64_list=tf.train.Int64List(value=[one])) for one in labels]
    return [example(i, **{"image/class/label": one}) for i, one in enumerate(features)]


@pytest.mark.parametrize("first", [900_000, 2**31, 2**62])
def test_identifiers_are_numbered_anew(tmp_path, first):
    """By those of the training split, for all splits; each class is called by its own number."""
    write(tmp_path / "train.tfrecord", labelled(first + 3, -1, first, first + 7))
    write(tmp_path / "validation.tfrecord", labelled(first, first + 7, -1))
    write(tmp_path / "test.tfrecord", labelled(first + 1))
    train, validation = opened(tmp_path), opened(tmp_path, "validation")
    assert train.labels.tolist() == [1, -1, 0, 2] and validation.labels.tolist() == [0, 2, -1]
    for source in (train, validation):
        assert source.classes == 3 and source.labels.dtype == np.int32
        assert source.class_names == (str(first), str(first + 3), str(first + 7))
    assert [source.example(0)[1] for source in (train, validation)] == [1, 0]
    assert f"numbers up to {first + 7}, of which 3 occur" in sources.notes(train)[0]
    with pytest.raises(UserError, match=f"has the label {first + 1}, which is none of the 3 class"):
        opened(tmp_path, "test")


def test_of_several_labels_the_first_is_taken_and_it_is_said(tmp_path):
    two, one = (
        tf.train.Feature(int64_list=tf.train.Int64List(value=labels)) for labels in ([1, 0], [0, 0])
    )
    records = [
        example(0),
        *(example(i, **{"image/class/label": f}) for i, f in ((1, two), (2, one))),
    ]
    write(tmp_path / "train.tfrecord", records)
    write(tmp_path / "validation.tfrecord", records[:1])
    for _ in range(2):  # read, and kept
        source = opened(tmp_path)
        assert source.labels.tolist() == [0, 1, 0]
        said = "1 of 3 records of train have several labels: the first of each is taken"
        assert sources.notes(source) == (said,)
    assert sources.notes(opened(tmp_path, "validation")) == ()


def test_no_flipped_bit_of_the_kept_labels_is_another_class(root, capsys):
    want = opened(root).labels.tolist()
    (place,) = Path(files.cache_directory()).rglob("*.labels*")
    kept = place.read_bytes()
    for at in range(0, len(kept), 23):
        place.write_bytes(kept[:at] + bytes([kept[at] ^ 2]) + kept[at + 1 :])
        assert opened(root).labels.tolist() == want
    place.write_bytes(kept[:-100])
    capsys.readouterr()
    assert opened(root).labels.tolist() == want and "labels of 50" in capsys.readouterr().err


def test_a_name_is_one_that_can_be_printed(tmp_path):
    name = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"caf\xe9\x1b[2J\n.png"]))
    write(tmp_path / "train.tfrecord", [example(0, **{"image/filename": name})])
    assert opened(tmp_path).name(0) == r"caf\xe9\x1b[2J\n.png"


def test_labels_are_optional_and_their_numbers_are_kept(root, tmp_path):
    source = opened(root, labels=False)
    assert source.labels is None and source.classes == 0 and source.example(3)[1] == -1
    write(tmp_path / "one/train.tfrecord", [example(i, "image", "label") for i in (1, 3)])
    from_one = opened(tmp_path / "one")
    assert from_one.classes == 4 and from_one.labels.tolist() == [1, 3]
    assert sources.notes(from_one) == ("train has no image of 2 class(es), such as [0]",)
    assert from_one.class_names == ("0", "1", "2", "3")
    write(tmp_path / "one/validation.tfrecord", [example(4, "image", "label")])
    said = r"validation of .* has the label 4, which is none of the 4 classes of train"
    with pytest.raises(UserError, match=said):
        opened(tmp_path / "one", "validation")


def test_the_index_is_made_once_and_again_for_other_files(root, capsys):
    first = opened(root)
    assert capsys.readouterr().err.count("indexing") == 2  # the records, the labels
    second = opened(root)
    assert not capsys.readouterr().err
    assert first.fingerprint() == second.fingerprint()
    first.raw._raw.place.write_bytes(b"damaged")
    assert len(opened(root)) == TRAIN
    before = sources.stamp(first)
    write(root / "train-00001-of-00003", [example(7)])
    third = opened(root)
    assert len(third) == TRAIN + 1 and third.labels[20] == 7 % CLASSES
    assert third.fingerprint() != first.fingerprint() and sources.stamp(third) != before


def test_files_replaced_since_a_run_began_are_said_or_refused(root, tmp_path):
    """By sizes and times: neither fingerprints nor the index know an image from another."""
    data, kept = options(root), epath.Path(tmp_path / "run" / "index")
    first = sources.open_splits(data)
    sources.remember(kept, *first)
    again = sources.open_splits(data, kept)
    assert [a.notes for a in again] == [a.notes for a in first] == [(), ()]
    write(root / "validation-00000-of-00001", [example(100 + TEST - i) for i in range(TEST)])
    data.labels = False
    train, held_out = sources.open_splits(data, kept)
    (line,) = held_out.notes
    assert train.notes == () and "1 of 1 record files are not those that the run began" in line
    assert "such as validation-00000-of-00001: where their content differs, losses" in line
    data.if_changed = "refuse"
    with pytest.raises(UserError, match=r"validation-00000-of-00001: bring back .*=say"):
        sources.open_splits(data, kept)


def test_files_that_are_gone_may_come_back(root, tmp_path):
    source = opened(root)
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(Unreachable, match="continues from the last save"):
        source.example(0)


def test_the_index_may_be_in_the_home_directory(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    opened(root, index="~/index")
    assert [path.suffix for path in (tmp_path / "home/index").iterdir()] == [".npz"] * 2
    monkeypatch.chdir(tmp_path)
    opened(root)  # in the cache
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "home", "images"]


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux tells what was read")
def test_an_index_of_files_on_a_disk_reads_their_heads_alone(tmp_path):
    def read():
        return int(Path("/proc/self/io").read_text().split()[1])

    count, size = 200, 10_000
    write(tmp_path / "train.tfrecord", [bytes(size)] * count)
    start = read()
    lengths = tfrecord_files._lengths(epath.Path(tmp_path / "train.tfrecord"))
    assert lengths.tolist() == [size] * count
    assert read() - start < 2 * count * tfrecord_files.HEAD


def test_tensorflow_is_not_loaded(root):
    program = (
        "import sys; from simclr_jax.data.sources import tfrecord\n"
        "from simclr_jax import recipes\n"
        f"data = recipes.base().data; data.path = {str(root)!r}\n"
        "tfrecord.splits(data)['train']().example(1)\n"
        "print('tensorflow' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout.split() == ["False"], ended.stderr


# What is wrong with files -------------------------------------------------------------------------


def test_a_damaged_record_is_a_bad_image(root, monkeypatch):
    """Python's own table stands in for the package that computes checksums."""
    path = root / "train-00000-of-00003"
    stored = path.read_bytes()
    at = stored.index(photo(3)[-30:])
    path.write_bytes(stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :])

    def crc32c(record):
        return int(tfrecord_files._crc32c(np.frombuffer(record, np.uint8)[None])[0])

    assert crc32c(b"123456789") == 0xE3069283
    monkeypatch.setitem(sys.modules, "google_crc32c", SimpleNamespace(value=crc32c))
    tfrecord_files._fast_crc32c.cache_clear()
    source = opened(root)
    monkeypatch.delitem(sys.modules, "google_crc32c")
    try:
        for announced in (False, True):
            with pytest.raises(BadImage, match="checksum"):
                source.example(3)
            assert source.name(3) == "train[3]" and source.labels[3] == -1
            assert [source.example(i)[1] for i in (2, 4, 21)] == [2, 4, 1]
            if not announced:
                source.raw.announce([np.arange(2, 6), np.arange(6, 30)])
    finally:
        tfrecord_files._fast_crc32c.cache_clear()


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda stored: stored[:-3], "breaks off at byte"),
        (lambda stored: stored[:300] + b"\0" * 12 + stored[312:], None),
        (lambda stored: b"\x01" + stored[1:], "damaged, at byte 0: copy"),
        (gzip.compress, "damaged, at byte 0: it is compressed: unpack it"),
        (lambda stored: b"short", "breaks off at byte 5"),
    ],
)
def test_files_that_cannot_be_indexed(root, change, said):
    path = root / "train-00000-of-00003"
    path.write_bytes(change(path.read_bytes()))
    if said is None:  # within a record, which only its checksum can tell
        assert len(opened(root)) == TRAIN
        return
    with pytest.raises(UserError, match=said):
        opened(root)


@pytest.mark.parametrize("whole", [0, 5])
def test_few_of_many_zeros_are_read(tmp_path, monkeypatch, whole):
    """As a copy that broke off leaves them."""
    read, heads = tfrecord_files._heads, []
    write(tmp_path / "train.tfrecord", map(example, range(whole)))
    end = (tmp_path / "train.tfrecord").stat().st_size
    with (tmp_path / "train.tfrecord").open("ab") as file:
        file.write(bytes(1_000_000))

    def counted(*of):
        for head in read(*of):
            heads.append(head)
            yield head

    monkeypatch.setattr(tfrecord_files, "_heads", counted)
    with pytest.raises(UserError, match=f"is damaged, at byte {end}: copy"):
        opened(tmp_path)
    assert len(heads) <= tfrecord_files.HEADS


def test_directories_without_records(tmp_path):
    for path, said in (
        ("", "data.path is empty"),
        (tmp_path / "none", "is no directory that exists"),
        (tmp_path, r"no file such as train-00000-of-01024 .* \(it has a.txt\)"),
    ):
        (tmp_path / "a.txt").touch()
        with pytest.raises(UserError, match=said):
            tfrecord.splits(options(path))
    write(tmp_path / "train.tfrecord", [])
    with pytest.raises(UserError, match="has no records"):
        opened(tmp_path)


# In a bucket, by the order `stream` ---------------------------------------------------------------


@pytest.fixture
def in_bucket(root, tmp_path):
    """Put the same files where `gs://fake/images` leads, and return the bucket."""
    with bucket.at(tmp_path / "bucket") as stand_in:
        for file in root.iterdir():
            (epath.Path("gs://fake/images") / file.name).write_bytes(file.read_bytes())
        yield stand_in


def inputs(source, **fields):
    recipe = recipes.base()
    recipe.data = options("", **fields)
    recipe.data.image_size, recipe.train.batch_size, recipe.data.threads = 8, 20, 2
    recipe.data.stream_block, recipe.data.stream_window, recipe.data.stream_lanes = 4, 8, 2
    recipe.augment.placement, recipe.augment.grid = "split", "opencv"
    recipe.data.max_bad_fraction = 0.1
    return Inputs(recipe, source, source)


def read_batches(source, steps, rows=slice(None), **fields):
    requests = (batches.request(step, 20, rows) for step in steps)
    return list(inputs(source, order="stream", **fields).stream(requests))


def test_a_bucket_holds_what_a_disk_holds(root, in_bucket):
    there, here = opened("gs://fake/images"), opened(root)
    assert there.fingerprint() == here.fingerprint()
    in_bucket.reads.clear()
    np.testing.assert_array_equal(there.example(30)[0], here.example(30)[0])
    ((name, start, end),) = in_bucket.reads
    assert name == "fake/images/train-00002-of-00003" and end - start < 2 * len(photo(30))
    shared = options("gs://fake/images", index="gs://fake/index")
    assert len(tfrecord.splits(shared)["train"]()) == TRAIN
    assert [path.suffix for path in epath.Path("gs://fake/index").iterdir()] == [".npz"] * 2
    assert sources.stamp(there) != ""


@pytest.mark.parametrize(
    "name, first, second",
    [
        ("ETag", '"a"', '"b"'),  # s3://
        ("etag", "0x1", "0x2"),  # az://
        ("generation", "1", "2"),
        *[
            (name, datetime.fromtimestamp(9, UTC), datetime.fromtimestamp(10, UTC))
            for name in ("mtime", "LastModified", "last_modified")
        ],
    ],
)
def test_objects_that_are_replaced_are_told_apart(in_bucket, monkeypatch, name, first, second):
    path, info = epath.Path("gs://fake/images/train-00000-of-00003"), {"size": 9, "type": "file"}
    assert files.size_and_time(path) == f"{path.stat().length} {path.stat().mtime}"
    with monkeypatch.context() as changed:
        changed.setattr(in_bucket, "info", lambda *_, **__: info)
        found = [files.size_and_time(path) for info[name] in (first, second)]
    assert len({*found}) == 2 and all(one.startswith("9 ") for one in found)
    assert files.size_and_time("gs://fake/none") == "no file"


def test_streams_are_read_by_blocks_and_give_the_images_of_their_examples(in_bucket):
    source = opened("gs://fake/images")
    in_bucket.reads.clear()
    found = read_batches(source, range(5))
    examples = np.concatenate([batch["example"] for batch in found])
    assert (np.bincount(examples) == 2).all()  # two epochs of 50 in five batches of 20
    labels = np.concatenate([batch["label"] for batch in found])
    np.testing.assert_array_equal(labels, examples % CLASSES)
    blocks = 13  # the file's cut falls between two
    assert blocks <= len(in_bucket.reads) <= 2 * (blocks + 4)  # and the seams of lanes and windows


def test_hosts_and_resumed_runs_see_the_same_stream(in_bucket):
    whole = read_batches(opened("gs://fake/images"), range(6))
    half = read_batches(opened("gs://fake/images"), range(4, 6), slice(10, 20))
    for batch, part in zip(whole[4:], half, strict=True):
        for name in ("crops/views", "label", "position", "example"):
            np.testing.assert_array_equal(batch[name][10:], part[name])


def test_an_unreadable_image_of_a_stream_is_replaced(root, tmp_path):
    stored = (root / "train-00000-of-00003").read_bytes()
    (root / "train-00000-of-00003").write_bytes(stored.replace(photo(3), bytes(len(photo(3)))))
    source = opened(root)
    made = inputs(source, order="stream")
    positions = np.arange(TRAIN)
    batch = next(made.stream(iter([Request(positions, 0)])))
    ordered = made._loading("train").reader.order(np.arange(TRAIN + 1))
    at = int(np.flatnonzero(ordered == 3)[0])
    taken = np.where(positions == at, ordered[at + 1], ordered[positions])
    np.testing.assert_array_equal(batch["example"], taken)
    np.testing.assert_array_equal(batch["label"], taken % CLASSES)


def test_a_bucket_that_cannot_be_reached_is_one_line(in_bucket, monkeypatch):
    def refuse(*_, **__):
        raise OSError("Anonymous caller\ndoes not have storage.objects.get access")

    source = opened("gs://fake/images")
    monkeypatch.setattr(in_bucket, "cat_file", refuse)
    with pytest.raises(UserError, match=r"gs://.* cannot be reached \(Anonymous .*credentials"):
        source.example(0)
    monkeypatch.setattr(in_bucket, "info", refuse)
    monkeypatch.setattr(in_bucket, "ls", refuse)
    with pytest.raises(UserError, match=r"gs://.* cannot be reached"):
        opened("gs://fake/images")
