"""What is read ahead: here when it is asked for, gone when it was read, ended with its stream."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import CancelledError

import numpy as np
import pytest

from simclr_jax import parallel
from simclr_jax.augment.policy import Policy
from simclr_jax.data import batches, placements, read_ahead
from simclr_jax.data.canvas import Canvas
from simclr_jax.data.placements import Loading
from simclr_jax.data.read_ahead import ReadAhead
from simclr_jax.data.reader import Reader, Unreadable
from simclr_jax.data.stream import Stream

WAIT = 5  # seconds, after which what should not have waited fails


class Bucket:
    """Records that are their own number, and what was asked of them."""

    classes, channels, labels = 0, 1, None

    def __init__(self, size, gated_from=10**9):
        self.rows, self.raw = np.arange(size)[::-1], ReadAhead(self, self.fetch)
        self.singly: list[int] = []
        self.fetched: list[int] = []
        self.gate, self._gated_from = threading.Event(), gated_from
        self.kept_waiting = False

    def name(self, example):
        return str(example)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        self.singly.append(row)
        return str(row).encode()

    def fetch(self, rows):
        self.fetched.append(int(rows[0]))
        if len(self.fetched) >= self._gated_from:
            self.kept_waiting |= not self.gate.wait(WAIT)
            self.gate.set()
        return [str(row).encode() for row in rows]

    def example(self, example):
        assert int(self.raw[self.rows[example]]) == self.rows[example]
        return np.full((4, 4, 1), example % 256, np.uint8), -1


def loading(source, shape, threads=1):
    return Loading(
        reader=Reader(source, Stream(3, len(source), **shape), Unreadable("train", 1, 0)),
        policies={"views": (Policy(4), Policy(4))},
        seed=3,
        shared_sigma=False,
        threads=threads,
        canvas=Canvas(8),
    )


def far_ahead(depth):
    """Return a placement that reads a request when `depth` more have been made."""

    def batches(loading, requests):
        waiting: deque = deque()
        for request in requests:
            waiting.append(request)
            if len(waiting) > depth:
                yield {"read": loading.reader.read(waiting.popleft().positions)}
        while waiting:
            yield {"read": loading.reader.read(waiting.popleft().positions)}

    return lambda name: batches


def in_memory(source):
    return sum(len(block.rows) for block in source.raw._blocks.values())


@pytest.mark.parametrize("depth", [0, 3, 40])
@pytest.mark.parametrize("hosts", [1, 4, 8, 16])
def test_nothing_announced_is_read_by_itself_however_far_ahead(monkeypatch, hosts, depth):
    """At 40 batches a lane has 16 windows under way; of 16 hosts two share each of the lanes."""
    shape = {"batch_size": 128, "block": 8, "window": 40, "lanes": 8}
    monkeypatch.setattr(placements, "get", far_ahead(depth))
    size, steps, rows = 8 * 404 - 5, 45, 128 // hosts  # an epoch is 26 batches
    source, most = Bucket(size), 0
    requests = (batches.request(step, 128, slice(rows)) for step in range(steps))
    for _ in batches.host_batches("", loading(source, shape), requests):
        most = max(most, in_memory(source))
    assert not source.singly
    # A window is at least 36 places here, spread over at most 7 blocks.
    lanes, under_way = max(1, 8 // hosts), 16 * (depth + 2)
    assert most <= lanes * 7 * 8 * (2 + (under_way + 48) // 36)
    places = lanes * 16 * steps
    assert len(source.fetched) < 1.3 * (places + 3 * 40 * lanes) / 8  # seams, and the end
    assert in_memory(source) == 0 and not source.raw._where


def test_a_block_stays_until_all_who_hold_it_release_it():
    source = Bucket(40)
    a, b, c = (np.arange(first, first + 10) for first in (0, 10, 20))
    source.raw.announce([a, b], later=[c])
    source.raw.announce([b, a])
    source.raw.release([a, b])
    source.raw.release([b])
    assert [source.raw[row] for row in (3, 13, 23)] == [b"3", b"13", b"23"]
    assert source.singly == [13]
    source.raw.announce([c])
    source.raw.release([c, c])
    assert source.raw[23] == b"23" and source.singly == [13, 23]
    assert sorted(source.fetched) == [0, 10, 20]


def test_after_a_close_records_are_read_by_themselves_until_announced_again(monkeypatch):
    monkeypatch.setattr(read_ahead, "THREADS", 1)
    source = Bucket(30, gated_from=2)
    a, b, c = (np.arange(first, first + 10) for first in (0, 10, 20))
    source.raw.announce([a], later=[b, c])
    read: list[bytes] = []
    waits = threading.Thread(target=lambda: read.append(source.raw[25]))
    waits.start()
    assert source.raw[3] == b"3"
    source.raw.close()
    source.raw.close()
    waits.join(WAIT)
    assert read == [b"25"] and source.raw[4] == b"4" and source.raw[26] == b"26"
    assert source.singly == [25, 26]  # what was held and here, is
    source.gate.set()
    source.raw.announce([c])
    assert source.raw[27] == b"27" and source.singly == [25, 26]


def test_the_next_window_is_announced_with_each_and_kept_when_that_was_read():
    source, shape = Bucket(128), {"batch_size": 32, "block": 8, "window": 32, "lanes": 1}
    reader = loading(source, shape).reader
    for window, here in ((0, 64), (1, 96)):
        reader.announce(window * 32 + np.arange(32))
        assert in_memory(source) == here
    reader.release(np.arange(32))
    assert in_memory(source) == 64 and len(reader.read(np.arange(32, 96)).images) == 64
    assert not source.singly and len(source.fetched) == 12


def test_a_closed_reader_reads_and_announces_nothing():
    source, shape = Bucket(64), {"batch_size": 32, "block": 8, "window": 32, "lanes": 1}
    reader = loading(source, shape).reader
    reader.close()
    reader.announce(np.arange(32))
    with pytest.raises(CancelledError):
        reader.read(np.arange(32))
    assert not source.fetched and not source.singly


def test_a_reader_that_closes_while_it_announces_leaves_nothing_to_fetch(monkeypatch):
    """A stream on devices announces in one thread and is closed from another."""
    source, shape = Bucket(64), {"batch_size": 32, "block": 8, "window": 32, "lanes": 1}
    reader, announce = loading(source, shape).reader, ReadAhead.announce
    closing = threading.Thread(target=reader.close)

    def interrupted(raw, *blocks):
        closing.start()
        closing.join(0.2)  # where it does not wait for the announcement, it is long done
        announce(raw, *blocks)

    monkeypatch.setattr(ReadAhead, "announce", interrupted)
    reader.announce(np.arange(32))
    closing.join(WAIT)
    assert not closing.is_alive() and source.raw._pool is None


def on_the_host(placement, of, requests):
    return batches.host_batches(placement, of, requests)


def on_devices(placement, of, requests):
    mesh, fields = parallel.make_mesh(1), {"batch_size": 32, "steps_per_call": 1}
    return batches.device_batches(placement, of, mesh, first_step=0, total_steps=9, **fields)


@pytest.mark.parametrize("placement", ["canvas", "split"])
@pytest.mark.parametrize("streamed", [on_the_host, on_devices])
def test_a_stream_that_closes_leaves_no_fetch_behind(monkeypatch, streamed, placement):
    """The first batch is four blocks; whatever waits for the ones after it is not kept waiting."""
    monkeypatch.setattr(read_ahead, "THREADS", 1)
    shape = {"batch_size": 32, "block": 8, "window": 32, "lanes": 1}
    source, close, pools = Bucket(320, gated_from=5), ReadAhead.close, []

    def closed(raw):
        pools.append(raw._pool)
        close(raw)
        source.gate.set()

    monkeypatch.setattr(ReadAhead, "close", closed)
    requests = (batches.request(i, 32) for i in range(9))
    stream = streamed(placement, loading(source, shape, threads=2), requests)
    next(stream)
    stream.close()
    for pool in filter(None, pools):
        pool.shutdown()  # waits for what would still run
    assert not source.kept_waiting
    assert len(source.fetched) <= 5  # the one that had begun
    assert len(source.singly) <= 2  # at most the image that each thread was waiting for
    assert in_memory(source) == 0
