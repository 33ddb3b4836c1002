"""Where a run's numbers go: `metrics.jsonl`, a line every few steps or evaluation, and loggers.

The file is exact across interruptions: a run that resumes at step s first removes what was written
after s, and what belongs to a step is on disk before that step is saved. So no line is lost or
repeated, and apart from wall time and speed the file equals that of a run never interrupted. What
happened to it meanwhile is noticed and mended, see `train.mending`.

A line averages the steps since the one before. A step may be saved between two lines: the sums so
far are in its checkpoint then.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import msgspec
import numpy as np
from absl import logging
from etils import epath

from simclr_jax import buckets, closing, documents, files
from simclr_jax.train import events, mending
from simclr_jax.train.board import Board
from simclr_jax.train.loggers import TENSORBOARD, Loggers, finite
from simclr_jax.train.mending import Seal


class Window:
    """The sums of metrics over the steps since the last line of the log.

    One step is added after the other, in float64, whatever the chunks: a sum that was written down
    and read again goes on to the same bits.
    """

    def __init__(self, steps: int = 0, sums: Mapping[str, float] | None = None):
        self.steps, self.sums = steps, dict(sums or {})

    def add(self, metrics: Mapping[str, np.ndarray]) -> None:
        """Add the metrics of a chunk, `[steps]` each."""
        if self.sums.keys() != metrics.keys():  # none yet, or another version's
            self.steps, self.sums = 0, dict.fromkeys(metrics, 0.0)
        for name, values in metrics.items():
            for value in values.tolist():
                self.sums[name] += value
        self.steps += len(next(iter(metrics.values())))

    def means(self) -> dict[str, float]:
        """Return the means so far."""
        return {name: total / self.steps for name, total in self.sums.items()}

    def close(self) -> dict[str, float]:
        """Return the means, and begin anew."""
        means = self.means()
        self.steps, self.sums = 0, {}
        return means


class Recent:
    """The metrics of the last steps, at most so many, whatever lines were written meanwhile.

    And at most a thousand: they are kept one by one.
    """

    def __init__(self, most: int):
        self._steps = collections.deque[dict[str, float]](maxlen=min(most, 1000))

    def add(self, metrics: Mapping[str, np.ndarray]) -> None:
        """Add the metrics of a chunk, `[steps]` each."""
        columns = [values.tolist() for values in metrics.values()]
        self._steps.extend(
            dict(zip(metrics, row, strict=True)) for row in zip(*columns, strict=True)
        )

    def means(self) -> dict[str, float]:
        """Return the means over these steps, of which there must be one."""
        return {
            name: sum(step[name] for step in self._steps) / len(self._steps)
            for name in self._steps[-1]
        }


class NoMetrics:
    """Stands in for `MetricsWriter` in processes that do not write."""

    def window(self) -> Window:
        """Return an empty one."""
        return Window()

    def seal(self, window: Window) -> dict[str, Any]:
        """Know nothing."""
        return {}

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Drop a line."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class MetricsWriter:
    """Appends metrics to `workdir/metrics.jsonl`, to TensorBoard's events, and to other loggers.

    Args:
      workdir: of the run.
      resume_step: that the run goes on from; 0: it starts anew.
      seal: what the checkpoint of that step knows of the log, see `seal`.
      say: receives a line about what is not as it was then.
      loggers: that show the run too, and whether TensorBoard does; None: TensorBoard alone.

    Raises:
      UserError: if the files cannot be read or written.
    """

    def __init__(
        self,
        workdir: epath.Path,
        resume_step: int,
        seal: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = logging.warning,
        loggers: Loggers | None = None,
    ):
        self._loggers = loggers or Loggers(workdir)
        self._path, self._say = workdir / "metrics.jsonl", say
        self._step, self._seal = resume_step, _checked(seal or {})
        self._old_windows = workdir / "log_window.jsonl"
        events_at = workdir / TENSORBOARD
        if shorter := events.missing(events_at, self._seal.get("events", {})):
            more = f" and {len(shorter) - 3} files more" if len(shorter) > 3 else ""
            say(
                f"tensorboard/{', '.join(shorter[:3])}{more}: TensorBoard shows a gap there, "
                f"{self._path.name} has the numbers"
            )
        lines = mending.lines_until(self._path, resume_step, self._seal, events_at, say)
        self._lines = [line.step for line in lines]
        self._checksum = mending.checksum(line.text for line in lines)
        self._file = files.Growing(self._path)
        self._before = events.sizes(events_at)
        self._events = buckets.Mirror(events_at)
        self._board: Board | None = None
        if self._loggers.tensorboard:
            self._board = Board(self._events.local, resume_step)
            self._loggers.attach(self._board)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line; numbers that JSON does not know become null."""
        text = documents.line({"step": step, **values})
        self._file.write(text)
        self._lines.append(step)
        self._checksum = mending.checksum([text], self._checksum)
        if self._board:
            self._board.write(step, finite(values))
        self._loggers.write(step, values, self._lines.count(step))

    def window(self) -> Window:
        """Return what was summed up when the step was saved at which the run resumes.

        Nothing, if that was a step of a line. Nor in a run begun by a version without these sums:
        its next line averages the steps done since it was resumed.
        """
        if "sums" in self._seal:
            sums = {name: float.fromhex(value) for name, value in self._seal["sums"].items()}
            return Window(self._seal["window"], sums)
        return _old_window(self._old_windows, self._step, self._say) if self._step else Window()

    def seal(self, window: Window) -> dict[str, Any]:
        """Return what the checkpoint that is about to be saved has to know, of what was flushed."""
        found: Seal = {
            "lines": list(self._lines),
            "crc32": self._checksum,
            "events": self._before | events.sizes(self._events.local),
            "window": window.steps,
            "sums": {name: float(value).hex() for name, value in window.sums.items()},
        }
        return dict(found)

    def flush(self) -> None:
        """Put on disk what was written.

        Raises:
          UserError: if the disk is full or failing, or the file is not there any more.
        """
        self._file.flush(sync=True)
        if self._board:
            self._board.flush()
        self._events.publish()

    def close(self) -> None:
        """Flush and close both."""
        board = [self._board.close] if self._board else []
        closing.close(None, self.flush, *board, self._file.close, self._events.close)


class _OldWindow(TypedDict):
    step: int
    steps: int
    sums: dict[str, float]


def _old_window(path: epath.Path, step: int, say: Callable[[str], None]) -> Window:
    """Return what earlier versions summed up for a step: they kept it in a file for all saves."""
    try:
        lines = documents.content(path, "move it away").decode(errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return Window()
    damaged = False
    for text in reversed(lines):
        try:
            found = documents.parse(text, _OldWindow)
        except documents.Unfit:
            damaged = True
            continue
        if found["step"] == step:
            return Window(found["steps"], found["sums"])
    if damaged:
        say(
            f"{path.name} is damaged: the first line of metrics after step {step} averages the "
            "steps from there on"
        )
    return Window()


def _checked(seal: Mapping[str, Any]) -> Seal:
    """Return a seal, `{}` for one that is of another program."""
    try:
        return msgspec.convert(seal, Seal)
    except msgspec.ValidationError:
        return {}
