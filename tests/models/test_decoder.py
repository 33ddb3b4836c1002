"""The decoder reaches the sides it says, from maps of every encoder, and says which it cannot."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.frame.decoding import HALVINGS, MAP
from simclr_jax.models.decoder import Decoder, doublings, twice
from simclr_jax.models.normalization import BatchNorm
from simclr_jax.models.resnet import ResNet


def decoder(side, **fields):
    return Decoder(**{"side": side, "channels": 3, "width": 64, "norm": BatchNorm, **fields})


def shapes(module, map_shape):
    x = jax.ShapeDtypeStruct(map_shape, jnp.float32)
    made = functools.partial(module.init_with_output, train=True)
    out, variables = jax.eval_shape(made, jax.random.key(0), x)
    return out, variables["params"]


@pytest.mark.parametrize("start, side, times", [(1, 1, 0), (1, 32, 5), (4, 16, 2), (7, 56, 3)])
def test_doublings_are_counted(start, side, times):
    assert doublings(start, side) == times
    out, params = shapes(decoder(side), (2, start, start, 128))
    assert out.shape == (2, side, side, 3) and out.dtype == jnp.float32
    assert sum(name.startswith("conv") for name in params) == times + 1


@pytest.mark.parametrize("start, side", [(4, 30), (4, 2), (3, 32), (7, 224 // 3), (4, 0)])
def test_other_sides_are_an_error(start, side):
    assert doublings(start, side) is None
    with pytest.raises(ValueError, match="no doublings lead from a map"):
        shapes(decoder(side), (2, start, start, 8))


def test_widths_halve_down_to_16_and_a_code_comes_first():
    _, params = shapes(decoder(32, width=64, code=5), (2, 1, 1, 128))
    widths = [params[f"conv{i}"]["conv"]["kernel"].shape[2:] for i in range(6)]
    assert widths == [(5, 64), (64, 32), (32, 16), (16, 16), (16, 16), (16, 16)]
    assert params["code"]["conv"]["kernel"].shape == (1, 1, 128, 5)
    _, narrow = shapes(decoder(4, width=6), (2, 1, 1, 128))
    assert narrow["conv2"]["conv"]["kernel"].shape[2:] == (6, 6)


def test_doubled_pixels_stand_where_they_were():
    x = np.arange(2 * 3 * 3 * 2.0).reshape(2, 3, 3, 2)
    y = np.asarray(twice(jnp.asarray(x)))
    for row, column in np.ndindex(6, 6):
        np.testing.assert_array_equal(y[:, row, column], x[:, row // 2, column // 2])


def test_each_pixel_answers_from_its_place():
    """A change of one pixel of the map moves what is decoded there, and nothing far from it."""
    module, x = decoder(32, channels=1), np.random.default_rng(0).normal(size=(1, 8, 8, 4))
    x = jnp.asarray(x, jnp.float32)
    variables = module.init(jax.random.key(0), x, train=False)
    apply = jax.jit(functools.partial(module.apply, variables, train=False))
    moved = np.abs(np.asarray(apply(x.at[0, 3, 6].add(3.0)) - apply(x)))[0, ..., 0] > 1e-6
    rows, columns = np.flatnonzero(moved.any(1)), np.flatnonzero(moved.any(0))
    # Its 4x4 pixels, and 8 more on each side: 4 + 2 + 1 of the convolutions, 1 of the last.
    assert rows.min() >= 4 and rows.max() <= 23 and 12 <= rows.mean() <= 15
    assert columns.min() >= 16 and 22 <= columns.mean() <= 26


@pytest.mark.parametrize("stem", HALVINGS)
@pytest.mark.parametrize(
    "fields",
    [{"depth": 18}, {"depth": 50}, {"depth": 50, "sk_ratio": 0.1}, {"variant": "torchvision"}],
    ids=str,
)
@pytest.mark.parametrize("side", [32, 33, 50, 96])
def test_the_map_of_an_encoder_is_as_small_as_recipes_are_checked_by(stem, fields, side):
    norm = functools.partial(BatchNorm)
    module = ResNet(**{"depth": 18, "width": 1 / 16, "stem": stem, "norm": norm, **fields})
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    init = functools.partial(module.init_with_output, train=False)
    ends, _ = jax.eval_shape(init, jax.random.key(0), images)
    step = 2 ** HALVINGS[stem]
    assert ends[MAP].shape[1:3] == (-(-side // step),) * 2
