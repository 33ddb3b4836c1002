"""Where a run's numbers go: `metrics.jsonl`, a line every few steps or evaluation, and TensorBoard.

The file is exact across interruptions: a run that resumes at step s first removes what was written
after s, and what belongs to a step is on disk before that step is saved. So no line is lost or
repeated, and apart from wall time and speed the file equals that of a run never interrupted.

A line averages the steps since the one before. A step may be saved between two lines: the sums so
far are then in `log_window.jsonl`, one line for each such save. It keeps those of all saves, since
any checkpoint may be the one that a run has to go back to; it is no longer than `metrics.jsonl`
would be with a line a save.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import buckets, closing, files


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

    def close(self) -> dict[str, float]:
        """Return the means, and begin anew."""
        means = {name: total / self.steps for name, total in self.sums.items()}
        self.steps, self.sums = 0, {}
        return means


class NoMetrics:
    """Stands in for `MetricsWriter` in processes that do not write."""

    def window(self) -> Window:
        """Return an empty one."""
        return Window()

    def save_window(self, step: int, window: Window) -> None:
        """Drop it."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Drop a line."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Board:
    """The events file of TensorBoard.

    tensorboardX's `SummaryWriter` writes it in a thread. On a full disk that thread ends, its queue
    fills up, and the run waits for it without end.
    """

    def __init__(self, directory: epath.Path, resume_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._directory = directory
        with files.explaining(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(os.fspath(directory / "events"))
        if resume_step:  # what is there of later steps is not shown any more
            self._add(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        from tensorboardX.summary import scalar

        for name, value in values.items():
            if math.isfinite(value):  # `scalar` would warn of others on the screen
                self._add(step, summary=scalar(name, value))

    def flush(self) -> None:
        with files.explaining(self._directory):
            self._writer.flush()

    def close(self) -> None:
        # By itself the writer leaves its file open if the last of it cannot be written.
        with files.explaining(self._directory):
            closing.close(None, self._writer.flush, self._writer._py_recordio_writer.close)

    def _add(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with files.explaining(self._directory):
            self._writer.write_event(Event(wall_time=time.time(), step=step, **content))


class MetricsWriter:
    """Appends metrics to `workdir/metrics.jsonl` and to event files in `workdir/tensorboard`."""

    def __init__(self, workdir: epath.Path, resume_step: int):
        self._path, self._windows_path = workdir / "metrics.jsonl", workdir / "log_window.jsonl"
        self._resume_step = resume_step
        self._windows: list[str] = []
        self._cut(resume_step)
        self._file = files.Growing(self._path)
        self._events = buckets.Mirror(workdir / "tensorboard")
        self._board = _Board(self._events.local, resume_step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line; numbers that JSON does not know become null."""
        clean = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._board.write(step, values)

    def window(self) -> Window:
        """Return what was summed up when the step was saved at which the run resumes.

        Nothing, if that was a step of a line. Nor in a run begun by a version without these sums:
        its next line averages the steps done since it was resumed.
        """
        last = json.loads(self._windows[-1]) if self._windows else {}
        if last.get("step") != self._resume_step:
            return Window()
        return Window(last["steps"], last["sums"])

    def save_window(self, step: int, window: Window) -> None:
        """Put on disk what is summed up at a step that is about to be saved.

        Raises:
          UserError: if the disk is full or failing.
        """
        if not window.steps:
            return
        line = {"step": step, "steps": window.steps, "sums": window.sums}
        self._windows.append(json.dumps(line) + "\n")
        with files.explaining(self._windows_path):
            files.write_atomically(self._windows_path, "".join(self._windows))

    def flush(self) -> None:
        """Put on disk what was written.

        Raises:
          UserError: if the disk is full or failing, or the file is not there any more.
        """
        self._file.flush(sync=True)
        self._board.flush()
        self._events.publish()

    def close(self) -> None:
        """Flush and close both."""
        steps = (self.flush, self._board.close, self._file.close, self._events.close)
        closing.close(None, *steps)

    def _cut(self, step: int) -> None:
        _cut(self._path, step)
        self._windows = _cut(self._windows_path, step)


def _cut(path: epath.Path, step: int) -> list[str]:
    """Remove the lines of a file from the first one on that is of a later step; return the rest."""
    kept: list[str] = []
    with files.explaining(path):
        if not path.exists():
            return kept
        for line in path.read_text().splitlines(keepends=True):
            # A run that starts anew evaluates step 0 anew. A line without its end was being
            # written when the run was killed.
            if step == 0 or not line.endswith("\n") or json.loads(line)["step"] > step:
                break
            kept.append(line)
        files.write_atomically(path, "".join(kept))
    return kept
