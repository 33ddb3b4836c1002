"""Every field of a view: what its change does to that view's pixels, and that the other stays.

Images are made so that what was drawn can be read off the pixels of the view.
"""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from recipes import shown
from recipes.shown import apart, beside
from scipy import ndimage

PAIR = pytest.mark.parametrize("view", shown.VIEWS)


def close(found, want, atol=2e-6):
    np.testing.assert_allclose(found, want, atol=atol)


def happened(found, images):
    """Tell of each image whether its view is another than itself."""
    return np.abs(found - images).max((1, 2, 3)) > 1e-3


def about_half(done):
    """Of 64 draws of one half, fewer than 14 or more than 50 come once in 10^6."""
    assert 14 <= np.sum(done) <= 50


# Flip, gray, solarize: all or nothing, by their probability ---------------------------------------


def luma(images):
    gray = images @ np.array([0.2989, 0.5870, 0.1140])
    return np.repeat(gray[..., None], 3, -1)


def solarized(images):
    return np.where(images < 0.5, images, 1 - images)


DONE = {"flip": lambda images: images[:, :, ::-1], "grayscale": luma, "solarize": solarized}


@PAIR
@pytest.mark.parametrize("field", DONE)
def test_a_probability_of_one_half_does_it_to_half(view, field):
    found, images = apart(view, {field: 0.5}, {beside(view, field, DONE): 0.5})
    done = happened(found, images)
    about_half(done)
    close(found, np.where(done[:, None, None, None], DONE[field](images), images))


@PAIR
def test_values_from_the_threshold_on_are_inverted_in_all(view):
    found, images = apart(view, {"solarize": 1.0, "solarize_threshold": 0.4}, {"flip": 1.0})
    close(found, np.where(images < 0.4, images, 1 - images))


# Colour -------------------------------------------------------------------------------------------

NO_COLOUR = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)


def jitter(**fields):
    return {"jitter": 1.0, **NO_COLOUR, **fields}


def brightness(found, images):
    factor = found / images
    assert np.ptp(factor, (1, 2, 3)).max() < 1e-4
    return factor.mean((1, 2, 3))


def contrast(found, images):
    """From the mean of a channel in its image every value is as many times as far."""
    mean = images.mean((1, 2), keepdims=True)
    factor = np.sum((found - mean) * (images - mean), (1, 2, 3)) / np.sum(
        (images - mean) ** 2, (1, 2, 3)
    )
    close(found, mean + factor[:, None, None, None] * (images - mean), 1e-5)
    return factor


def saturation(found, images):
    """The largest of a pixel stays; the distance to the smallest is so many times larger."""
    close(found.max(-1), images.max(-1))
    ratio = np.sum(np.ptp(found, -1), (1, 2)) / np.sum(np.ptp(images, -1), (1, 2))
    close(np.ptp(found, -1), ratio[:, None, None] * np.ptp(images, -1), 1e-5)
    return ratio


def hue(found, images):
    """By how many turns, of the most colourful pixel; all of a few others turn alike."""
    turns = []
    for new, old in zip(found, images, strict=True):
        colourful = np.argsort(np.ptp(old, -1).ravel())[-5:]
        moved = [
            colorsys.rgb_to_hsv(*new.reshape(-1, 3)[i])[0]
            - colorsys.rgb_to_hsv(*old.reshape(-1, 3)[i])[0]
            for i in colourful
        ]
        moved = (np.array(moved) + 0.5) % 1 - 0.5
        assert np.ptp(moved) < 1e-3
        turns.append(moved.mean())
    return np.array(turns)


# How the drawn amount is read off a view, and what it is where nothing is done.
AMOUNTS = {
    "brightness": (brightness, 1.0),
    "contrast": (contrast, 1.0),
    "saturation": (saturation, 1.0),
    "hue": (hue, 0.0),
}
MOST = 0.3


@PAIR
@pytest.mark.parametrize("field", AMOUNTS)
def test_strengths_say_how_far_colours_may_go(view, field):
    """And `strength` multiplies each: the same draws, so many times as far."""
    amount, neutral = AMOUNTS[field]

    def moved(most, strength):
        mine, theirs = (
            jitter(**{name: most, "strength": strength})
            for name in (field, beside(view, field, AMOUNTS))
        )
        return amount(*apart(view, mine, theirs)) - neutral

    whole = moved(MOST, 1.0)
    assert np.abs(whole).max() <= MOST + 1e-3
    assert whole.min() < -0.8 * MOST and whole.max() > 0.8 * MOST
    close(moved(MOST / 2, 1.0), whole / 2, 1e-3)
    close(moved(MOST, 0.5), whole / 2, 1e-3)


