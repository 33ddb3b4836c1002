"""The checksum of a leaf: additive over any blocks, blind to no single change."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from simclr_jax.train import manifest
from simclr_jax.train.checkpoints import Checkpoints


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_checksums_of_blocks_add_up_to_that_of_the_whole(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), max_size=3)))
    if data.draw(st.booleans()):
        shape = (*shape, 9000)  # blocks that begin and end inside the pages of multipliers
    dtype = data.draw(st.sampled_from([np.uint8, np.float16, np.float32, np.float64]))
    values = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    cuts = [sorted({0, data.draw(st.integers(0, n - 1)), n}) for n in shape]
    total = 0
    for corner in np.ndindex(*(len(c) - 1 for c in cuts)):
        starts = tuple(cut[i] for cut, i in zip(cuts, corner, strict=True))
        ends = tuple(cut[i + 1] for cut, i in zip(cuts, corner, strict=True))
        block = values[tuple(slice(a, b) for a, b in zip(starts, ends, strict=True))]
        total += manifest.checksum(block, starts, shape)
    assert total % 2**64 == manifest.checksum(values, (0,) * len(shape), shape)


@given(
    st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64]), st.integers(0, 79_999), st.data()
)
@settings(max_examples=60, deadline=None)
def test_checksum_sees_each_changed_bit_and_each_exchange(dtype, place, data):
    values = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, 80_000, dtype)
    before = manifest.checksum(values, (0,), values.shape)
    bit = data.draw(st.integers(0, np.iinfo(dtype).bits - 1))
    flipped = values.copy()
    flipped[place] ^= dtype(1 << bit)
    assert manifest.checksum(flipped, (0,), values.shape) != before
    other = data.draw(st.integers(0, 79_999))
    flipped[other] ^= dtype(1 << bit)  # two flips of the same bit do not cancel either
    assert place == other or manifest.checksum(flipped, (0,), values.shape) != before
    swapped = values.copy()
    swapped[[place, other]] = swapped[[other, place]]
    same = values[place] == values[other]
    assert same or manifest.checksum(swapped, (0,), values.shape) != before


def test_checksum_is_a_format_and_does_not_change():
    values = np.arange(100_000, dtype=np.uint32)  # the number is from Python integers
    assert manifest.checksum(values, (0,), values.shape) == 18215959715971054806


def test_numbers_that_json_lacks_are_null_in_a_recipe_and_no_fault_of_the_disk(tmp_path):
    recipe = {"chance": float("nan"), "seed": 1}
    saving = Checkpoints(tmp_path, recipe=recipe)
    saving.save(1, {"a": np.arange(3)}, {"sums": {"loss": float("inf")}})
    saving.close()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.about(1)["recipe"] == {"chance": None, "seed": 1}
    assert checkpoints.about(1)["log"] == {"sums": {"loss": None}}
