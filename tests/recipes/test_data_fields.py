"""Fields of `data`: which images and labels come of them, in which order, by how many threads."""

from __future__ import annotations

import threading

import jax
import numpy as np
import pytest
from PIL import Image
from recipes import shown
from train import tiny

from simclr_jax import parallel, recipes
from simclr_jax.data import sources
from simclr_jax.data.decode import BadImage
from simclr_jax.data.sources import Images
from simclr_jax.errors import UserError
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import timetable as timetables

# Which images -------------------------------------------------------------------------------------

SPLITS = {"train": 30, "test": 12, "dev": 7}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Images of three splits, each pixel of which says the split and the number of its image."""
    path, arrays = tmp_path_factory.mktemp("images") / "images.npz", {}
    for number, (split, count) in enumerate(SPLITS.items()):
        pixels = np.arange(count)[:, None, None, None] + np.full((1, 2, 2, 3), 50 * number)
        arrays[f"{split}_images"] = pixels.astype(np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 3
    np.savez(path, **arrays)
    return str(path)


def opened(**fields):
    data = recipes.base().data
    data.update(fields)
    return sources.open_splits(data)


def numbers(source):
    return source.pixels[:, 0, 0, 0].tolist()


def of_split(name, count=None):
    start = 50 * list(SPLITS).index(name)
    return list(range(start, start + (count or SPLITS[name])))


@pytest.mark.parametrize("split, held_out", [("train", "test"), ("dev", "test"), ("train", "dev")])
def test_a_split_is_trained_on_and_another_evaluated_on(archive, split, held_out):
    train, test = opened(source="memory", path=archive, split=split, eval_split=held_out)
    assert (numbers(train), numbers(test)) == (of_split(split), of_split(held_out))
    np.testing.assert_array_equal(train.labels, np.arange(len(train)) % 3)
    assert (train.classes, test.classes) == (3, 3)


def test_a_split_that_is_not_there_is_refused(archive):
    with pytest.raises(UserError, match=r'data.split is "trian" .did you mean "train"'):
        opened(source="memory", path=archive, split="trian")


@pytest.mark.parametrize("fraction, count", [(0.1, 3), (0.5, 15), (0.25, 8)])
def test_a_share_is_held_out_where_there_is_no_split_for_it(archive, fraction, count):
    """Of 30 images; half an image is rounded to the even number."""
    fields = {"source": "memory", "path": archive, "eval_split": "none"}
    train, test = opened(holdout_fraction=fraction, **fields)
    assert len(test) == count and not set(numbers(train)) & set(numbers(test))
    assert sorted(numbers(train) + numbers(test)) == of_split("train")
    assert [a.fingerprint() for a in opened(holdout_fraction=fraction, **fields)] == [
        train.fingerprint(),
        test.fingerprint(),
    ]


def test_labels_may_be_left_alone(archive):
    for source in opened(source="memory", path=archive, labels=False):
        assert source.labels is None and source.classes == 0


def test_source_and_path_say_which_images(archive, tmp_path):
    for place, shade in (("here", 40), ("there", 90)):
        for split in ("train", "test"):
            (tmp_path / place / split).mkdir(parents=True)
            Image.new("RGB", (4, 4), (shade, 0, 0)).save(tmp_path / place / split / "a.png")
        train, _ = opened(source="folder", path=str(tmp_path / place))
        assert train.example(0)[0][0, 0, 0] == shade
    assert len(opened(source="memory", path=archive)[0]) == SPLITS["train"]


@pytest.mark.parametrize("size", [8, 12])
def test_views_have_the_size_of_the_recipe(size):
    made, images = shown.groups(data__image_size=size, count=4)
    assert made["views"].shape == (4, 2, size, size, 3)
    every = np.arange(size) * shown.SIDE // size
    np.testing.assert_allclose(made["views"][:, 0], images[:, every][:, :, every], atol=2e-6)


# What cannot be read ------------------------------------------------------------------------------


class Shaky:
    """20 images of which the first few cannot be read; it waits for `together` readers at once."""

    classes, channels, multi_label, labels, class_names = 0, 3, False, None, ()

    def __init__(self, bad=0, together=1):
        self.bad, self._meet = bad, threading.Barrier(together)
        self._lock, self.reading, self.most = threading.Lock(), 0, 0

    def __len__(self):
        return 20

    def name(self, example):
        return f"image {example}"

    def fingerprint(self):
        return "shaky"

    def example(self, example):
        with self._lock:
            self.reading += 1
            self.most = max(self.most, self.reading)
        if example < 12:  # a multiple of one, two and three
            self._meet.wait(30)
        with self._lock:
            self.reading -= 1
        if example < self.bad:
            raise BadImage("it is torn")
        return np.full((9, 9, 3), 10 * example, np.uint8), -1


GOOD = Images(np.zeros((4, 9, 9, 3), np.uint8), None, 0)


@pytest.mark.parametrize("role", ["train", "held_out"])
@pytest.mark.parametrize(
    "bad, limit, allowed", [(2, 0.1, True), (3, 0.1, False), (2, 0.099, False), (0, 0.0, True)]
)
def test_exactly_the_largest_share_may_be_unreadable(role, bad, limit, allowed):
    c = tiny.recipe(data__max_bad_fraction=limit, data__threads=1)
    pair = (Shaky(bad), GOOD) if role == "train" else (GOOD, Shaky(bad))
    if not allowed:
        with pytest.raises(UserError, match=rf"of 20 images \({role}\) .*max_bad_fraction={limit}"):
            Inputs(c, *pair)
        return
    inputs = Inputs(c, *pair)
    read = inputs.train if role == "train" else inputs.test
    assert (0 if read.bad is None else read.bad.sum()) == bad


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_images_are_decoded_by_as_many_threads(threads):
    source = Shaky(together=threads)
    Inputs(tiny.recipe(data__threads=threads), source, GOOD)
    assert source.most == threads


# Their order --------------------------------------------------------------------------------------

STREAM = {"order": "stream", "stream_block": 8, "stream_window": 16, "stream_lanes": 4}
BATCH, SIZE = 16, 256


def examples(**fields):
    """Return which example stands in each row of each batch of an epoch, `[batches, rows]`."""
    c = tiny.recipe(train__batch_size=BATCH)
    c.data.update(fields)
    source = Images(np.zeros((SIZE, 8, 8, 3), np.uint8), None, 0)
    order = Inputs(c, source, source)._loading("train").reader.order
    return order(np.arange(SIZE)).reshape(-1, BATCH)


def is_streamed(found, block, window, lanes):
    """Tell whether each window of each lane has all examples of so many blocks and no others."""
    for lane in np.split(found, lanes, axis=1):
        for part in lane.reshape(-1, window):
            numbers, counts = np.unique(part // block, return_counts=True)
            if len(numbers) != window // block or set(counts) != {block}:
                return False
    return True


@pytest.mark.parametrize(
    "fields", [{}, {"stream_block": 4}, {"stream_window": 64}, {"stream_lanes": 2}]
)
def test_a_stream_has_the_blocks_windows_and_lanes_of_the_recipe(fields):
    fields = STREAM | fields
    found, shape = examples(**fields), [fields[f"stream_{n}"] for n in ("block", "window", "lanes")]
    assert sorted(found.ravel()) == list(range(SIZE))
    assert is_streamed(found, *shape)
    block, window, lanes = shape
    assert not is_streamed(found, 2 * block, window, lanes)
    assert not is_streamed(found, block, window // 2, lanes)
    assert not is_streamed(examples(**fields | {"order": "random"}), *shape)
    first = found[: window * lanes // BATCH, : BATCH // lanes].ravel()
    assert np.any(np.abs(np.diff(first)) != 1)  # shuffled within the window


def test_resident_images_lie_on_the_devices():
    """Otherwise each batch brings its own along, and no device ever holds all of them."""
    for resident in (False, True):
        c = tiny.recipe(data__resident=resident, train__steps=6)
        images = tiny.sorted_images(count=97)  # as many as no other test has
        inputs, timetable = Inputs(c, images, images), timetables.make(c, len(images))
        mesh = parallel.make_mesh(2)
        for _, batch in inputs.batches(mesh, timetable, 0, 6):
            want = images.pixels[np.asarray(batch["example"][0])]
            np.testing.assert_array_equal(batch["image"][0], want)
            there = [x for x in jax.live_arrays() if x.shape == images.pixels.shape]
            assert bool(there) == resident
            assert all(x.sharding.device_set == set(mesh.devices.flat) for x in there)
