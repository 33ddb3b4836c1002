"""Charts as inline SVG: no script; colours are classes of the page's style sheet."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from simclr_jax.reporting import axes
from simclr_jax.reporting.axes import line, svg, text
from simclr_jax.reporting.page import Html, element, join, markup, picture_data
from simclr_jax.reporting.style import COLOURS

MOST_POINTS = 240  # on a line; more are averaged, and a band shows their range
MOST_DOTS = 30  # a line of fewer points shows each
FLAT = 0.02  # of a value: changes below this fill no chart
LEAST_SHARE = 1e-3  # that a chart of shares spans: finer ones would need long numbers
SHAPES = 4  # marks of a map: with the colours they tell MOST_GROUPS apart
MOST_GROUPS = 2 * COLOURS * SHAPES // 2
MAP_SIDE = 520
PICTURE = 42  # side of a picture on a map
LETTER, LINE = 8.5, 15.0  # about the size of a letter of a map's words
NEAR = 10  # neighbours by whose distance the thickest place of a group is found
CELL = 34  # side of a cell of the confusion matrix


@dataclasses.dataclass(frozen=True)
class Series:
    """A line: `y` over `x`, both `[n]`, NaN where there is no value; `colour` is its number."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: int = 0


def line_chart(
    series: Sequence[Series],
    about: str,
    *,
    percent: bool = False,
    reference: tuple[float, str] | None = None,
    until: float = 0.0,
    borders: Sequence[float] = (),
    x_label: str = "step",
) -> Html:
    """Draw lines over a common axis.

    Args:
      series: what to draw.
      about: what the chart shows, for those who hear it.
      percent: values are fractions, written as percentages.
      reference: a value that a dashed line marks, and what it is.
      until: the axis from 0 reaches at least to here, so that charts of one run share it.
      borders: places of x that a line from top to bottom marks.
      x_label: what `x` counts.
    """
    marked = [np.array([reference[0]])] if reference else []
    low, high = axes.span([*(s.y for s in series), *marked], least=FLAT)
    if percent:
        low, high = max(low, 0.0), min(high, 1.0)
        high = max(high, min(low + LEAST_SHARE, 1.0))
    last = max([until, *(float(s.x[-1]) for s in series)])
    x, y = axes.x_axis(0.0, last or 1.0), axes.y_axis(low, high, percent)
    parts: list[object] = [axes.frame(x, x_label, y)]
    for border in borders:
        at = round(float(x(border)), 1)
        parts.append(line(at, axes.TOP, at, axes.HEIGHT - axes.BOTTOM, "border"))
    if reference:
        at = round(float(y(reference[0])), 1)
        parts.append(line(axes.LEFT, at, axes.WIDTH - axes.RIGHT, at, "reference"))
        parts.append(text(axes.WIDTH - axes.RIGHT, at - 4, reference[1], "end"))
    parts += [_line(s, x, y) for s in series]
    return svg(axes.WIDTH, axes.HEIGHT, about, *parts)


def _line(series: Series, x: axes.Axis, y: axes.Axis) -> Html:
    colour, parts = series.colour % COLOURS, []
    steps, mean, low, high = thinned(series.x, series.y, MOST_POINTS)
    for rows in _runs(np.isfinite(mean)):
        xs = x(steps[rows])
        if len(series.x) > MOST_POINTS:
            outline = _path(np.r_[xs, xs[::-1]], np.r_[y(high[rows]), y(low[rows])[::-1]])
            parts.append(Html(f'<path class="band f{colour}" d="{outline}z"/>'))
        parts.append(Html(f'<path class="line s{colour}" d="{_path(xs, y(mean[rows]))}"/>'))
        for at, step, value in zip(xs, steps[rows], mean[rows], strict=True):
            if len(mean) <= MOST_DOTS or len(rows) == 1:
                said = markup(f"{series.name}, {step:g}: {written(value, y.percent)}")
                place = f'cx="{at:.1f}" cy="{float(y(value)):.1f}" r="2.6"'
                parts.append(
                    Html(f'<circle class="f{colour}" {place}><title>{said}</title></circle>')
                )
    return join(parts, "")


def written(value: float, percent: bool) -> str:
    """Return a value as it is told to those who point at it, or hear it."""
    return f"{100 * value:.1f} %" if percent else f"{value:.4g}"


