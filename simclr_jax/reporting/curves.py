"""The metrics of a run as curves, from a file whose lines may be damaged, missing or repeated."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from etils import epath

from simclr_jax import documents
from simclr_jax.documents import Unfit
from simclr_jax.train import events, mending

LATEST = 2**53  # steps up to here are exact as floats
# What is farther from 1 than this is no value of a metric, and no chart has room for it.
LARGEST = 1e150
MOST_SHOWN = 10  # steps in a sentence


@dataclasses.dataclass(frozen=True)
class Curve:
    """One metric over the run: `steps` and `values`, both `[n]`; NaN where it was no number."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        return float(self.values[-1])

    @property
    def median(self) -> float:
        """Return the median of the values that are numbers, NaN where none is."""
        known = self.values[np.isfinite(self.values)]
        return float(np.median(known)) if len(known) else float("nan")


@dataclasses.dataclass(frozen=True)
class Known:
    """What the newest checkpoint knows of the lines: it was saved at `step`, after these steps."""

    step: int
    lines: Sequence[int]
    crc32: str

    @classmethod
    def of(cls, step: int, log: Any) -> Known | None:
        """Return what is in the `log` of a checkpoint, None if it is of an earlier version."""
        try:
            found = msgspec.convert(log, mending.Seal)
            return cls(step, found["lines"], found["crc32"])
        except (msgspec.ValidationError, KeyError):
            return None


def read(path: epath.Path, known: Known | None = None) -> tuple[dict[str, Curve], list[str]]:
    """Return the curves in a file of metrics, and a sentence about each thing wrong with it.

    A line that was altered, or is none, is left out. A last line without its end is being written.
    If the lines are others than those which the checkpoint knows, none is believed.

    Args:
      path: of the file.
      known: of the newest checkpoint.

    Raises:
      UserError: if the file cannot be read.
    """
    try:
        lines = documents.content(path).split(b"\n")[:-1]
    except FileNotFoundError:
        if known and known.lines:
            return {}, [
                f"{documents.shown(path)} is gone: the checkpoint of step {known.step} knows of "
                f"{len(known.lines)} lines."
            ]
        return {}, []
    found: dict[str, dict[int, float]] = {}
    left_out: list[str] = []
    taken: list[tuple[int, bytes]] = []
    sealed, in_order = False, True
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
        in_order = in_order and (not taken or step >= taken[-1][0])
        sealed = sealed or has_seal
        taken.append((step, line))
        for name, value in values.items():
            found.setdefault(name, {})[step] = value
    wrong = [_together(left_out, path)] if left_out else []
    if not in_order:
        wrong.append(f"The lines of {documents.shown(path)} are not in their order.")
    if repaired := found.pop(mending.REPAIRED, {}):
        wrong.append(f"{len(repaired)} lines of metrics are of TensorBoard's events, in float32.")
    if known:
        lost, others = _compared(known, taken)
        if others and not repaired:
            return {}, [
                *wrong,
                f"{documents.shown(path)} has other numbers than when step {known.step} was saved: "
                "none of them is shown.",
            ]
        if lost and _of_another(path, taken):  # no checksum is left to tell
            return {}, [
                *wrong,
                f"{documents.shown(path)} has other numbers than TensorBoard was given: none of "
                "them is shown.",
            ]
        if lost:
            more = ", ..." if len(lost) > MOST_SHOWN else ""
            steps = ", ".join(map(str, lost[:MOST_SHOWN]))
            wrong.append(f"{len(lost)} lines of metrics are lost, of step {steps}{more}.")
    return {name: _curve(points) for name, points in found.items()}, wrong


def _compared(known: Known, taken: Sequence[tuple[int, bytes]]) -> tuple[list[int], bool]:
    """Return the steps of lines that are lost, and whether those that are there are others."""
    until = [(step, line) for step, line in taken if step <= known.step]
    had, have = Counter(known.lines), Counter(step for step, _ in until)
    text = [line.decode() + "\n" for _, line in until]
    return sorted((had - have).elements()), had == have and mending.checksum(text) != known.crc32


def _of_another(path: epath.Path, taken: Sequence[tuple[int, bytes]]) -> bool:
    """Tell whether TensorBoard's events of a run have another number than one of these lines."""
    there = mending.places(events.read(path.parent / "tensorboard"))
    lines = (mending.parsed(line.decode()) for _, line in taken)
    return not all(line is None or mending.agrees(line, there) for line in lines)


def missing(
    curves: Mapping[str, Curve], every: int, saved: int, finished: bool, alive: bool
) -> list[str]:
    """Say where lines seem to be missing, of a run whose checkpoints do not know its lines.

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
            f"There is a checkpoint of step {saved}, and metrics.jsonl has no line of training "
            f"after step {until}: lines are missing."
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
