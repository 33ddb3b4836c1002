"""From a source to batches: which examples, where they go, and what a resumed run sees."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from simclr_jax import parallel
from simclr_jax.augment.policy import Policy
from simclr_jax.data import batches, order
from simclr_jax.data.placements import Loading
from simclr_jax.data.reader import Reader, Unreadable
from simclr_jax.data.sources import Images

SIZE, BATCH, SEED = 20, 8, 3


@pytest.fixture(scope="module")
def source():
    """Images that carry their own number, as pixel and as label."""
    ids = np.arange(SIZE, dtype=np.uint8)
    return Images(np.tile(ids[:, None, None, None], (1, 2, 3, 1)), ids.astype(np.int32), SIZE)


def loading(source):
    return Loading(
        reader=Reader(
            source,
            functools.partial(order.examples, SEED, size=len(source)),
            Unreadable("train", len(source), max_fraction=0.5),
        ),
        policies={"views": (Policy(2), Policy(2))},
        seed=SEED,
        shared_sigma=False,
        threads=2,
    )


def host_batch(source, step, rows=slice(None)):
    requests = iter([batches.request(step, BATCH, rows)])
    return next(batches.host_batches("device", loading(source), requests))


def device_batches(source, first=0, total=7, per_call=1, devices=8, resident=False):
    mesh = parallel.make_mesh(devices)
    return batches.device_batches(
        "device",
        loading(source),
        mesh,
        batch_size=BATCH,
        first_step=first,
        total_steps=total,
        steps_per_call=per_call,
        resident=resident,
    )


@pytest.mark.parametrize(
    "first, total, per_call, expected",
    [
        (0, 3, 1, [(0, 1), (1, 2), (2, 3)]),
        (0, 6, 3, [(0, 3), (3, 6)]),
        (4, 10, 3, [(4, 6), (6, 9), (9, 10)]),  # resumed elsewhere, and the end: shorter chunks
        (5, 5, 2, []),
        (6, 5, 2, []),
    ],
)
def test_chunks_are_cut_at_multiples(first, total, per_call, expected):
    found = [(steps.start, steps.stop) for steps in batches.chunks(first, total, per_call)]
    assert found == expected


def test_host_batch_follows_the_order(source):
    for step in (0, 2, 10**6):  # step 2 straddles two epochs
        batch = host_batch(source, step)
        ids = order.examples(SEED, step * BATCH + np.arange(BATCH), SIZE)
        np.testing.assert_array_equal(batch["label"], ids)
        np.testing.assert_array_equal(batch["image"][:, 1, 2, 0], ids)
        np.testing.assert_array_equal(batch["position"][:, 1], step * BATCH + np.arange(BATCH))
        np.testing.assert_array_equal(batch["start"], [[0, step * BATCH]] * BATCH)
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32


def test_positions_outgrow_32_bits(source):
    step = 2**32 // BATCH - 1
    batch = host_batch(source, step)
    np.testing.assert_array_equal(batch["position"][-1], [0, 2**32 - 1])
    batch = host_batch(source, step + 1)
    np.testing.assert_array_equal(batch["position"], [[1, i] for i in range(BATCH)])
    np.testing.assert_array_equal(batch["start"], [[1, 0]] * BATCH)
    assert batch["position"].dtype == batch["start"].dtype == np.uint32


def test_hosts_share_a_global_batch(source):
    whole = host_batch(source, 2)
    halves = [host_batch(source, 2, rows) for rows in (slice(0, 4), slice(4, 8))]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), whole[name])


def test_labels_are_optional(source):
    batch = host_batch(Images(source.pixels, None, 0), 0)
    assert set(batch) == {"image", "example", "position", "start"}


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("devices, per_call", [(1, 1), (8, 1), (8, 3)])
def test_device_batches_are_the_host_batches(source, devices, per_call, resident):
    seen = []
    batches = device_batches(source, per_call=per_call, devices=devices, resident=resident)
    for steps, batch in batches:
        seen += steps
        for i, step in enumerate(steps):
            want = host_batch(source, step)
            jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), batch, want)
        assert batch["image"].sharding.spec == P(None, parallel.AXIS)
        assert len(batch["image"].addressable_shards[0].data) == len(steps)
        assert batch["image"].addressable_shards[0].data.shape[1] == BATCH // devices
    assert seen == list(range(7))


@pytest.mark.parametrize("first, devices", [(3, 8), (4, 8), (4, 1), (7, 8)])
def test_resumed_run_sees_the_rest_of_a_straight_one(source, first, devices):
    """Also from inside a chunk of the straight run, and with images kept on the devices or not."""

    def flat(batches):
        return [
            (step, jax.tree.map(lambda x, i=i: np.asarray(x[i]), batch))
            for steps, batch in batches
            for i, step in enumerate(steps)
        ]

    straight = flat(device_batches(source, per_call=3))[first:]
    for resident in (False, True):
        where = {"devices": devices, "resident": resident}
        resumed = flat(device_batches(source, first=first, per_call=3, **where))
        assert [step for step, _ in resumed] == [step for step, _ in straight]
        for (_, a), (_, b) in zip(resumed, straight, strict=True):
            jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_failure_to_load_is_not_swallowed():
    class Broken(Images):
        def take(self, rows):
            raise OSError("disk gone")

    broken = Broken(np.zeros((SIZE, 2, 2, 1), np.uint8), None, 0)
    with pytest.raises(OSError, match="disk gone"):
        next(device_batches(broken))
