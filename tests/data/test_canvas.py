"""Placement `canvas`: the views that `device` makes, of photographs of any sizes; large ones."""

from __future__ import annotations

import io
import sys

import jax
import numpy as np
import pytest
from data.test_placements import (
    BATCH,
    CANVAS,
    SEED,
    SIZE,
    Photographs,
    loading,
    one_size,
    read_batches,
    recipe,
    views_of,
)
from PIL import Image

from simclr_jax import parallel
from simclr_jax.augment.policy import GRIDS
from simclr_jax.data import batches, decode, order
from simclr_jax.data.canvas import Canvas, fitting
from simclr_jax.data.placements import blocks
from simclr_jax.errors import UserError
from simclr_jax.stages import build, views
from simclr_jax.stages.inputs import Inputs

SHAPES = ((40, 25), (16, CANVAS), (33, 33))


class Sized(Photographs):
    """Images of few sizes, so that `device` can make the views of all of one."""

    def example(self, example):
        random = np.random.RandomState(example)
        shape = SHAPES[example % len(SHAPES)]
        return random.randint(0, 256, (*shape, 3)).astype(np.uint8), example


class Listed(Photographs):
    """Given images, or files to decode, one after another."""

    classes, labels = 0, None

    def __init__(self, *images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def example(self, example):
        image = self.images[example]
        return (decode.decode(image) if isinstance(image, bytes) else image), -1


def plain(c):
    """Leave out of a recipe's views all but crop and flip."""
    for view in c.augment.views.values():
        view.update(jitter=0.0, grayscale=0.0, blur=0.0)
    return c


def by_the_device(c, source, batch):
    """Return the views `[n, 2, s, s, 3]` that placement `device` makes of the images of a batch."""
    made, look = np.zeros((BATCH, 2, c.data.image_size, c.data.image_size, 3)), views.view_maker(c)
    for number in range(len(SHAPES)):
        rows = np.flatnonzero(batch["example"] % len(SHAPES) == number)
        images = np.stack([source.example(example)[0] for example in batch["example"][rows]])
        if c.train.dtype == "float64":  # else each value would be rounded to float32 first
            images = images / 255
        of_one_size = {name: batch[name][rows] for name in ("position", "start")}
        made[rows] = jax.jit(look)(of_one_size | {"image": images})["views"]
    return made


def first_batch(count, of):
    return next(batches.host_batches("canvas", of, iter([batches.request(0, count)])))


def compared(c):
    """Return the views by canvas and by device of one batch."""
    source = Sized()
    (batch,) = read_batches("canvas", loading(source, build.policies(c)))
    assert {tuple(size) for size in batch["size"]} == set(SHAPES)
    return np.asarray(jax.jit(views.view_maker(c))(batch)["views"]), by_the_device(c, source, batch)


def test_photographs_of_any_sizes_give_the_views_of_the_device():
    c = recipe("canvas")
    for view in c.augment.views.values():
        view.update(blur=0.5)
    c.data.image_size = 24
    canvas, device = compared(c)
    # Single precision; saturation and hue divide by spreads that may be small.
    np.testing.assert_allclose(canvas, device, atol=2e-5)
    assert np.abs(canvas[:, 0] - canvas[:, 1]).mean() > 0.05


@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_of_the_device_cuts_canvases(grid):
    c = plain(recipe("canvas"))
    c.augment.grid = grid
    canvas, device = compared(c)
    np.testing.assert_allclose(canvas, device, atol=2e-6)


@pytest.mark.x64
def test_in_float64_nothing_is_lost_on_the_way():
    c = plain(recipe("canvas"))
    c.train.dtype = "float64"
    canvas, device = compared(c)
    np.testing.assert_allclose(canvas, device, atol=1e-14)


def test_what_lies_beyond_an_image_is_not_looked_at():
    c = plain(recipe("canvas"))
    look = jax.jit(views.view_maker(c))
    (batch,) = read_batches("canvas", loading(Sized(), build.policies(c)))
    spoiled = np.full_like(batch["canvas"], 255)
    for row, (height, width) in enumerate(batch["size"]):
        spoiled[row, :height, :width] = batch["canvas"][row, :height, :width]
    assert not np.array_equal(spoiled, batch["canvas"])
    np.testing.assert_array_equal(look(batch | {"canvas": spoiled})["views"], look(batch)["views"])


def test_batches_share_memory_only_when_nobody_holds_one():
    """What was read from an earlier batch stays as it was, and its memory comes back after that."""
    of = loading(Photographs())
    requests = (batches.request(step, BATCH) for step in range(30))
    stream = batches.host_batches("canvas", of, requests)
    kept, places = [], []
    for batch in stream:
        places.append(batch["canvas"].__array_interface__["data"][0])
        if len(kept) < 4:  # by a view, as a transfer that is under way would
            kept.append((batch["canvas"][None, :2], batch["example"][:2]))
        del batch
    for canvases, examples in kept:
        for canvas, example in zip(canvases[0], examples, strict=True):
            image = Photographs().example(example)[0]
            np.testing.assert_array_equal(canvas[: image.shape[0], : image.shape[1]], image)
            assert canvas.sum() == image.sum()
    assert len(set(places[:4])) == 4 and not set(places[4:]) & set(places[:4])
    assert len(set(places)) < 20


@pytest.mark.parametrize("devices", [1, 8])
def test_what_devices_hold_is_not_written_over(devices):
    """Arrays of JAX may lie in the memory of the batch that they were made of."""
    steps, fields = 24, {"batch_size": 16, "first_step": 0, "steps_per_call": 1}
    stream = batches.device_batches(
        "canvas", loading(Photographs()), parallel.make_mesh(devices), total_steps=steps, **fields
    )
    held = [batch for step, (_, batch) in enumerate(stream) if step % 3 == 0]
    for batch in held:
        found = {name: np.asarray(batch[name])[0] for name in ("canvas", "size", "example")}
        for canvas, size, example in zip(*found.values(), strict=True):
            image = Photographs().example(example)[0]
            assert tuple(size) == image.shape[:2]
            np.testing.assert_array_equal(canvas[: size[0], : size[1]], image)


def test_gray_images_have_canvases_of_one_channel():
    canvas, device = (views_of(plain(recipe(p)), one_size(1)) for p in ("canvas", "device"))
    assert canvas["views"].shape[-1] == 1
    np.testing.assert_allclose(canvas["views"], device["views"], atol=2e-6)


def test_rows_of_a_large_batch_stand_in_their_order():
    """A batch of several blocks, which several threads fill."""
    count, source = 2 * blocks.BLOCK + 7, Photographs()
    of = loading(source)
    batch = first_batch(count, of)
    np.testing.assert_array_equal(batch["example"], order.examples(SEED, np.arange(count), SIZE))
    np.testing.assert_array_equal(batch["label"], batch["example"])
    for row, example in enumerate(batch["example"]):
        image = source.example(example)[0]
        height, width, _ = image.shape
        assert tuple(batch["size"][row]) == (height, width)
        np.testing.assert_array_equal(batch["canvas"][row, :height, :width], image)
        assert batch["canvas"][row].sum() == image.sum()  # and black beyond it


def averaged(image, height, width):
    """Return the mean of what each pixel of the result covers, in float64."""

    def weights(length, out):
        edges, pixels = np.arange(out + 1) * length / out, np.arange(length)
        covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        return np.maximum(covered, 0) * out / length

    rows, columns = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.einsum("yh,xw,hwc->yxc", rows, columns, image.astype(float))


def between(image, height, width):
    """Return the image linearly between its pixels at half-pixel positions, in float64."""

    def weights(length, out):
        at = np.clip((np.arange(out) + 0.5) * length / out - 0.5, 0, length - 1)
        return np.maximum(1 - np.abs(at[:, None] - np.arange(length)), 0)

    rows, columns = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.einsum("yh,xw,hwc->yxc", rows, columns, image.astype(float))


def on(canvas, *images):
    """Return the batch of all images in their order, on a canvas."""
    of = loading(Listed(*images), canvas=canvas)
    return first_batch(len(images), of)


def noise(height, width):
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)


