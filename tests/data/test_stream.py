"""The order for data that are read in large parts: complete, the same for any hosts, and local."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simclr_jax.data.stream import Stream

shapes = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 100),
        "block": st.integers(1, 40),
        "window": st.integers(1, 100),
        "lanes": st.integers(1, 20),
    }
)
LARGE = {"batch_size": 256, "block": 16, "window": 128, "lanes": 8}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(1, 900), st.integers(0, 10**6), shapes)
def test_each_epoch_sees_every_example_once(seed, size, epoch, shape):
    found = Stream(seed, size, **shape)(epoch * size + np.arange(size))
    np.testing.assert_array_equal(np.sort(found), np.arange(size))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 400), st.integers(0, 10**9), shapes, st.data())
def test_any_part_is_that_part_of_the_whole(size, first, shape, data):
    positions = first + np.arange(2 * size)
    whole = Stream(5, size, **shape)(positions)
    chosen = np.array(data.draw(st.lists(st.integers(0, 2 * size - 1), min_size=1, max_size=20)))
    np.testing.assert_array_equal(Stream(5, size, **shape)(positions[chosen]), whole[chosen])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 900), st.integers(0, 10**9), shapes)
def test_what_is_announced_holds_what_is_read(size, first, shape):
    stream, positions = Stream(1, size, **shape), first + np.arange(shape["batch_size"])
    blocks = stream.blocks(positions)
    read = np.concatenate(blocks)
    assert np.isin(stream(positions), read).all() and len(np.unique(read)) == len(read)
    assert all(block[0] % shape["block"] == 0 and (np.diff(block) == 1).all() for block in blocks)


@pytest.mark.parametrize(
    "seed, first, size, ids",
    [
        (0, 0, 100, [84, 80, 26, 85, 21, 81, 17, 31, 88, 83]),
        (42, 10**12, 1281167, [527427, 1258379, 668336, 1258381, 668342, 1258368]),
    ],
)
def test_order_never_changes(seed, first, size, ids):
    """Recorded once: another order would give a resumed run examples it has just seen."""
    found = Stream(seed, size, **LARGE)(first + np.arange(len(ids)))
    assert found.tolist() == ids


def test_hosts_read_parts_of_their_own():
    """Of each batch four hosts take a quarter each; an epoch is 40 batches."""
    size, hosts = 40 * 256, 4
    read = []
    for host in range(hosts):
        stream = Stream(3, size, **LARGE)
        rows = np.arange(256).reshape(hosts, -1)[host]
        batches = [stream.blocks(step * 256 + rows) for step in range(40)]
        read.append({int(block[0]) for batch in batches for block in batch})
    assert sum(map(len, read)) <= size // 16 + hosts  # and the seams
    assert set.union(*read) == set(range(0, size, 16))


def test_a_window_is_read_where_it_is_shuffled():
    """The examples of a lane's window lie in a few blocks, and are well mixed there."""
    size = 40 * 256
    stream = Stream(3, size, **LARGE)
    lane = (np.arange(4) * 256)[:, None] + np.arange(32)  # the first window of the first lane
    found = stream(lane.ravel())
    blocks, counts = np.unique(found // 16, return_counts=True)
    assert len(blocks) == 8 and (counts == 16).all()
    assert np.mean(np.abs(np.diff(found // 16)) == 0) < 0.3
    across = stream(np.arange(256)) // 16
    assert len(np.unique(across)) > 50  # of one batch: 8 lanes with 8 blocks each


def test_seeds_and_epochs_differ():
    size = 5000
    orders = [
        Stream(seed, size, **LARGE)(epoch * size + np.arange(size))
        for seed in range(2)
        for epoch in (0, 1, 99)
    ]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert np.sum(a == b) < 60  # of two such orders: 1 on average, in clumps of a block
