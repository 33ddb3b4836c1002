"""Where arrays live on the mesh, which rows a host supplies, and 64-bit numbers without x64."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from simclr_jax import parallel


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5))
def test_split64_keeps_all_bits(values):
    high, low = parallel.split64(np.array(values, np.uint64)).T
    assert [int(a) << 32 | int(b) for a, b in zip(high, low, strict=True)] == values


def test_split64_is_what_jax_can_hold_without_x64():
    words = parallel.split64(np.array([2**32 - 1, 2**32, 3 * 2**40 + 7], np.int64))
    assert words.dtype == np.uint32
    np.testing.assert_array_equal(words, [[0, 2**32 - 1], [1, 0], [3 * 2**8, 7]])


@pytest.mark.parametrize("devices, size", [(None, 8), (1, 1), (3, 3)])
def test_mesh_has_the_first_devices(devices, size):
    mesh = parallel.make_mesh(devices)
    assert mesh.shape == {"data": size}
    assert list(mesh.devices.flat) == jax.devices()[:size]


def test_replicate_puts_everything_everywhere():
    tree = {"a": np.arange(3.0), "b": [np.int32(4)]}
    placed = parallel.replicate(parallel.make_mesh(), tree)
    for leaf, want in zip(jax.tree.leaves(placed), jax.tree.leaves(tree), strict=True):
        assert len(leaf.addressable_shards) == 8
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, want)


@pytest.mark.parametrize("axis", [0, 1])
def test_shard_gives_each_device_its_contiguous_rows(axis):
    rows = np.moveaxis(np.arange(16 * 3 * 2).reshape(16, 3, 2), 0, axis)
    placed = parallel.shard(parallel.make_mesh(), {"x": rows}, axis)["x"]
    assert placed.sharding.spec == P(*[None] * axis, "data")
    np.testing.assert_array_equal(placed, rows)
    for i, device in enumerate(jax.devices()):
        (shard,) = (s for s in placed.addressable_shards if s.device == device)
        np.testing.assert_array_equal(shard.data, np.take(rows, [2 * i, 2 * i + 1], axis))


@pytest.mark.parametrize("processes", [(0,), (0, 1), (2, 5, 7, 9)])
def test_hosts_supply_contiguous_rows_in_the_order_of_the_mesh(processes, monkeypatch):
    """Each two devices; hosts outside the mesh have no part in it."""
    devices = [types.SimpleNamespace(process_index=p) for p in processes for _ in range(2)]
    mesh = types.SimpleNamespace(devices=np.array(devices))
    rows = []
    for process in processes:
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        rows += range(24)[parallel.local_rows(mesh, 24)]
    assert rows == list(range(24))
