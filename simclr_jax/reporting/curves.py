"""The metrics of a run as curves, from a file whose lines may be damaged, missing or repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from etils import epath

from simclr_jax import documents
from simclr_jax.documents import Unfit

LATEST = 2**53  # steps up to here are exact as floats
# What is farther from 1 than this is no value of a metric, and no chart has room for it.
LARGEST = 1e200


@dataclasses.dataclass(frozen=True)
class Curve:
    """One metric over the run: `steps` and `values`, both `[n]`; NaN where it was no number."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        return float(self.values[-1])


def read(path: epath.Path) -> tuple[dict[str, Curve], list[str]]:
    """Return the curves in a file of metrics, and a sentence about each thing wrong with it.

    A line that was altered, or is none, is left out. A last line without its end is being written.

    Raises:
      UserError: if the file cannot be read.
    """
    try:
        lines = documents.content(path).split(b"\n")[:-1]
    except FileNotFoundError:
        return {}, []
    found: dict[str, dict[int, float]] = {}
    left_out: list[str] = []
    sealed, before, in_order = False, 0, True
    for number, line in enumerate(lines, 1):
        has_seal = f'"{documents.SEAL}"'.encode() in line
        try:
            if sealed and not has_seal:
                raise Unfit("it has no checksum, and lines before it have")
            step, values = _parsed(line)
            if any(step in found.get(name, {}) for name in values):
                raise Unfit(f"it is another of step {step}")
        except Unfit as error:
            left_out.append(f"line {number} of {documents.shown(path)} is left out: {error}")
            continue
        sealed, in_order, before = sealed or has_seal, in_order and step >= before, step
        for name, value in values.items():
            found.setdefault(name, {})[step] = value
    wrong = [_together(left_out, path)] if left_out else []
    if not in_order:
        wrong.append(f"The lines of {documents.shown(path)} are not in their order.")
    return {name: _curve(points) for name, points in found.items()}, wrong


def missing(
    curves: Mapping[str, Curve], every: int, saved: int, finished: bool, alive: bool
) -> list[str]:
    """Say where lines are missing, as far as the others and the checkpoints tell.

    Args:
      curves: of the run.
      every: steps between two lines of training, 0 where that is not known.
      saved: the step of the newest checkpoint; what belongs to it was written before it.
      finished: the run is at its last step.
      alive: a process is at work on it, and may be about to write a line.
    """
    found: dict[str, None] = {}
    trained = curves.get("loss")
    until = int(trained.steps[-1]) if trained else 0
    if every and until < saved // every * every:
        found[
            f"There is a checkpoint of step {saved}, and no line of training after step {until}: "
            "lines are missing."
        ] = None
    end = max([until, *(int(curve.steps[-1]) for curve in curves.values())])
    for name, curve in curves.items():
        if len(curve.steps) < 2:
            continue
        gaps = np.diff(np.r_[0, curve.steps] if curve.steps[0] else curve.steps).astype(int)
        start = curve.steps[-len(gaps) - 1] if len(curve.steps) > len(gaps) else 0
        for i, gap in enumerate(gaps):
            beside = [int(g) for g in (*gaps[max(0, i - 1) : i], *gaps[i + 1 : i + 2])]
            if beside and gap > max(beside):
                a = int(start + gaps[:i].sum())
                found[_nothing(name, f"between steps {a} and {a + int(gap)}")] = None
        left = end - int(curve.steps[-1])
        if not alive and left and (finished or left >= gaps.max()):
            found[_nothing(name, f"after step {int(curve.steps[-1])}")] = None
    return [*found]


def _nothing(name: str, where: str) -> str:
    return f"There is no {name} {where}, where others suggest one: lines may be missing."


def _parsed(line: bytes) -> tuple[int, dict[str, float]]:
    """Return the step of a line and its metrics; raise `Unfit` if it is no line of metrics."""
    values = documents.parse(line, dict[str, float | None])
    step = values.pop("step", None)
    if step is None or not 0 <= step <= LATEST or step != int(step):
        raise Unfit("it has no step" if step is None else f"its step is {step:g}")
    clean = {
        name: np.nan if value is None or abs(value) > LARGEST else value
        for name, value in values.items()
    }
    return int(step), clean


def _curve(points: Mapping[int, float]) -> Curve:
    steps = sorted(points)
    return Curve(np.array(steps, float), np.array([points[step] for step in steps], float))


def _together(left_out: list[str], path: epath.Path) -> str:
    if len(left_out) == 1:
        return f"{left_out[0][0].upper()}{left_out[0][1:]}."
    return f"{len(left_out)} lines of {documents.shown(path)} are left out; {left_out[0]}."
