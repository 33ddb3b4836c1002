"""Where things stand in a chart: scales, round ticks, and the frame around a plot."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from simclr_jax.reporting.page import Html, join, markup

SMALLEST = 1e-290  # a range below this has no ticks that floats could tell apart
WIDTH, HEIGHT = 360, 210  # of a chart, in its own units; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 30  # margins around the plot


@dataclasses.dataclass(frozen=True)
class Axis:
    """A linear map from values `low` to `high` to places `start` to `end`, and its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    percent: bool = False

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        share = (np.asarray(values, float) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def label(self, tick: float) -> str:
        """Return a tick's value as written beside it, with the decimals that its step needs."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(tick) or 1.0
        if self.percent:
            return f"{100 * tick:.{_decimals(100 * step)}f} %"
        if max(map(abs, self.ticks)) >= 10_000:
            return f"{tick / 1000:,.{_decimals(step / 1000)}f}k"
        if 0 < max(map(abs, self.ticks)) < 1e-3:
            return f"{tick:g}"
        return f"{tick:.{_decimals(step)}f}".replace("-", "\u2212")


def _decimals(step: float) -> int:
    """Return how many decimals tell multiples of `step` (1, 2 or 5 times a power of ten) apart."""
    return max(0, math.ceil(-math.log10(step) - 1e-9))


def round_ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    """Return up to `most` multiples of 1, 2 or 5 times a power of ten from `low` to `high`."""
    exponent = math.floor(math.log10((high - low) / most))
    for power in (exponent, exponent + 1):
        for factor in (1, 2, 5):
            step = factor * 10.0**power
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if last - first + 1 <= most:
                return tuple(i * step for i in range(first, last + 1))
    raise AssertionError("ten times a step that is too small is large enough")


def span(
    values: Sequence[np.ndarray], padding: float = 0.05, least: float = 1e-9
) -> tuple[float, float]:
    """Return the range of all finite values, widened by a share of it; 0 to 1 without values.

    A range below `least` of the largest value would show what is no change as one: it is widened
    to half the value on either side.
    """
    flat = np.concatenate([np.ravel(v).astype(float) for v in values]) if values else np.zeros(0)
    flat = flat[np.isfinite(flat)]
    if not flat.size:
        return 0.0, 1.0
    low, high = float(flat.min()), float(flat.max())
    if high - low <= max(least * max(abs(low), abs(high)), SMALLEST):
        wide = 0.5 * abs(high) or 0.5
        return low - wide, high + wide
    more = padding * (high - low)
    return low - more, high + more


def x_axis(low: float, high: float, most: int = 6) -> Axis:
    """Return the horizontal axis of a chart."""
    return Axis(low, high, LEFT, WIDTH - RIGHT, round_ticks(low, high, most))


def y_axis(low: float, high: float, percent: bool = False) -> Axis:
    """Return the vertical axis of a chart; upwards is more."""
    return Axis(low, high, HEIGHT - BOTTOM, TOP, round_ticks(low, high, 5), percent)


def frame(x: Axis, x_label: str, y: Axis | None = None) -> Html:
    """Draw the axes: a base line with ticks and, with `y`, a grid line at each of its ticks."""
    bottom, parts = HEIGHT - BOTTOM, []
    if y is not None:
        for tick in y.ticks:
            at = round(float(y(tick)), 1)
            parts.append(line(LEFT, at, WIDTH - RIGHT, at, "gridline"))
            parts.append(text(LEFT - 6, at + 4, y.label(tick), "end"))
    parts.append(line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"))
    for tick in x.ticks:
        at = round(float(x(tick)), 1)
        parts.append(line(at, bottom, at, bottom + 4, "axis"))
        parts.append(text(at, bottom + 15, x.label(tick), "middle"))
    parts.append(text(WIDTH - RIGHT, HEIGHT - 2, x_label, "end"))
    return join(parts, "")


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    """Draw a straight line in the style `kind`."""
    return Html(f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{kind}"/>')


def text(x: float, y: float, said: object, anchor: str = "start", kind: str = "") -> Html:
    """Write a word; `anchor` is start, middle or end."""
    style = f' class="{kind}"' if kind else ""
    return Html(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{style}>{markup(said)}</text>')


def svg(width: float, height: float, about: str, *parts: object, style: str = "") -> Html:
    """Return a drawing that grows and shrinks with the page, within the limits of `style`.

    `about` is for those who hear it.
    """
    box = f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{markup(about)}"'
    box += f' style="{style}"' if style else ""
    return Html(f"<svg {box}>{join(parts, '')}</svg>")
