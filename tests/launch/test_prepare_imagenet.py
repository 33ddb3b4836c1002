"""The script turns archives like ImageNet's into what `data.source=tfds` reads."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from simclr_jax.data.sources import tfds

pytestmark = pytest.mark.slow

pytest.importorskip("tensorflow_datasets")

SCRIPT = Path(__file__).parents[2] / "launch" / "prepare_imagenet"
SYNSETS = {"n01440764": 0, "n01443537": 1, "n01484850": 2}  # tench, goldfish, great white shark
PER_CLASS = 4
VALIDATION = [65, 970, 230, 809, 516]  # the published labels of the first images


def jpeg(i):
    random = np.random.RandomState(i)
    height, width = random.randint(20, 50, 2)
    file = io.BytesIO()
    pixels = random.randint(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def archive(contents):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def sealed_path(directory):
    """Return a PATH with what the script calls and no gcloud, which may be on the real one."""
    directory.mkdir(exist_ok=True)
    for tool in ("bash", "mkdir", "sed", "wc"):
        (directory / tool).symlink_to(shutil.which(tool))
    return str(directory)


def run(*arguments, **environment):
    return subprocess.run(
        [SCRIPT, *arguments],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def tars(tmp_path):
    """Return a directory with small archives of the same layout, and what they hold."""
    train = {
        name: {f"{name}_{i}.JPEG": jpeg(100 * label + i) for i in range(PER_CLASS)}
        for name, label in SYNSETS.items()
    }
    validation = {
        f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(1000 + i) for i in range(1, len(VALIDATION) + 1)
    }
    root = tmp_path / "the tars"
    root.mkdir()
    outer = {f"{name}.tar": archive(images) for name, images in train.items()}
    (root / "ILSVRC2012_img_train.tar").write_bytes(archive(outer))
    (root / "ILSVRC2012_img_val.tar").write_bytes(archive(validation))
    everything = {name: image for images in train.values() for name, image in images.items()}
    return root, everything | validation


@pytest.mark.e2e
def test_archives_become_a_data_set_and_a_copy_in_a_bucket(tars, tmp_path):
    root, images = tars
    data = tmp_path / "data dir"
    path = sealed_path(tmp_path / "bin")
    executable(tmp_path / "bin/gcloud", f'#!/bin/sh\necho "$@" >> "{tmp_path}/said"\n')
    ended = run(root, data, "gs://bucket/", PATH=path)
    assert ended.returncode == 0, ended.stderr
    assert "train: 12 images (ImageNet has 1281167)" in ended.stderr
    assert "warning: ILSVRC2012_img_val.tar has" in ended.stderr

    prepared = f"{data}/imagenet2012/5.1.0 gs://bucket/imagenet2012/5.1.0"
    assert (tmp_path / "said").read_text() == f"storage rsync --recursive {prepared}\n"
    said, command = ended.stdout.splitlines()
    assert said == "Prepared in gs://bucket/imagenet2012/5.1.0. Train with:"
    assert shlex.split(command)[2:] == [
        "simclr_jax.main",
        "--config=configs/imagenet.py",
        "--config.data.path=gs://bucket",
    ]

    options = {"name": "imagenet2012", "path": str(data), "labels": True, "index": ""}
    splits = tfds.splits(ConfigDict(options | {"split": "train", "eval_split": "validation"}))
    found = {}
    for split in ("train", "validation"):
        source = splits[split]()
        assert source.classes == 1000
        for i in range(len(source)):
            pixels, label = source.example(i)
            found[source.name(i)] = label
            expected = Image.open(io.BytesIO(images[source.name(i)])).convert("RGB")
            np.testing.assert_array_equal(pixels, np.array(expected))
    labels = [found[f"ILSVRC2012_val_{i:08d}.JPEG"] for i in range(1, len(VALIDATION) + 1)]
    assert labels == VALIDATION
    assert {name: found[f"{name}_2.JPEG"] for name in SYNSETS} == SYNSETS
    assert len(found) == len(images)


@pytest.mark.parametrize(
    "arguments, environment, said",
    [
        (["{tars}"], {}, "two or three arguments"),
        (["{tmp}", "{tmp}/data"], {}, "ILSVRC2012_img_train.tar is missing.*image-net.org"),
        (["{tars}", "gs://bucket"], {}, "cannot be written: name a local directory first"),
        (["{tars}", "{tmp}/data", "bucket"], {}, "bucket is no bucket: write gs://BUCKET"),
        (["{tars}", "{tmp}/data", "gs://b"], {}, "gcloud.* is missing"),
        (["{tars}", "{tmp}/data"], {"NAME": "cifar10"}, "NAME=cifar10 is none of"),
        (["{tars}", "{tmp}/data"], {"PYTHON": "{tmp}/no_tfds"}, r"No module.*pip install.*\[tf\]"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_done(
    tars, tmp_path, arguments, environment, said
):
    executable(tmp_path / "no_tfds", "#!/bin/sh\necho 'a\nNo module named b' >&2; exit 1\n")

    def fill(text):
        return text.replace("{tars}", str(tars[0])).replace("{tmp}", str(tmp_path))

    environment = {name: fill(value) for name, value in environment.items()}
    environment["PATH"] = sealed_path(tmp_path / "bin")
    ended = run(*map(fill, arguments), **environment)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert re.search(said, ended.stderr), ended.stderr


def test_a_full_disk_is_said_before_anything_is_written(tars, tmp_path):
    with (tars[0] / "ILSVRC2012_img_train.tar").open("r+b") as file:
        file.truncate(15 * 2**40)  # sparse: it takes no room itself
    ended = run(tars[0], tmp_path / "data", PATH=sealed_path(tmp_path / "bin"))
    assert ended.returncode == 1
    assert " GB free, 18141.9 needed" in ended.stderr.splitlines()[-1]
    assert not [file for file in (tmp_path / "data").rglob("*") if file.is_file()]


def test_help():
    ended = run("--help")
    assert ended.returncode == 0
    assert "launch/prepare_imagenet TARS DATA_DIR" in ended.stdout
