"""How a data set prepared by TFDS is found, and what is said of one that cannot be read."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from data.tfds_sets import (
    NAMES,
    TEST,
    TRAIN,
    builder_class,
    opened,
    options,
    photo,
    photos,
    pixels,
    prepare,
)

from simclr_jax.data.decode import BadImage
from simclr_jax.data.read_ahead import ReadAhead
from simclr_jax.data.sources import tfds
from simclr_jax.errors import UserError

library = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "name, path",
    [
        ("photos", ""),
        ("photos:1.2.0", ""),
        ("photos:1.*.*", ""),
        ("", "photos/1.2.0"),
        ("many/two", ""),
        ("", "many/two/1.2.0"),
    ],
)
def test_by_name_version_configuration_or_directory(tfds_root, name, path):
    source = opened(tfds_root / path, name)
    np.testing.assert_array_equal(source.example(0)[0], pixels(photo(0)))


def test_tensorflow_is_not_loaded(tfds_root):
    program = (
        "import sys; from ml_collections import ConfigDict\n"
        "from simclr_jax.data.sources import tfds\n"
        "print('tensorflow_datasets' in sys.modules)\n"
        f"data = ConfigDict({options('photos', tfds_root).to_dict()})\n"
        "source = tfds.splits(data)['train'](); source.example(1), source.labels, source.name(1)\n"
        "print('tensorflow' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout.split() == ["False", "False"], ended.stderr


@pytest.mark.parametrize(
    "name, path, said",
    [
        ("", "", "data.name is empty"),
        ("", "none", "it has no dataset_info.json"),
        ("photos", "photos/1.2.0", "is itself a prepared data set: leave data.name=photos empty"),
        ("cifar1O", "", 'did you mean "cifar10"'),
        ("a b:c", "", "write NAME, NAME/CONFIG or NAME:VERSION"),
        ("imagenet2012", "", "not prepared in .*: docs/imagenet.md"),
        ("imagenet2012_subset/1pct", "", "not prepared in .*: docs/imagenet.md"),
        ("imagenet2012_subset/1percent", "", 'did you mean "10?pct"'),
        ("photos:7.0.0", "", "TFDS has no data set of this name, nor is one in"),
        ("words", "", r"no image.*features: text"),
    ],
)
def test_a_data_set_that_cannot_be_opened(tfds_root, name, path, said):
    with pytest.raises(UserError, match=said) as error:
        tfds.splits(options(name, tfds_root / path if path or name else ""))
    # Doors that evaluate have no flags such as --config.data.name.
    assert "\n" not in str(error.value) and "--config" not in str(error.value)


def test_tfrecord_is_read_as_array_record_is(tfds_root, tmp_path):
    new = opened(tfds_root)
    image = library.features.Image()
    kinds = {"image": image, "label": library.features.ClassLabel(names=NAMES)}
    kinds["file_name"] = library.features.Text()
    splits = {"train": photos(TRAIN), "test": photos(TEST, 48)}
    prepare(tmp_path, "photos", kinds, splits, file_format="tfrecord", shards=3)
    old = opened(tmp_path)
    assert (len(old), old.classes, old.class_names) == (TRAIN, 3, tuple(NAMES))
    assert old.fingerprint() == new.fingerprint() and all("tfrecord" in f.name for f in old.files)
    np.testing.assert_array_equal(old.labels, new.labels)
    for source in (old, new):
        source.raw.announce([np.arange(10, 20)])
        assert all(coming.exception() is None for coming, _ in source.raw._where.values())
    for i in (0, 15, 16, 17, 33, 47):
        np.testing.assert_array_equal(old.example(i)[0], new.example(i)[0])
    # Labels of neighbours are read together, by themselves if one of them is damaged.
    fetched = old.raw.fetch
    for damaged in (None, 40):
        asked = []

        def fetch(rows, damaged=damaged, asked=asked):
            asked.append(len(rows))
            if damaged in rows:
                raise BadImage("damaged record")
            return fetched(rows)

        raw = ReadAhead(old.raw._raw, fetch)
        again = dataclasses.replace(old, raw=raw, rows=np.tile(np.arange(TRAIN), 4))
        np.testing.assert_array_equal(again.labels, np.tile(new.labels, 4))
        assert asked == [32] * 6
    assert old.take(np.arange(0)).labels.shape == (0,)
    # A slice starts and ends within files.
    part, like = (opened(where, split="train[10:40]") for where in (tmp_path, tfds_root))
    assert [part.name(i) for i in range(30)] == [like.name(i) for i in range(30)]
    assert part.fingerprint() == like.fingerprint()
    file = sorted(tmp_path.rglob("photos-train*"))[1]
    file.write_bytes(file.read_bytes() * 2)
    with pytest.raises(UserError, match=r"has 32 records, but photos/1\.2\.0 was prepared with 16"):
        opened(tmp_path)


def test_a_format_that_is_not_read(tfds_root, tmp_path):
    shutil.copytree(tfds_root / "old", tmp_path / "old")
    description = tmp_path / "old/1.2.0/dataset_info.json"
    content = json.loads(description.read_text()) | {"fileFormat": "riegeli"}
    description.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"as riegeli, .*convert_format --dataset_version_dir=.*old"
    ):
        tfds.splits(options("old", tmp_path))


def test_one_that_was_converted_is_read_as_array_record(tfds_root, tmp_path):
    shutil.copytree(tfds_root / "old", tmp_path / "old")
    description = tmp_path / "old/1.2.0/dataset_info.json"
    content = json.loads(description.read_text()) | {"alternativeFileFormats": ["array_record"]}
    description.write_text(json.dumps(content))
    for file in (tfds_root / "plain/1.2.0").glob("*array_record*"):  # the same records
        shutil.copy(file, description.with_name(file.name.replace("plain", "old")))
    source = opened(tmp_path, "old", split="train[1:]")
    np.testing.assert_array_equal(source.example(0)[0], pixels(photo(1)))
    assert source.files and all("array_record" in path.name for path in source.files)


def test_the_command_for_a_known_data_set_prepares_it(tmp_path):
    image = {"image": library.features.Image()}
    builder_class("known_pictures", image, {"train": [{"image": photo(1)}]}, register=True)
    data = options("known_pictures", tmp_path / "a 'dir'")
    with pytest.raises(UserError, match="not prepared") as error:
        tfds.splits(data)
    python, flag, code = shlex.split(str(error.value).partition("dir': ")[2])
    assert (python, flag) == ("python", "-c")
    exec(code)
    np.testing.assert_array_equal(tfds.splits(data)["train"]().example(0)[0], pixels(photo(1)))


def test_without_tensorflow_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install .*'tensorflow-datasets[<>]"):
        tfds.splits(options("photos"))


@pytest.mark.e2e
def test_the_imagenet_recipe_without_the_data_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    command = [sys.executable, "-m", "simclr_jax.main", "--config=configs/imagenet.py"]
    ended = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"], capture_output=True, text=True
    )
    assert ended.returncode == 1
    said = ended.stderr.strip().splitlines()
    assert said == ["error: data.name=imagenet2012 is not prepared: docs/imagenet.md says how to"]
