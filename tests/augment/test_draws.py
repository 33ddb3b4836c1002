from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from simclr_jax import parallel
from simclr_jax.augment import draws
from simclr_jax.augment.policy import Policy

N = 4000


def sample(policy, height=32, width=32, seed=0, n=N, **options):
    keys = jax.random.split(jax.random.key(seed), n)
    drawn = jax.jit(jax.vmap(lambda k: draws.sample(k, policy, height, width, **options)))(keys)
    return jax.tree.map(np.asarray, drawn)


@pytest.fixture(scope="module")
def default():
    return sample(Policy(32, solarize=0.3))


def test_each_operation_happens_as_often_as_asked():
    asked = {"flip": 0.1, "jitter": 0.4, "grayscale": 0.7, "blur": 0.9, "solarize": 0.2}
    ours = sample(Policy(32, crop=False, **asked))
    for name, probability in asked.items():
        count = int(getattr(ours, name).sum())
        assert stats.binomtest(count, N, probability).pvalue > 1e-4, name
    never = sample(Policy(32, crop=False, **dict.fromkeys(asked, 0)))
    always = sample(Policy(32, crop=False, **dict.fromkeys(asked, 1)))
    for name in asked:
        assert not getattr(never, name).any()
        assert getattr(always, name).all()


def test_all_24_orders_are_equally_frequent(default):
    orders, counts = np.unique(default.order, axis=0, return_counts=True)
    assert len(orders) == 24
    assert (np.sort(orders, 1) == np.arange(4)).all()
    assert stats.chisquare(counts).pvalue > 1e-4


def test_factors_fill_their_ranges():
    add = sample(Policy(32, crop=False, brightness=0.3, brightness_mode="add", contrast=0.5))
    assert np.abs(add.brightness).max() == pytest.approx(0.3, abs=1e-3)
    assert add.brightness.mean() == pytest.approx(0, abs=0.02)
    assert [add.contrast.min(), add.contrast.max()] == pytest.approx([0.5, 1.5], abs=2e-3)
    strong = sample(Policy(32, crop=False, brightness=1.5))  # a negative factor would invert
    assert strong.brightness.min() >= 0
    assert strong.brightness.max() == pytest.approx(2.5, abs=2e-3)


def test_fields_are_independent(default):
    """One key used twice for two fields would make them functions of each other."""
    columns = [np.asarray(f, float).reshape(N, -1) for f in default]
    matrix = np.concatenate([c[:, : 3 if c.shape[1] == 4 else 1] for c in columns], 1)
    correlation = np.corrcoef(matrix.T)
    box, order = slice(0, 3), slice(5, 8)  # y, x, height and the places of an order are dependent
    correlation[box, box] = correlation[order, order] = 0
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 5 / np.sqrt(N)


def test_views_are_independent(default):
    """Draws of neighbouring keys, as the two views of an image have them."""
    first, second = (draws.Draws(*(a[v::2].astype(float) for a in default)) for v in (0, 1))
    for name, a, b in zip(draws.Draws._fields, first, second, strict=True):
        if a.ndim == 1:
            assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(N / 2), name
    assert (first.brightness != second.brightness).all()


def test_switching_one_operation_off_leaves_the_other_draws(default):
    without = sample(Policy(32, blur=0, hue=0, flip=0))
    for name in ("box", "jitter", "order", "brightness", "grayscale", "sigma"):
        np.testing.assert_array_equal(getattr(without, name), getattr(default, name))


def test_a_shared_sigma_key_gives_one_sigma_and_nothing_else_in_common(default):
    shared = sample(Policy(32, solarize=0.3), sigma_key=jax.random.key(9))
    assert np.unique(shared.sigma).size == 1
    assert np.unique(default.sigma).size > N / 2
    for name in set(draws.Draws._fields) - {"sigma"}:
        np.testing.assert_array_equal(getattr(shared, name), getattr(default, name))