@PAIR
def test_jitter_is_the_probability_of_all_four(view):
    both = {"brightness": MOST, "hue": 0.1}
    always, half = jitter(**both), jitter(**both, jitter=0.5)
    found, images = apart(view, always, half)
    assert happened(found, images).mean() > 0.9
    sometimes, _ = apart(view, half, always)
    done = happened(sometimes, images)
    about_half(done)
    close(sometimes, np.where(done[:, None, None, None], found, images))


@PAIR
def test_gray_first_leaves_no_hue_to_turn(view):
    gray_first, gray_last = (
        jitter(hue=MOST, grayscale=1.0, grayscale_first=first) for first in (True, False)
    )
    before, images = apart(view, gray_first, gray_last)
    close(before, luma(images))
    after, _ = apart(view, gray_last, gray_first)
    turned, _ = apart(view, jitter(hue=MOST), jitter(hue=MOST))
    close(after, luma(turned))
    assert happened(after, before).mean() > 0.9


# Blur ---------------------------------------------------------------------------------------------


def blur(low, high, probability=1.0):
    return {"blur": probability, "blur_sigma_min": low, "blur_sigma_max": high}


DOT = {"pixels": "dot", "data__image_size": 40}


def sigmas(found):
    """From a blurred dot: its neighbour is exp(-1 / 2 sigma^2) times the dot."""
    return np.sqrt(-0.5 / np.log(found[:, 20, 21, 0] / found[:, 20, 20, 0]))


@PAIR
def test_a_blur_is_a_gaussian_of_a_tenth_of_the_view_in_half(view):
    found, images = apart(view, blur(1.2, 1.2, 0.5), {"solarize": 1.0}, **DOT)
    taps = np.exp(-0.5 * np.arange(-2, 3) ** 2 / 1.2**2)  # 40 // 10 = 4 pixels: two either way
    want = ndimage.correlate1d(images, taps / taps.sum(), 1, mode="constant")
    want = ndimage.correlate1d(want, taps / taps.sum(), 2, mode="constant")
    done = happened(found, images)
    about_half(done)
    close(found, np.where(done[:, None, None, None], want, images))


WIDTHS = ((0.5, 1.5), (1.0, 1.5), (0.5, 0.7))


@PAIR
@pytest.mark.parametrize("low, high", WIDTHS)
def test_its_widths_fill_their_range(view, low, high):
    def drawn(*width):
        return sigmas(apart(view, blur(*width), blur(*beside(view, width, WIDTHS)), **DOT)[0])

    share = (drawn(low, high) - low) / (high - low)
    assert 0 <= share.min() < 0.2 and 0.8 < share.max() <= 1
    close(share, drawn(0.5, 1.5) - 0.5, 2e-3)  # the same draws in another range


def test_a_width_may_be_one_of_the_batch():
    both = blur(0.5, 1.5)
    by_image, by_batch = (
        [sigmas(apart(view, both, both, augment__sigma_per=per, **DOT)[0]) for view in shown.VIEWS]
        for per in ("image", "batch")
    )
    assert all(np.ptp(widths) > 0.5 for widths in by_image)
    assert all(np.ptp(widths) < 1e-5 for widths in by_batch)
    assert abs(by_batch[0][0] - by_batch[1][0]) > 1e-3  # each view has its own


# Crop ---------------------------------------------------------------------------------------------

CROP = {
    "crop": True,
    "area_min": 0.2,
    "area_max": 0.9,
    "aspect_min": 3 / 4,
    "aspect_max": 4 / 3,
    "min_object_covered": 0.1,
}


LIMITS = {
    "area_min": (0.6, lambda box: share(box) >= 0.6),
    "area_max": (0.4, lambda box: share(box) <= 0.4),
    "min_object_covered": (0.6, lambda box: share(box) >= 0.6),
    "aspect_min": (1.1, lambda box: aspect(box)[1] >= 1.1),
    "aspect_max": (0.9, lambda box: aspect(box)[0] <= 0.9),
}


