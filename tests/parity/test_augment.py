"""Our augmentation against recordings of the official one: pixels on equal draws, laws of draws."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import augment_calls
import golden
import jax
import numpy as np
import pytest
from scipy import stats

from simclr_jax.augment import draws
from simclr_jax.augment.policy import Policy

# Pixels are near 1 and both programs are single precision. A resize or a blur sums at most 23
# products twice; a colour operation has a mean over 2000 pixels, or divisions by the spread;
# a chain has four colour operations, each of which multiplies earlier errors by up to 1.8.
EPSILON = float(np.finfo(np.float32).eps)
TOLERANCE = {"exact": 1e-9, "resize": 8, "blur": 8, "color": 16, "chain": 32}  # times EPSILON

SAMPLES = 10_000
REJECT = 1e-4  # of a law, at a fixed seed: below this the two samples differ


def laws(function: str) -> list:
    """Return recorded samples of an official function."""
    return golden.cases("augment_law", lambda r: augment_calls.function(r) == function)


def operations(kind: str) -> list:
    return golden.cases(kind, lambda r: augment_calls.function(r) not in augment_calls.LAWS)


def cropping() -> list:
    return [
        *golden.cases("augment_op", lambda r: augment_calls.function(r) in augment_calls.CROPPING),
        *golden.cases("preprocess", lambda r: augment_calls.function(r) in augment_calls.CROPPING),
    ]


@pytest.mark.parametrize("recording", cropping())
def test_equal_draws_give_the_official_pixels_from_a_canvas(recording, record_parity):
    test_equal_draws_give_the_official_pixels(recording, "canvas", record_parity)


@pytest.mark.parametrize("placement", ["device", "host"])
@pytest.mark.parametrize("recording", operations("augment_op") + operations("preprocess"))
def test_equal_draws_give_the_official_pixels(recording, placement, record_parity):
    function = augment_calls.function(recording)
    if function in augment_calls.NOT_OURS:
        pytest.skip(f"{function}: {augment_calls.NOT_OURS[function]}")
    group, pairs = augment_calls.comparisons(recording, placement)
    errors = [np.abs(np.subtract(ours, official, dtype=float)).max() for ours, official in pairs]
    tolerance = TOLERANCE[group] * EPSILON
    kind = recording.spec["kind"]
    kind = kind if placement == "device" else f"{kind} ({placement})"
    record_parity(kind, recording.name, max(errors), tolerance)


@pytest.mark.parametrize("recording", laws("random_crop_with_resize"))
def test_crop_law(recording, record_parity):
    settings, recorded = recording.settings, recording.arrays["boxes"]
    (height, width), arguments = settings["image"], settings["arguments"]
    assert settings["columns"] == ["y", "x", "height", "width"]
    assert arguments["bounding_boxes"] == "whole image"
    assert len(set(settings["output"])) == 1  # the aspect is relative to that of the output
    ours = boxes(arguments, height, width)
    theirs = crop_columns(recorded, height, width)
    for column, values in crop_columns(ours, height, width).items():
        compare(recording, values, theirs[column], record_parity)
    # What a distance of distributions cannot see: the limits.
    summary = recording.spec["summary"]
    assert crop_columns(ours, height, width)["area"].min() >= (
        arguments["min_object_covered"] - EPSILON
    )
    smaller = ours[ours[:, 2] < height]
    assert (smaller[:, 0] + smaller[:, 2]).max() == summary["max_y_plus_h_where_h_less"]
    smaller = ours[ours[:, 3] < width]
    assert (smaller[:, 1] + smaller[:, 3]).max() == summary["max_x_plus_w_where_w_less"]


@pytest.mark.parametrize(
    "recording",
    golden.cases("augment_op", lambda r: augment_calls.function(r) in augment_calls.LAWS),
)
def test_crop_quantiles(recording, record_parity):
    settings = recording.settings
    bound = ks_bound(settings["samples"])
    for height, width in settings["sizes"]:
        columns = crop_columns(boxes(settings, height, width), height, width)
        for column in ("area", "aspect", "height", "y_fraction", "x_fraction"):
            quantiles = recording.arrays[f"{height}x{width}/{column}_quantiles"]
            level = np.linspace(0, 1, len(quantiles))
            ours = np.sort(columns[column])
            # Our share below and up to each recorded quantile (ties span a range). The quantiles
            # are rounded to single precision in places, hence the slack.
            below = np.searchsorted(ours, quantiles * (1 - 1e-6), "left") / len(ours)
            up_to = np.searchsorted(ours, quantiles * (1 + 1e-6), "right") / len(ours)
            distance = np.maximum(below - level, level - up_to).max()
            record_parity("augment_law", recording.name, distance, bound)


@pytest.mark.parametrize("recording", laws("color_jitter"))
def test_jitter_law(recording, record_parity):
    strength = recording.settings["strength"]
    maxima = dict.fromkeys(("brightness", "contrast", "saturation"), 0.8 * strength)
    ours = samples(Policy(size=8, crop=False, hue=0.2 * strength, **maxima))
    for i, factor in enumerate(("brightness", "contrast", "saturation", "hue")):
        drawn = getattr(ours, factor)
        compare(recording, drawn, recording.arrays["factors"][:, i], record_parity)
        low, high = recording.settings["limits"][factor]
        assert low - EPSILON <= drawn.min() and drawn.max() <= high + EPSILON
    digits = 4 ** np.arange(4)
    compare_categories(
        recording, ours.order @ digits, recording.arrays["order"] @ digits, record_parity
    )


@pytest.mark.parametrize("recording", laws("preprocess_for_train"))
def test_application_law(recording, record_parity):
    """Flip, jitter and grayscale jointly: eight outcomes, so a dependence would show."""
    probabilities = recording.settings["probabilities"]
    chances = dict(zip(recording.settings["columns"], probabilities, strict=True))
    ours = samples(Policy(size=8, crop=False, **chances))
    applied = np.stack([getattr(ours, c) for c in recording.settings["columns"]], 1)
    digits = [1, 2, 4]
    compare_categories(
        recording, applied @ digits, recording.arrays["applied"] @ digits, record_parity
    )


@pytest.mark.parametrize("recording", laws("batch_random_blur"))
def test_blur_law(recording, record_parity):
    ours = samples(Policy(size=8, crop=False, blur_sigma=recording.settings["sigma_limits"]))
    compare(recording, ours.sigma, recording.arrays["sigma"].ravel(), record_parity)
    compare_categories(recording, ours.blur, recording.arrays["selected"].ravel(), record_parity)


def ks_bound(recorded: int) -> float:
    """The largest Kolmogorov-Smirnov distance that level REJECT allows."""
    return np.sqrt(-np.log(REJECT / 2) / 2 * (1 / recorded + 1 / SAMPLES))


def compare(recording, ours: np.ndarray, recorded: np.ndarray, record_parity):
    distance = stats.ks_2samp(ours, recorded).statistic
    record_parity(recording.spec["kind"], recording.name, distance, ks_bound(len(recorded)))


def samples(policy: Policy) -> draws.Draws:
    keys = jax.random.split(jax.random.key(20), SAMPLES)
    drawn = jax.jit(jax.vmap(lambda key: draws.sample(key, policy, 8, 8)))(keys)
    return jax.tree.map(np.asarray, drawn)


def boxes(arguments: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    assert arguments["max_attempts"] == 100  # as many as ours
    policy = Policy(
        size=8,
        area=arguments["area_range"],
        aspect=arguments["aspect_ratio_range"],
        min_object_covered=arguments["min_object_covered"],
    )
    keys = jax.random.split(jax.random.key(21), SAMPLES)
    return np.asarray(sample_boxes(keys, policy, height, width))


@functools.partial(jax.jit, static_argnums=1)  # sizes traced: one compilation for all images
def sample_boxes(keys, policy, height, width):
    return jax.vmap(lambda key: draws.crop_box(key, policy, height, width))(keys)


def crop_columns(boxes: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    y, x, rows, columns = boxes.astype(np.int64).T
    return {
        "y": y,
        "x": x,
        # Of the crops that have room to move: so the recording counts.
        "y_fraction": (y / np.maximum(height - rows, 1))[rows < height],
        "x_fraction": (x / np.maximum(width - columns, 1))[columns < width],
        "height": rows,
        "width": columns,
        "area": rows * columns / (height * width),
        "aspect": columns / rows,
    }


def compare_categories(recording, ours: np.ndarray, recorded: np.ndarray, record_parity):
    categories = np.union1d(ours, recorded)
    table = [[np.sum(sample == c) for c in categories] for sample in (ours, recorded)]
    chi_square = stats.chi2_contingency(table, correction=False)
    limit = stats.chi2.isf(REJECT, chi_square.dof)
    record_parity(recording.spec["kind"], recording.name, chi_square.statistic, limit)