# Of seed 11 at these positions, as drawn before there was `solarize`: resumed runs see no change.
EARLIER = {
    (7, 32, 32): (
        {
            "box": [5, 3, 26, 28],
            "order": [1, 3, 2, 0],
            "flip jitter grayscale blur": [True, True, True, False],
            "brightness contrast": [0.87937826, 0.54302311],
            "saturation hue sigma": [0.32003230, 0.02886382, 1.15800536],
        },
        {
            "box": [1, 3, 25, 27],
            "order": [1, 2, 0, 3],
            "flip jitter grayscale blur": [False, True, False, True],
            "brightness contrast": [0.64930421, 0.36095619],
            "saturation hue sigma": [0.21093157, 0.00849266, 1.10933471],
        },
    ),
    (2**32 + 9, 75, 100): (
        {
            "box": [0, 8, 64, 85],
            "order": [3, 1, 0, 2],
            "flip jitter grayscale blur": [False, True, True, True],
            "brightness contrast": [0.51886952, 1.52409363],
            "saturation hue sigma": [1.02322078, 0.12429766, 0.39217836],
        },
        {
            "box": [2, 6, 71, 93],
            "order": [0, 2, 3, 1],
            "flip jitter grayscale blur": [False, True, False, False],
            "brightness contrast": [-0.23787725, 0.56139505],
            "saturation hue sigma": [0.53529716, 0.10322081, 1.35496962],
        },
    ),
}
TWO = (Policy(32), Policy(24, area=(0.2, 0.9), blur_sigma=(0.5, 3), brightness_mode="add"))


@pytest.mark.parametrize("solarize", [0.0, 0.5])
@pytest.mark.parametrize("at", EARLIER)
def test_the_draws_are_those_of_earlier_code(at, solarize):
    policies = tuple(dataclasses.replace(policy, solarize=solarize) for policy in TWO)
    position = parallel.split64(np.array(at[0]))
    drawn = draws.draw_views({"views": policies}, 11, position, position, *at[1:])["views"]
    for view, earlier in zip(drawn, EARLIER[at], strict=True):
        for names, values in earlier.items():
            found = np.hstack([np.asarray(getattr(view, name)) for name in names.split()])
            np.testing.assert_allclose(found, values, rtol=2e-6)


def test_views_are_counted_through_the_groups_in_the_order_of_their_names():
    a, b, c = (Policy(32, blur_sigma=(0.1, most)) for most in (1.0, 2.0, 3.0))
    position = np.uint32([0, 3])
    one = draws.draw_views({"views": (a, b, c)}, 0, position, position, 32, 32)["views"]
    several = draws.draw_views({"z": (c,), "a": (a, b)}, 0, position, position, 32, 32)
    for found, wanted in zip([*several["a"], *several["z"]], one, strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_without_crop_the_box_is_the_image():
    ours = sample(Policy(32, crop=False), height=20, width=50, n=3)
    np.testing.assert_array_equal(ours.box, [[0, 0, 20, 50]] * 3)


crop_boxes = jax.jit(
    jax.vmap(draws.crop_box, (0, None, None, None)), static_argnums=1
)  # sizes traced


@given(height=st.integers(1, 400), width=st.integers(1, 400), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_boxes_lie_inside_the_image_and_keep_the_limits(height, width, seed):
    policy = Policy(32, area=(0.2, 0.9), min_object_covered=0.3)
    keys = jax.random.split(jax.random.key(seed), 16)
    boxes = np.asarray(crop_boxes(keys, policy, height, width))
    whole = (boxes == [0, 0, height, width]).all(1)  # allowed: where nothing else fits
    y, x, h, w = boxes[~whole].T
    assert ((h >= 1) & (w >= 1) & (y >= 0) & (x >= 0)).all()
    assert ((y + h < height) | (h == height)).all()  # never the last row of a larger image
    assert ((x + w < width) | (w == width)).all()
    area = h * w / (height * width)
    assert ((area >= 0.3 - 1e-6) & (area <= 0.9 + 1e-6)).all()
    # The width is the rounded height times the aspect.
    assert ((w >= 0.75 * h - 0.51) & (w <= 4 / 3 * h + 0.51)).all()


@pytest.mark.parametrize("height, width", [(10, 300), (300, 10)])
def test_the_whole_image_where_no_crop_fits(height, width):
    boxes = crop_boxes(jax.random.split(jax.random.key(0), 16), Policy(32), height, width)
    np.testing.assert_array_equal(boxes, [[0, 0, height, width]] * 16)


def test_a_panorama_still_gets_crops():
    """Few attempts succeed in an 8 : 1 image; a sampler that gave up early would show it whole."""
    boxes = crop_boxes(jax.random.split(jax.random.key(0), 500), Policy(32), 40, 320)
    assert (np.asarray(boxes)[:, 3] < 320).all()


@pytest.mark.x64
def test_draws_do_not_change_type_under_x64():
    """The same key gives other numbers in another type: a float64 test would see other views."""
    ours = jax.eval_shape(lambda: draws.sample(jax.random.key(0), Policy(32), 32, 32))
    types = {name: value.dtype for name, value in ours._asdict().items()}
    assert types["box"] == types["order"] == jnp.int32
    floats = ("brightness", "contrast", "saturation", "hue", "sigma")
    assert {types[name] for name in floats} == {jnp.dtype("float32")}
