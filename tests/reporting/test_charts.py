"""Charts: every mark stands where its value says, and can be told from every other."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from simclr_jax.reporting import axes, charts, style
from simclr_jax.reporting.charts import Series


def drawn(svg):
    return ElementTree.fromstring(svg)


def places(path):
    """Return the absolute points `[n, 2]` of a path of straight lines."""
    return np.array(re.findall(r"(-?[\d.]+),(-?[\d.]+)", path), float)


def paths(svg, kind):
    return [e.get("d") for e in drawn(svg).iter("path") if e.get("class").split()[0] == kind]


def test_a_line_goes_through_its_values():
    steps, values = np.array([10.0, 20.0, 40.0]), np.array([1.0, 3.0, 2.0])
    svg = charts.line_chart([Series("a", steps, values)], "about")
    (path,) = paths(svg, "line")
    x, y = places(path).T
    assert x[-1] == axes.WIDTH - axes.RIGHT
    assert (x - axes.LEFT) / (x[-1] - axes.LEFT) == pytest.approx(steps / 40, abs=1e-3)
    # Upwards is more, and equal differences are equally far apart.
    assert (y[0] - y[1]) == pytest.approx(2 * (y[0] - y[2]), abs=0.3)
    assert axes.TOP <= y.min() < y.max() <= axes.HEIGHT - axes.BOTTOM
    dots = [(float(e.get("cx")), float(e.get("cy"))) for e in drawn(svg).iter("circle")]
    np.testing.assert_allclose(dots, places(path), atol=0.06)


def test_what_is_no_number_is_a_gap():
    values = np.array([1, 2, np.nan, 3, 4, 5, np.nan])
    svg = charts.line_chart([Series("a", np.arange(7.0), values)], "about")
    assert [len(places(path)) for path in paths(svg, "line")] == [2, 3]
    assert "nan" not in svg


@pytest.mark.parametrize("values", [[np.nan], [0.0], [5.0, 5.0], [1e-9, 2e-9], [-1e6, 1e6]])
def test_any_values_can_be_drawn(values):
    svg = charts.line_chart([Series("a", np.arange(float(len(values))), np.array(values))], "about")
    assert "nan" not in svg and "inf" not in svg and drawn(svg).get("viewBox")


def test_a_change_of_a_thousandth_does_not_fill_a_chart():
    svg = charts.line_chart([Series("a", np.arange(2.0), np.array([395.46, 395.5]))], "about")
    y = places(paths(svg, "line")[0])[:, 1]
    assert abs(y[0] - y[1]) < 1


def test_the_band_of_a_long_line_encloses_it():
    y = np.random.RandomState(0).rand(2000)
    svg = charts.line_chart([Series("a", np.arange(2000.0), y)], "about")
    line, band = (places(paths(svg, kind)[0])[:, 1] for kind in ("line", "band"))
    upper, lower = band[: len(line)], band[len(line) :][::-1]
    assert np.all(upper <= line) and np.all(line <= lower)
    assert np.mean(lower - upper) > 50  # of 2000 uniform numbers, by eights


def test_many_points_are_averaged_within_the_band_of_their_range():
    y = np.random.RandomState(0).rand(1000)
    y[:10] = np.nan
    x, mean, low, high = charts.thinned(np.arange(1000.0), y, 100)
    assert len(x) == 100 and np.isnan(mean[0])
    for i in range(1, 100):
        group = y[10 * i : 10 * i + 10]
        assert x[i] == 10 * i + 4.5
        assert (low[i], high[i]) == (group.min(), group.max())
        assert mean[i] == pytest.approx(group.mean())


@pytest.mark.parametrize(
    "low, high", [(0, 1), (-3.7, -0.62), (12.03, 12.48), (0, 45000), (0, 3e-5)]
)
@pytest.mark.parametrize("percent", [False, True])
def test_ticks_are_round_and_their_labels_differ(low, high, percent):
    axis = axes.y_axis(low, high, percent)
    assert 2 <= len(axis.ticks) <= 5
    assert low - 1e-9 <= axis.ticks[0] and axis.ticks[-1] <= high * (1 + 1e-9)
    step = np.diff(axis.ticks)[0]
    assert f"{step:.0e}"[0] in "125"
    labels = [axis.label(tick) for tick in axis.ticks]
    assert len(set(labels)) == len(labels)
    for label, tick in zip(labels, axis.ticks, strict=True):
        number, unit = re.fullmatch(r"([\d.,e\u2212-]+)( %|k)?", label).groups()
        scale = {" %": 0.01, "k": 1000, None: 1}[unit]
        said = float(number.replace(",", "").replace("\u2212", "-")) * scale
        assert said == pytest.approx(tick, abs=1e-9)


def test_numbers_of_small_shares_stay_within_the_chart():
    """Shares of a hundred thousandth are as good as none."""
    values = np.array([9e-6, 1.1e-5])
    svg = charts.line_chart([Series("a", np.array([0.0, 8.0]), values)], "about", percent=True)
    labels = [e.text for e in drawn(svg).iter("text") if "%" in (e.text or "")]
    assert labels and max(map(len, labels)) <= len("0.10 %")


def test_histograms_of_different_sizes_have_the_same_area():
    random = np.random.RandomState(0)
    samples = [("few", random.randn(50)), ("many", 3 + random.randn(5000))]
    svg = charts.histograms(samples, "about", "x")
    areas, middles = [], []
    for path in paths(svg, "area"):
        x, y = places(path).T
        height = axes.HEIGHT - axes.BOTTOM - y
        areas.append(np.trapezoid(height, x))
        middles.append(np.trapezoid(height * x, x) / areas[-1])
    assert areas[0] == pytest.approx(areas[1], rel=0.01)
    assert middles[0] < middles[1]


def test_a_map_keeps_proportions_and_groups():
    points = np.array([[0.0, 0], [4, 0], [4, 2], [0, 2]])
    svg = charts.scatter_map(points, np.array([0, 0, 1, -1]), ["a", "b"], "about")
    marks = {e.get("class"): e.get("d") for e in drawn(svg).iter("path")}
    at = {kind: places("".join(re.findall(r"M[\d.]+,[\d.]+", d))) for kind, d in marks.items()}
    assert {kind: len(xy) for kind, xy in at.items()} == {"f0": 2, "f1": 1, "rest": 1}
    (x0, y0), (x1, y1) = at["f0"]
    (x2, y2), (x3, _) = at["f1"][0], at["rest"][0]
    assert y0 == y1 and x1 == x2 and x0 == x3
    assert x1 - x0 == pytest.approx(2 * (y1 - y2), abs=0.2) and y2 < y1
    assert [e.text for e in drawn(svg).iter("text")] == ["a", "b"]


def test_a_name_stands_where_its_group_is_thickest():
    cluster = np.random.RandomState(0).randn(12, 2)
    angle = np.linspace(0, 6, 30)
    ring = [200, 0] + 60 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    # Mean and median of these are places where none of them is.
    assert np.linalg.norm(charts.densest(np.concatenate([ring, cluster]))) < 3


def test_names_that_would_overlap_are_moved_apart():
    spots = charts.apart([(100, 50), (110, 52), (300, 50), (105, 61)], ["shirt", "skirt", "x", "y"])
    assert spots[0] == (100, 50) and spots[2] == (300, 50)
    below = sorted(y for x, y in spots if x < 200)
    assert min(np.diff(below)) >= charts.LINE


def test_all_marks_of_a_map_differ():
    marks = [(group % style.COLOURS, charts.mark(group)) for group in range(charts.MOST_GROUPS)]
    assert len(set(marks)) == charts.MOST_GROUPS == 24


def test_confusions_stand_in_the_row_of_their_label():
    counts = np.array([[5, 3], [0, 7]])
    svg = charts.heat_map(counts, ["cat", "dog"], "about")
    cells = {
        cell.find("title").text: (float(cell.get("x")), float(cell.get("y")))
        for cell in drawn(svg).iter("rect")
    }
    right, mistake = cells["cat taken for cat: 5 (62.5%)"], cells["cat taken for dog: 3 (37.5%)"]
    assert mistake[0] > right[0] and mistake[1] == right[1]
    row = {e.text: float(e.get("y")) for e in drawn(svg).iter("text") if e.get("y")}
    assert row["3"] == pytest.approx(row["cat"], abs=1)
    assert row["7"] == pytest.approx(row["dog"], abs=1)
    assert "0" not in row


def test_an_interval_is_drawn_about_its_value():
    svg = charts.interval_bar(0.5, 0.25, 0.75)
    start, end = map(float, re.search(r"M([\d.]+),8H([\d.]+)", svg).groups())
    middle = float(re.search(r'cx="([\d.]+)"', svg)[1])
    assert middle == pytest.approx((start + end) / 2) and end - start == pytest.approx(44)


# Machado et al. (2009), severity 1, on linear RGB.
EYES = {
    "normal": np.eye(3),
    "protanope": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranope": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def linear(colour):
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    """Convert linear RGB (Ottosson 2020)."""
    to_cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.array(to_lab) @ np.cbrt(np.array(to_cones) @ np.clip(rgb, 0, 1))


@pytest.mark.parametrize("palette, paper", [(style.LIGHT, "#ffffff"), (style.DARK, "#15171b")])
def test_colours_differ_for_every_eye_and_from_the_paper(palette, paper):
    assert f"--paper: {paper}" in style.CSS
    for eye, one, other in itertools.product(EYES, palette, palette):
        seen = [oklab(np.array(EYES[eye]) @ linear(colour)) for colour in (one, other)]
        assert one == other or np.linalg.norm(seen[0] - seen[1]) >= 0.15
    luminance = [float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (*palette, paper)]
    assert all(max(y / luminance[-1], luminance[-1] / y) >= 3.1 for y in luminance[:-1])
