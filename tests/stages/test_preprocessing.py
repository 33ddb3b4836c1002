"""What is between an image and a frozen encoder, against the same laws written out in NumPy."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from stages import noisy
from train import tiny

from simclr_jax.stages import preprocessing
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.preprocessing import Preprocessing

GRIDS = ("corner", "half_pixel", "antialias")


def image(height, width, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    "size, height, width", [(32, 50, 41), (33, 50, 41), (40, 61, 90), (8, 10, 10), (48, 20, 30)]
)
def test_an_evaluation_view_is_the_central_crop_resized(grid, size, height, width):
    """The whole shorter side up to 32 pixels, 87.5 % of it above."""
    prepare = Preprocessing.of(tiny.recipe(data__image_size=size, augment__grid=grid), 3)
    pixels = image(height, width)
    want = noisy.evaluation_view(pixels, size, grid)
    close = 2e-4 if grid == "antialias" else 1e-5
    np.testing.assert_allclose(prepare(pixels), want, atol=close)
    found = jax.jit(prepare.on_device)(pixels[None])[0]
    np.testing.assert_allclose(found, want, atol=close)
    # Where they enlarge, two of them are the same.
    like = (
        ("half_pixel", "antialias") if min(height, width) < size and grid != "corner" else (grid,)
    )
    others = [noisy.evaluation_view(pixels, size, other) for other in GRIDS if other not in like]
    assert all(np.abs(prepare(pixels) - other).max() > 0.01 for other in others)


def test_a_small_image_of_its_own_size_is_not_touched():
    prepare = Preprocessing.of(tiny.recipe(), 3)
    pixels = image(8, 8)
    np.testing.assert_allclose(prepare(pixels), pixels / 255, atol=1e-7)
    np.testing.assert_allclose(prepare.on_device(pixels[None])[0], pixels / 255, atol=1e-7)
    # A large one is: of its own size only the middle is looked at.
    large = Preprocessing.of(tiny.recipe(data__image_size=40), 3)
    assert np.abs(large(image(40, 40)) - image(40, 40) / 255).max() > 0.1


@pytest.mark.parametrize("size, share", [(31, 1.0), (32, 1.0), (33, 0.875), (224, 0.875)])
def test_the_share_of_the_side_changes_above_32_pixels(size, share):
    assert Preprocessing.of(tiny.recipe(data__image_size=size), 3).proportion == share


@pytest.mark.parametrize("height, width", [(63, 64), (64, 65), (128, 127), (65, 200)])
def test_the_padding_of_the_canvas_has_no_part_in_a_view(height, width):
    """Sides just below, at and above a multiple of the canvas."""
    prepare = Preprocessing(20, "half_pixel", 3, 1.0)
    want = noisy.evaluation_view(image(height, width), 20, "half_pixel")
    np.testing.assert_allclose(prepare(image(height, width)), want, atol=1e-5)
    assert preprocessing.CANVAS == 64


def test_gray_is_luminance_of_each_pixel():
    prepare, pixels = Preprocessing(8, "corner", 1, 1.0), image(8, 8)
    gray = pixels.astype(np.float64) @ [0.299, 0.587, 0.114]
    np.testing.assert_array_equal(prepare.with_channels(pixels)[..., 0], np.rint(gray))
    floats = prepare.with_channels(pixels.astype(np.float32) / 255)
    np.testing.assert_allclose(floats[..., 0], gray / 255, rtol=1e-5)
    assert prepare(pixels).shape == (8, 8, 1) == prepare(image(8, 8)[..., :1]).shape


def test_floats_and_bytes_are_the_same_image():
    prepare, pixels = Preprocessing(16, "half_pixel", 3, 0.875), image(40, 30)
    floats = pixels / 255
    np.testing.assert_allclose(prepare(floats), prepare(pixels), atol=1e-5)
    np.testing.assert_allclose(prepare(floats.astype(np.float32)), prepare(pixels), atol=1e-5)


def test_opencv_cuts_the_same_middle_and_averages_it():
    """To a third of the size: that is then the mean of each square of nine."""
    pytest.importorskip("cv2")
    prepare = Preprocessing(20, "opencv", 3, 1.0)
    pixels = image(60, 84)
    want = pixels[:, 12:72].reshape(20, 3, 20, 3, 3).mean((1, 3))
    found = prepare(pixels)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, want, atol=1)
    floats = prepare(pixels / 255)
    np.testing.assert_array_equal(floats, found)
    np.testing.assert_allclose(prepare.on_device(found[None])[0], found / 255, atol=1e-6)


@pytest.mark.parametrize("placement", ["device", "host"])
def test_evaluation_images_are_the_views_of_their_split(placement):
    """On the device, or by the host, which marks what it could not read."""
    train, test = noisy.split(1, (9, 7, 5, 3), unreadable=3), noisy.split(2, (8, 6, 4, 3))
    c = tiny.recipe(augment__placement=placement, data__max_bad_fraction=0.2)
    inputs = Inputs(c, train, test)
    for source, split in ((inputs.train, train), (inputs.test, test)):
        images = inputs.for_evaluation(source)
        shown = np.asarray(inputs.prepare(np.asarray(images[0 : len(split)])))
        rows = inputs.readable(source, images)
        whole = np.arange(len(split))
        want = np.setdiff1d(whole, split.unreadable)
        np.testing.assert_array_equal(whole if rows is None else rows, want)
        np.testing.assert_allclose(shown[want], noisy.evaluation_views(split, want), atol=1e-5)


def test_the_first_batch_is_that_of_the_order_and_its_originals():
    """Unreadable ones are replaced in both; the order is of the recipe's seed."""
    train = noisy.split(1, (9, 7, 5, 3), unreadable=2)
    found = {}
    for seed in (0, 5):
        c = tiny.recipe(seed=seed, data__max_bad_fraction=0.2)
        inputs = Inputs(c, train, train)
        batch = inputs.first(10)
        found[seed] = [int(row) for row in batch["example"]]
        originals = inputs.originals(10)
        for row, original, shown in zip(found[seed], originals, batch["image"], strict=True):
            np.testing.assert_array_equal(original, train.images.pixels[row])
            np.testing.assert_array_equal(shown, original)
        np.testing.assert_array_equal(batch["label"], train.labels[found[seed]])
        assert not set(found[seed]) & set(train.unreadable)
        assert len(inputs.first(99)["image"]) == len(train) == len(inputs.originals(99))
    assert found[0] != found[5]