def boxes(view, mine=None, theirs=None):
    """Return y, x, height, width of each crop, pixels, read off the ramps in a view."""
    mine, theirs = CROP | (mine or {}), CROP | (theirs or {})
    found, _ = apart(view, mine, theirs, pixels="ramp", augment__grid="half_pixel")
    size, rows, columns = found.shape[1], *(255 / 6 * found[..., i] for i in (0, 1))
    middle = size // 2
    height = (rows[:, middle + 4, middle] - rows[:, middle - 4, middle]) / 8 * size
    width = (columns[:, middle, middle + 4] - columns[:, middle, middle - 4]) / 8 * size
    y = rows[:, middle, middle] + 0.5 - (middle + 0.5) * height / size
    x = columns[:, middle, middle] + 0.5 - (middle + 0.5) * width / size
    exact = np.stack([y, x, height, width], 1)
    close(exact, np.rint(exact), 0.02)
    return np.rint(exact)


def share(box):
    return box[:, 2] * box[:, 3] / 40**2


def aspect(box):
    """Return the smallest and largest aspect that is rounded to these sides."""
    return (box[:, 3] - 0.5) / box[:, 2], (box[:, 3] + 0.5) / box[:, 2]


@PAIR
def test_crops_fill_their_limits(view):
    box = boxes(view)
    assert np.all(box[:, :2] >= 0) and np.all(box[:, :2] + box[:, 2:] <= 40)
    assert 0.2 <= share(box).min() < 0.3 and 0.7 < share(box).max() <= 0.9
    low, high = aspect(box)
    assert np.all(high >= 3 / 4) and np.all(low <= 4 / 3)
    assert low.min() < 0.85 and high.max() > 1.2
    assert np.ptp(box[:, 0]) > 10 and np.ptp(box[:, 1]) > 10


@PAIR
@pytest.mark.parametrize("field", LIMITS)
def test_a_limit_of_the_crop_holds_where_it_is_set(view, field):
    (limit, holds), other = LIMITS[field], beside(view, field, LIMITS)
    assert np.all(holds(boxes(view, {field: limit}, {other: LIMITS[other][0]})))
    assert not np.all(holds(boxes(view)))


def test_the_grid_is_the_law_of_the_resize():
    """Of 24 pixels to 12: every other one; four taps about each middle; eight, of half the pace."""
    corner, half_pixel, antialias = (
        shown.views(data__image_size=12, augment__grid=grid, count=8)[0]
        for grid in ("corner", "half_pixel", "antialias")
    )
    images = shown.views(count=8)[2]
    close(corner, images[:, ::2, ::2])
    for found, distances in (
        (half_pixel, np.array([1.5, 0.5])),
        (antialias, np.array([1.75, 1.25, 0.75, 0.25])),
    ):
        taps = keys(distances)
        taps, want = np.concatenate([taps, taps[::-1]]) / (2 * taps.sum()), images
        for axis in (1, 2):  # away from the borders
            windows = np.lib.stride_tricks.sliding_window_view(want, len(taps), axis) @ taps
            want = np.take(windows, range(1, windows.shape[axis], 2), axis)
        edge = (12 - want.shape[1]) // 2
        close(found[:, edge : 12 - edge, edge : 12 - edge], want, 1e-5)


def keys(distance):
    """Return Keys' cubic kernel (1981) with a = -1/2."""
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    return np.where(distance < 1, near, -0.5 * (distance - 1) * (distance - 2) ** 2)


# Which views there are ----------------------------------------------------------------------------


@PAIR
def test_copies_are_further_views_of_the_same_policy(view):
    made, images = shown.groups(**{f"{view}__copies": 2, f"{view}__flip": 1.0})
    mirrored = images[:, :, ::-1]
    want = [mirrored, mirrored, images] if view == "first" else [images, mirrored, mirrored]
    close(made["views"], np.stack(want, 1))


@PAIR
def test_a_view_may_have_a_group_and_a_size_of_its_own(view):
    made, images = shown.groups(
        **{f"{view}__group": "small", f"{view}__size": 12, f"{view}__flip": 1.0}
    )
    assert made.keys() == {"views", "small"}
    close(made["views"][:, 0], images)
    close(made["small"][:, 0], images[:, ::2, ::2][:, :, ::-1])


def test_brightness_may_be_added():
    first, images = apart("first", jitter(brightness=MOST), augment__brightness_mode="add")
    added = first - images
    assert np.ptp(added, (1, 2, 3)).max() < 1e-5
    of_image = added.mean((1, 2, 3))
    assert of_image.min() < -0.8 * MOST and 0.8 * MOST < of_image.max() <= MOST
