"""Faster products and shorter numbers: what `augment.precision` and `augment.dtype` do to pixels.

`python -m pytest -s tests/augment/test_precision.py` prints the table of docs/performance.md.
"""

from __future__ import annotations

import functools

import jax
import ml_dtypes
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from simclr_jax import recipes
from simclr_jax.augment import on_device
from simclr_jax.augment.draws import draw_views
from simclr_jax.augment.policy import PRECISIONS, Policy
from simclr_jax.augment.products import product
from simclr_jax.data.canvas import Canvas
from simclr_jax.stages import views

SIDE, VIEWS = 512, 8  # of the canvas, pixels; of each photograph and resize grid
# Largest and mean error, in 1/255, by precision and dtype.
FOUND = {
    ("bfloat16_3x", "float32"): (0.0055, 0.00028),
    ("bfloat16", "float32"): (3.5, 0.24),
    ("float32", "bfloat16"): (3.9, 0.18),
    ("bfloat16_3x", "bfloat16"): (3.9, 0.18),
    ("bfloat16", "bfloat16"): (5.3, 0.35),
}


BYTES = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3)).astype(np.uint8)


def short(x):
    """Round to bfloat16, in float64."""
    return x.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16"])
def test_a_product_of_each_precision_is_that_of_its_parts(precision, dtype):
    random = np.random.default_rng(1)
    weights = random.normal(size=(9, 300)).astype(np.float32)
    values = random.integers(0, 256, (300, 5)) if dtype == "uint8" else random.random((300, 5))
    values = values.astype(dtype if dtype != "bfloat16" else ml_dtypes.bfloat16)
    w, v = weights.astype(float), values.astype(float)
    high, first = short(w), short(v)
    low, second = short(w - high), short(v - first)
    wanted = {
        "float32": w @ v,
        # Accelerators leave out low @ second, which is as small as what is rounded off.
        "bfloat16_3x": (high + low) @ (first + second),
        "bfloat16": high @ first,
    }
    made = np.asarray(
        jax.jit(product, static_argnums=(0, 3))("oh,hw->ow", weights, values, precision)
    )
    assert made.dtype == np.float32
    scale = np.abs(w) @ np.abs(v)
    assert np.abs((made - wanted[precision]) / scale).max() < 2e-7
    # 24, 16 and 8 bits: what follows is told apart from what precedes.
    exact = np.abs((wanted[precision] - w @ v) / scale).max()
    assert exact <= {"float32": 0, "bfloat16_3x": 2**-17, "bfloat16": 2**-9}[precision]
    assert exact >= {"float32": 0, "bfloat16_3x": 2**-24, "bfloat16": 2**-14}[precision]


def sent(placement):
    """Return a batch of two images as a placement sends it."""
    places = {name: np.array([[0, 0], [0, 1]], np.uint32) for name in ("position", "start")}
    if placement == "device":
        return places | {"image": BYTES}
    canvas = np.zeros((2, 48, 48, 3), np.uint8)
    canvas[:, :40, :30] = BYTES
    return places | {"canvas": canvas, "size": np.array([[40, 30]] * 2, np.int32)}


@pytest.mark.parametrize("placement", ["device", "canvas"])
def test_a_recipe_says_how_exact_its_views_are(placement):
    def made(**fields):
        c = recipes.base()
        c.data.image_size, c.augment.placement = 24, placement
        for view in c.augment.views.values():
            view.update(jitter=0.0, grayscale=0.0, blur=1.0)
        c.augment.update(fields)
        return np.asarray(jax.jit(views.view_maker(c))(sent(placement))["views"])

    exact = made()
    errors = {p: np.abs(made(precision=p) - exact).max() for p in PRECISIONS}
    assert errors["float32"] == 0 < errors["bfloat16_3x"] < 1e-4 < errors["bfloat16"] < 0.05
    shorter = made(dtype="bfloat16")
    np.testing.assert_array_equal(shorter, short(shorter))
    assert 1e-4 < np.abs(shorter - exact).max() < 0.05


@functools.cache
def photographs():
    """Return the two photographs of scikit-learn on canvases, `[2, s, s, 3]`, and their sizes."""
    canvases, sizes = np.zeros((2, SIDE, SIDE, 3), np.uint8), np.zeros((2, 2), np.int32)
    for i, image in enumerate(load_sample_images().images):
        sizes[i] = Canvas(SIDE).fit(image, canvases[i])
    return canvases, sizes


@functools.cache
def made(grid, precision, dtype):
    """Return views `[2, VIEWS, 224, 224, 3]` of 0 to 255, with the same draws at every call."""
    policies = (Policy(224, grid=grid, precision=precision, dtype=dtype),) * VIEWS

    def views(canvas, size, position):
        drawn = draw_views({"v": policies}, 0, position, position, size[0], size[1])["v"]
        return jax.numpy.stack(on_device.augment_from_canvas(canvas, drawn, policies))

    canvases, sizes = photographs()
    positions = np.array([[0, 0], [0, 1]], np.uint32)
    found = jax.jit(jax.vmap(views))(canvases, sizes, positions)
    return 255 * np.asarray(found.astype("float32"))


@pytest.mark.slow
@pytest.mark.parametrize("precision, dtype", FOUND, ids=" ".join)
def test_errors_on_photographs_are_those_of_the_documentation(precision, dtype):
    errors = [
        np.abs(made(grid, precision, dtype) - made(grid, "float32", "float32"))
        for grid in ("corner", "antialias")
    ]
    most, mean = np.max(errors), np.mean(errors)
    print(f"\n{precision} {dtype}: largest {most:.3g}, mean {mean:.3g} of 1/255")
    said_most, said_mean = FOUND[precision, dtype]
    assert said_mean / 1.5 < mean < 1.5 * said_mean
    assert said_most / 3 < most < 3 * said_most
