"""Images and a run in a bucket: stopped, resumed and judged there as on a disk."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
from pathlib import Path

import bucket
import doors
import numpy as np
import pytest
from doors import Blow
from etils import epath
from PIL import Image

from simclr_jax.data.sources import tfrecord, tfrecord_files

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RUN = "gs://fake/run"


@dataclasses.dataclass(frozen=True)
class InBucket:
    """What a door's process does first: `gs://` is the stand-in kept in `root`; then the blow."""

    root: Path
    blow: Blow | None = None

    def arm(self) -> None:
        bucket.use(self.root)
        if self.blow:
            self.blow.arm()


def framed(record):
    """Return a record as it stands in a TFRecord file (tests/data compares with TensorFlow)."""

    def checksum(content):
        crc = tfrecord_files._crc32c(np.frombuffer(content, np.uint8)[None])
        return tfrecord_files._masked(crc).tobytes()

    length = len(record).to_bytes(8, "little")
    return length + checksum(length) + record + checksum(record)


def write_images(directory):
    """Write TFRecord files of 60 PNGs whose brightness tells their class."""
    directory.mkdir()
    random = np.random.RandomState(0)
    for shard in range(3):
        content = b""
        for i in range(20):
            pixels = random.randint(0, 100, (12, 12, 3)) + 40 * (i % 4)
            Image.fromarray(pixels.astype(np.uint8)).save(file := io.BytesIO(), "PNG")
            example = tfrecord._example_class()()
            example.features.feature["image"].bytes_list.value.append(file.getvalue())
            example.features.feature["label"].int64_list.value.append(i % 4)
            content += framed(example.SerializeToString())
        (directory / f"train-{shard:05}-of-00003").write_bytes(content)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a directory with the images, and with a bucket that holds them as `images`."""
    place = tmp_path_factory.mktemp("remote")
    write_images(place / "images")
    with bucket.at(place / "bucket"):
        for file in (place / "images").iterdir():
            (epath.Path("gs://fake/images") / file.name).write_bytes(file.read_bytes())
    return place


# But for the images, which JAX does not see, as in test_photographs.py: compiled once for both.
ARGUMENTS = (
    *doors.TINY,
    *doors.UNLABELLED,
    "--config.data.source=tfrecord",
    "--config.data.labels=False",
    "--config.data.order=stream",
    "--config.data.stream_block=4",
    "--config.data.stream_window=12",
    "--config.data.stream_lanes=2",
    "--config.augment.placement=split",
    "--config.augment.grid=opencv",
    "--config.train.steps=10",
)


def arguments(root, workdir):
    return (
        *ARGUMENTS,
        f"--config.data.path={root}/images",
        f"--config.data.index={root}/index",
        f"--workdir={workdir}",
    )


def test_a_run_in_a_bucket_is_the_run_on_a_disk(place, tmp_path):
    straight = doors.run(tmp_path, *arguments(place, tmp_path / "run"))
    assert straight.code == 0, straight

    there = arguments("gs://fake", RUN)
    with bucket.at(place / "bucket"):
        saved = place / "bucket" / bucket.Bucket()._file(f"{RUN}/checkpoints/3/manifest.json").name
    kill = InBucket(place / "bucket", Blow(signal.SIGKILL, 5, saved))
    assert doors.run(tmp_path, *there, blow=kill).code == -signal.SIGKILL
    resumed = doors.run(tmp_path, *there, blow=InBucket(place / "bucket"))
    assert resumed.code == 0, resumed
    assert "resumed at step 3 of 10" in resumed.out and f"run       {RUN}" in resumed.out

    probe = (f"--checkpoint={RUN}", "--solver=knn")
    judged = doors.run(tmp_path, *probe, door="linear_probe", blow=InBucket(place / "bucket"))
    assert judged.code == 0, judged

    with bucket.at(place / "bucket"):
        here = download(epath.Path(RUN), tmp_path / "copy")
    assert doors.metrics(here) == doors.metrics(tmp_path / "run")
    expected, found = doors.leaves(tmp_path / "run", 10), doors.leaves(here, 10)
    assert {name: leaf.tobytes() for name, leaf in found.items()} == {
        name: leaf.tobytes() for name, leaf in expected.items()
    }
    assert {"log.txt", "views.png", "tensorboard", "features"} <= {p.name for p in here.iterdir()}
    assert not (here / "lock.json").exists()
    results = [json.loads(path.read_text()) for path in here.glob("results/*knn*.json")]
    assert results and all(one["scores"] for one in results)


def download(path, to):
    from simclr_jax import buckets

    buckets.copy(path, epath.Path(to))
    return Path(to)
