"""The order of examples: complete epochs, no memory, and the same for ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simclr_jax.data.order import examples

seeds = st.integers(0, 2**31 - 1)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, size=st.integers(1, 5000), epoch=st.integers(0, 10**6) | st.just(10**12))
def test_each_epoch_sees_every_example_once(seed, size, epoch):
    found = examples(seed, epoch * size + np.arange(size), size)
    np.testing.assert_array_equal(np.sort(found), np.arange(size))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, size=st.integers(2, 500), first=st.integers(0, 10**9), data=st.data())
def test_any_part_is_that_part_of_the_whole(seed, size, first, data):
    """Batches straddle epochs, hosts ask for slices, and a resumed run starts anywhere."""
    positions = first + np.arange(2 * size)
    whole = examples(seed, positions, size)
    chosen = np.array(data.draw(st.lists(st.integers(0, 2 * size - 1), min_size=1, max_size=20)))
    np.testing.assert_array_equal(examples(seed, positions[chosen], size), whole[chosen])
    straddling = np.concatenate([examples(seed, part, size) for part in np.split(positions, 2)])
    np.testing.assert_array_equal(straddling, whole)


@pytest.mark.parametrize(
    "seed, first, size, ids",
    [
        (0, 0, 10, [1, 5, 7, 8, 6, 3, 9, 4, 0, 2]),
        (0, 10, 10, [5, 9, 7, 0, 1, 4, 8, 2, 3, 6]),
        (42, 2**40, 50000, [20427, 14187, 47253, 19420, 3323, 32751]),
        (7, 800 * 1281167, 1281167, [534681, 1151920, 520396, 179703, 997503, 735504]),
    ],
)
def test_order_never_changes(seed, first, size, ids):
    """Recorded once: another order would give a resumed run examples it has just seen."""
    assert examples(seed, first + np.arange(len(ids)), size).tolist() == ids


def test_seeds_and_epochs_differ_as_chance_would_have_it():
    size = 5000
    orders = [
        examples(seed, epoch * size + np.arange(size), size)
        for seed in range(3)
        for epoch in (0, 1, 99)
    ]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert np.sum(a == b) < 12  # of two random orders: 1 on average, this with p < 1e-9


@pytest.mark.parametrize("size", [1797, 5000, 50000])
def test_neighbours_are_unrelated(size):
    for seed in range(5):
        found = examples(seed, np.arange(size), size)
        lag = np.corrcoef(found[:-1], found[1:])[0, 1]
        drift = np.corrcoef(found, np.arange(size))[0, 1]
        assert max(abs(lag), abs(drift)) < 5 / np.sqrt(size)
