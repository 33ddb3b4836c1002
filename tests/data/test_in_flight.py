"""How much of decoded images is in memory at a time, and that memory used again holds the right."""

from __future__ import annotations

import threading
import time
import weakref

import numpy as np
import pytest
from data.test_placements import Photographs, loading, read_batches
from PIL import Image

from simclr_jax import recipes
from simclr_jax.augment.policy import Policy
from simclr_jax.data import batches, canvas, scratch, sources
from simclr_jax.data.decode import decode
from simclr_jax.data.placements import blocks

THREADS, SIDE = 3, 64
OF_ONE = SIDE * SIDE * 3  # bytes of an image


class Counted(Photographs):
    """Images of one size, and how many bytes of them are alive, and were at most."""

    def __init__(self):
        super().__init__()
        self.alive = self.most = self.read = 0
        self._lock = threading.Lock()

    def example(self, example):
        image = np.full((SIDE, SIDE, 3), example, np.uint8)
        with self._lock:
            self.read += 1
            self.alive += image.nbytes
            self.most = max(self.most, self.alive)
        weakref.finalize(image, self._gone, image.nbytes)
        return image, example

    def _gone(self, count):
        with self._lock:
            self.alive -= count


@pytest.mark.parametrize("placement", ["canvas", "split", "host"])
def test_decoded_bytes_in_flight_are_bounded_by_threads_whatever_waits(placement, monkeypatch):
    monkeypatch.setattr(blocks, "HELD", 2 * OF_ONE)
    source = Counted()
    of = loading(source, Policy(16), threads=THREADS, canvas=canvas.Canvas(SIDE))
    requests = (batches.request(step, 96) for step in range(20))
    stream = batches.host_batches(placement, of, requests)
    for _ in range(3):
        next(stream)
        before = -1
        while before != source.read:  # nobody takes what is made: until all have to wait
            before = source.read
            time.sleep(0.1)
    assert source.read >= 3 * 96
    stream.close()
    # Of each thread those that `HELD` allows, one beyond, and one that is just let go.
    of_thread = {"canvas": 2, "split": 4, "host": 2}[placement]
    assert OF_ONE <= source.most <= THREADS * of_thread * OF_ONE


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of JPEGs of many sizes, one that is damaged and one that is turned among them."""
    root, random = tmp_path_factory.mktemp("photographs"), np.random.RandomState(0)
    (root / "train").mkdir()
    for i in range(40):
        image = Image.fromarray(random.randint(0, 256, (*random.randint(20, 90, 2), 3), np.uint8))
        turned = Image.Exif()
        turned[0x0112] = 6
        image.save(root / "train" / f"{i:02}.jpg", exif=turned if i == 7 else Image.Exif())
    damaged = root / "train" / "11.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-500])
    return root


@pytest.mark.parametrize("placement", ["canvas", "split"])
@pytest.mark.parametrize("lent", [0, 20_000, 2**24])
def test_what_is_decoded_into_memory_of_the_thread_is_what_was_decoded(
    photographs, placement, lent, monkeypatch
):
    data = recipes.base().data
    data.update(source="folder", path=str(photographs), labels=False)

    def found():
        source = sources.find(data)["train"]()
        of = loading(source, Policy(16), threads=THREADS)
        return read_batches(placement, of, range(12))

    with monkeypatch.context() as patch:
        patch.setattr(scratch, "room", lambda count: None)
        expected = found()
    monkeypatch.setattr(scratch, "LENT", lent)
    monkeypatch.setattr(scratch, "_OF_THREAD", threading.local())
    monkeypatch.setattr(blocks, "HELD", 30_000)
    for one, other in zip(found(), expected, strict=True):
        for name in other:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_memory_is_lent_to_no_other_thread_and_only_within(photographs):
    one, other = ((photographs / "train" / f"{i:02}.jpg").read_bytes() for i in (0, 1))
    expected = decode(one)
    with scratch.lent() as memory:
        image = decode(one)
        assert np.shares_memory(image, memory._memory)
        beside = decode(other)
        np.testing.assert_array_equal(image, expected)
        memory.clear()
        assert np.shares_memory(decode(other), image) and not np.shares_memory(beside, image)
        made = []
        thread = threading.Thread(target=lambda: made.append(decode(one)))
        thread.start()
        thread.join()
        assert not np.shares_memory(made[0], memory._memory)
    assert not np.shares_memory(decode(one), memory._memory)