def test_images_beyond_the_canvas_are_scaled_down_counted_and_said():
    said = []
    canvas = Canvas(32, say=said.append)
    images = {(64, 48): (32, 24), (21, 50): (13, 32), (32, 32): (32, 32), (99, 1): (32, 1)}
    batch = on(canvas, *(noise(*shape) for shape in images))
    found = {}
    for row, example in enumerate(batch["example"]):
        shape = list(images)[example]
        height, width = found[shape] = tuple(batch["size"][row])
        law = averaged if max(shape) > 64 else between
        wanted = law(noise(*shape), height, width)
        assert np.abs(batch["canvas"][row, :height, :width] - wanted).max() <= 1
    assert found == images
    assert (canvas.read, canvas.larger) == (4, 3)
    assert len(said) == 1 and "augment.canvas=32" in said[0] and ".jpg is " in said[0]


def test_an_image_that_fits_is_left_alone_and_none_vanishes():
    assert fitting(512, 300, 512) == (512, 300)
    assert fitting(513, 300, 512) == (512, 299)
    assert fitting(5000, 3, 512) == (512, 1)


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("asked", [False, True])
def test_jpegs_are_decoded_at_a_part_of_their_size_only_if_asked(asked):
    simplejpeg = pytest.importorskip("simplejpeg")
    said = []
    canvas = Canvas(32, jpeg_scaling=asked, say=said.append)
    large, small = noise(96, 128), noise(20, 30)
    batch = on(canvas, jpeg(large), png(small), jpeg(small))
    sizes = {int(e): tuple(size) for e, size in zip(batch["example"], batch["size"], strict=True)}
    assert sizes == {0: (24, 32), 1: (20, 30), 2: (20, 30)}
    row = batch["canvas"][list(batch["example"]).index(0), :24]
    whole = averaged(decode.decode(jpeg(large)), 24, 32)
    if asked:
        quarter = simplejpeg.decode_jpeg(jpeg(large), min_height=24, min_width=32, min_factor=2)
        assert quarter.shape == (24, 32, 3)
        np.testing.assert_array_equal(row, quarter)
        assert np.abs(row - whole).max() > 2
    else:
        assert np.abs(row - whole).max() <= 1
    # By what is stored, and no other image is counted with it.
    assert (canvas.read, canvas.larger) == (3, 1) and "is 96x128 pixels" in said[0]
    # Evaluations read the same sources, whole.
    assert Listed(jpeg(large)).example(0)[0].shape == (96, 128, 3)


def test_a_run_says_how_many_did_not_fit():
    c = recipe("canvas")
    c.augment.canvas, c.data.image_size = 32, 8
    source = Listed(noise(64, 48), noise(20, 20), noise(30, 40), noise(9, 32))
    inputs = Inputs(c, source, source)
    assert inputs.scaled_down() == []
    inputs.first(4)
    inputs.held_out(2)
    (line,) = inputs.scaled_down()
    assert "3 of 6 images read (50.0%)" in line and "augment.canvas=32" in line


def test_the_recipe_says_whether_jpegs_are_scaled():
    pytest.importorskip("simplejpeg")

    def read(scaling):
        c = recipe("canvas")
        c.augment.canvas, c.augment.jpeg_scaling, c.data.image_size = 32, scaling, 8
        source = Listed(jpeg(noise(96, 128)))
        return Inputs(c, source, source).first(1)["canvas"].astype(int)

    assert np.abs(read(True) - read(False)).max() > 2


def test_without_its_libraries_it_ends_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"canvas needs OpenCV.*pip install .*opencv"):
        on(Canvas(32), noise(8, 8))
