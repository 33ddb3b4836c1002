"""Patches of an image, how they are joined, what is asked of them: recordings of the sources.

All of it is whole numbers or moves numbers, and is to be exact, but for the standardisation.
"""

from __future__ import annotations

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.augment import permutations
from simclr_jax.augment.patches import DIRECTIONS, Grid, around, cut, neighbours
from simclr_jax.models import inputs
from simclr_jax.models.patch_head import joined


def wrong(ours, official):
    """Return the largest difference; infinite where shapes differ."""
    ours, official = np.asarray(ours, np.float64), np.asarray(official, np.float64)
    return np.abs(ours - official).max() if ours.shape == official.shape else np.inf


@pytest.mark.parametrize("recording", golden.cases("patches"))
def test_patches(recording, record_parity):
    s, a = recording.settings, recording.arrays
    size = s["height"], s["width"]
    assert not s["training"], "in training they lie where another generator says"
    assert a["image_u8"].shape[:2] == size
    grid = Grid.of_cells(*size, s["splits_per_side"], s["patch_jitter"])
    corners = grid.corners(np.zeros(2), grid.middle(), size)
    ours = jax.jit(functools.partial(cut, patch=grid.patch))(a["image_u8"], corners)
    record_parity("patches", recording.name, wrong(ours, a["patches"]), 0.0)
    found = inputs.standardised(jnp.asarray(ours, jnp.float32))
    error = golden.error(found, a["standardised"])
    # Two sums over all values of a patch, in float32 there and here.
    tolerance = golden.float32_tolerance(0.0, roundings=64)
    record_parity("patches", recording.name, error, tolerance)


@pytest.mark.parametrize("recording", golden.cases("patch_concat"))
def test_patch_concat(recording, record_parity):
    s, a = recording.settings, recording.arrays
    shape = s["n"], -1, s["channels"]
    ours = jax.jit(joined)(a["embeddings"].reshape(shape), a["permutations"].astype(np.int32))
    official = a["out"].reshape(s["n"], len(a["permutations"]), -1)
    record_parity("patch_concat", recording.name, wrong(ours, official), 0.0)


def labels(recording):
    """Offsets are (right, down)."""
    right, down = recording.arrays["offsets"].T.tolist()
    found = [DIRECTIONS.index(offset) for offset in zip(down, right, strict=True)]
    yield found, recording.arrays["labels"]


def outer_and_middle(recording):
    pairs, official = around(), recording.arrays["pairs"]
    yield pairs.patches, official
    yield pairs.labels, np.arange(recording.settings["classes"])


def grid_of_an_image(recording):
    """What is recorded of places is (left, top); jitter is given."""
    s, a = recording.settings, recording.arrays
    size, start = (s["height"], s["width"]), s["grid_start"][::-1]
    assert np.abs(a["jitters"]).max() <= s["jitter"]
    grid = Grid.spaced(*size, start, s["patch"], s["gap"])
    yield [grid.rows, grid.columns], a["corners"].shape[:2]
    yield grid.corners(np.array(start), a["jitters"][..., ::-1], size), a["corners"][..., ::-1]
    pairs = neighbours(grid.rows, grid.columns)
    yield pairs.patches, a["pairs"]
    yield pairs.labels, a["labels"]


@pytest.mark.parametrize("recording", golden.cases("relative_location"))
def test_relative_location(recording, record_parity):
    if "patch" in recording.settings:
        compared = grid_of_an_image
    else:
        compared = outer_and_middle if "classes" in recording.settings else labels
    for ours, official in compared(recording):
        record_parity("relative_location", recording.name, wrong(ours, official), 0.0)


@pytest.mark.parametrize("recording", golden.cases("jigsaw_permutations"))
def test_jigsaw_permutations(recording, record_parity):
    s, official = recording.settings, recording.arrays["permutations"]
    if "first_index" in s:
        ours = permutations.far_apart(s["tiles"], s["count"], s["first_index"])
    else:  # those that the authors published, by the order that gives them
        assert "permutations_100_max.bin" in s["file"], f"not known: {s['file']}"
        ours = permutations.far_apart(9, s["count"], permutations.NOROOZI, "matlab")
    record_parity("jigsaw_permutations", recording.name, wrong(ours, official), 0.0)