def thinned(
    x: np.ndarray, y: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Average neighbouring points until at most `most` are left.

    Returns:
      x, mean, lowest and highest y, each `[k]`, k <= most. A group without any value is NaN.
    """
    if len(x) <= most:
        return x, y, y, y
    groups = np.array_split(np.arange(len(x)), most)
    rows = []
    for group in groups:
        values = y[group][np.isfinite(y[group])]
        found = (values.mean(), values.min(), values.max()) if values.size else (np.nan,) * 3
        rows.append((x[group].mean(), *found))
    columns = np.array(rows).T
    return columns[0], columns[1], columns[2], columns[3]


def _runs(present: np.ndarray) -> list[np.ndarray]:
    """Return the stretches of rows without a gap."""
    rows = np.flatnonzero(present)
    stretches = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    return [rows for rows in stretches if len(rows)]


def _path(xs: np.ndarray, ys: np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys, strict=True))


def histograms(samples: Sequence[tuple[str, np.ndarray]], about: str, x_label: str) -> Html:
    """Draw the distributions of samples over each other, each with an area of its own 1."""
    low, high = axes.span([values for _, values in samples], padding=0.02)
    edges = np.linspace(low, high, 61)
    shares = [np.histogram(values, edges)[0] / max(1, len(values)) for _, values in samples]
    x = axes.x_axis(low, high)
    y = axes.y_axis(0, 1.05 * max(share.max() for share in shares))
    parts: list[object] = [axes.frame(x, x_label)]
    for i, share in enumerate(shares):
        # Up and down at each edge, from the base line and back to it.
        xs, ys = np.repeat(x(edges), 2), np.r_[y(0), np.repeat(y(share), 2), y(0)]
        style = f"area f{i % COLOURS} s{i % COLOURS}"
        parts.append(Html(f'<path class="{style}" d="{_path(xs, ys)}z"/>'))
    return svg(axes.WIDTH, axes.HEIGHT, about, *parts)


def scatter_map(points: np.ndarray, groups: np.ndarray, names: Sequence[str], about: str) -> Html:
    """Draw a map of points; each group has a colour and a mark, and its name in its middle.

    Args:
      points: `[n, 2]`.
      groups: int `[n]`: the number of a name, or -1 for those that are drawn grey.
      names: of the groups, at most MOST_GROUPS.
      about: what the map shows, for those who hear it.
    """
    places, width, height = _placed(points, 12)
    parts: list[object] = []
    for group in range(-1, len(names)):
        marks = "".join(f"M{a:.1f},{b:.1f}{mark(group)}" for a, b in places[groups == group])
        if marks:
            style = f"f{group % COLOURS}" if group >= 0 else "rest"
            parts.append(Html(f'<path class="{style}" fill-opacity=".8" d="{marks}"/>'))
    there = [i for i in range(len(names)) if (groups == i).any()]
    spots = apart([densest(places[groups == i]) for i in there], [names[i] for i in there])
    for i, (a, b) in zip(there, spots, strict=True):
        parts.append(text(round(a, 1), round(b + 5, 1), names[i], "middle", "map-label"))
    return svg(round(width), round(height), about, *parts)


def picture_map(points: np.ndarray, pictures: Sequence[tuple[int, bytes]], about: str) -> Html:
    """Draw pictures in the places of some points of a map `[n, 2]`, the others as dots.

    `pictures` has rows of points, and PNG or JPEG.
    """
    places, width, height = _placed(points, PICTURE // 2)
    dots = "".join(f"M{a:.1f},{b:.1f}{mark(-1)}" for a, b in places)
    parts: list[object] = [Html(f'<path class="rest" fill-opacity=".8" d="{dots}"/>')]
    for row, content in pictures:
        a, b = places[row] - PICTURE / 2
        data = picture_data(content)
        box = f'x="{a:.1f}" y="{b:.1f}" width="{PICTURE}" height="{PICTURE}"'
        parts.append(Html(f'<image {box} href="{data}"/>'))
    return svg(round(width), round(height), about, *parts)


def _placed(points: np.ndarray, margin: int) -> tuple[np.ndarray, float, float]:
    """Return places within a map `[n, 2]`, from its upper left corner, and its width and height."""
    low, high = points.min(axis=0), points.max(axis=0)
    # One scale for both directions: distances mean the same up and across.
    scale = (MAP_SIDE - 2 * margin) / max(float((high - low).max()), 1e-12)
    places = margin + (points - low) * scale
    width, height = 2 * margin + (high - low) * scale
    places[:, 1] = height - places[:, 1]
    return places, width, height


def mark(group: int) -> str:
    """Return the outline of a group's mark about a point: circle, square, triangle or diamond."""
    # 6 colours and 4 shapes: the shift at 12 is what makes all 24 pairs differ.
    shape = (group + group // 12) % SHAPES if group >= 0 else 0
    return (
        "m-2.8,0a2.8,2.8 0 1,0 5.6,0a2.8,2.8 0 1,0 -5.6,0",
        "m-2.5,-2.5h5v5h-5z",
        "m0,-3.4l3.3,5.8h-6.6z",
        "m0,-3.7l3.3,3.7l-3.3,3.7l-3.3,-3.7z",
    )[shape]


def densest(places: np.ndarray) -> tuple[float, float]:
    """Return the point `[2]` of `[m, 2]` about which the others are thickest.

    Unlike a mean or a median it lies among points of the group when that is scattered.
    """
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    near = np.sort(distances, axis=1)[:, min(NEAR, len(places) - 1)]
    x, y = places[int(np.argmin(near))]
    return float(x), float(y)


def apart(spots: Sequence[tuple[float, float]], names: Sequence[str]) -> list[tuple[float, float]]:
    """Move words down until none lies on another; returns their middles in the same order."""
    placed: dict[int, tuple[float, float]] = {}
    for i in sorted(range(len(spots)), key=lambda i: spots[i][1]):
        x, y = spots[i]
        for j, (other_x, other_y) in placed.items():  # from above
            touching = LETTER * (len(names[i]) + len(names[j])) / 2
            if abs(x - other_x) < touching and abs(y - other_y) < LINE:
                y = other_y + LINE
        placed[i] = (x, y)
    return [placed[i] for i in range(len(spots))]


def legend(names: Sequence[str], marks: bool = False) -> Html:
    """Name the colours 0, 1, ... of lines and areas, or with `marks` those of a map's groups."""

    def key(i: int) -> Html:
        drawn = (
            f'<path class="f{i % COLOURS}" d="M6,6{mark(i)}"/>'
            if marks
            else f'<rect class="f{i % COLOURS}" y="4" width="12" height="4" rx="2"/>'
        )
        return Html(f'<svg class="key" viewBox="0 0 12 12" aria-hidden="true">{drawn}</svg>')

    return element(
        "div", *(element("span", key(i), n) for i, n in enumerate(names)), class_="legend"
    )


def interval_bar(value: float, low: float, high: float, colour: int = 0) -> Html:
    """Draw a fraction and its interval on a line from 0 to 1, for a cell of a table."""
    said = markup(f"{100 * value:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f} %")
    at = [4 + 88 * float(np.clip(v, 0, 1)) for v in (low, value, high)]
    number = colour % COLOURS
    return Html(
        f'<svg class="bar" viewBox="0 0 96 16" role="img" aria-label="{said}">'
        f"{line(4, 8, 92, 8, 'gridline')}"
        f'<path class="range s{number}" d="M{at[0]:.1f},8H{at[2]:.1f}"/>'
        f'<circle cx="{at[1]:.1f}" cy="8" r="2.4" class="f{number}"/></svg>'
    )


def heat_map(counts: np.ndarray, names: Sequence[str], about: str) -> Html:
    """Draw a confusion matrix: rows are labels, columns predictions, a row's shares its colours.

    Args:
      counts: int `[C, C]`, examples by label and prediction.
      names: `[C]`, of the classes.
      about: what it shows, for those who hear it.
    """
    left = 12 + 7 * min(16, max(map(len, names)))
    size, top = len(names), min(left, 70)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    parts: list[object] = []
    for i, name in enumerate(names):
        middle = (i + 0.5) * CELL
        parts.append(text(left - 8, top + middle + 4, _short(name, 16), "end"))
        turned = f'transform="translate({left + middle + 4:g} {top - 8}) rotate(-50)"'
        parts.append(Html(f"<text {turned}>{markup(_short(name, 12))}</text>"))
        for j in range(size):
            x, y, share = left + j * CELL, top + i * CELL, float(shares[i, j])
            style = "cell" if i == j else "cell off"
            place = f'x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" rx="2"'
            said = markup(f"{name} taken for {names[j]}: {counts[i, j]} ({share:.1%})")
            opacity = f"{0.05 + 0.95 * share:.3f}"
            cell = f'<rect class="{style}" {place} fill-opacity="{opacity}">'
            parts.append(Html(f"{cell}<title>{said}</title></rect>"))
            if counts[i, j]:
                on = "count on" if share > 0.55 else "count"
                middle_x = x + (CELL - 1) / 2
                parts.append(text(middle_x, y + CELL / 2 + 4, counts[i, j], "middle", on))
    width = left + size * CELL + 30
    style = f"max-width: {1.35 * width:.0f}px; min-width: {0.7 * width:.0f}px"
    return svg(width, top + size * CELL, about, *parts, style=style)


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
