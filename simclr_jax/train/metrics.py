"""Where a run's numbers go: `metrics.jsonl`, one line a step or evaluation, and TensorBoard.

The file is exact across interruptions: a run that resumes at step s first removes what was written
after s, and what belongs to a step is on disk before that step is saved. So no line is lost or
repeated, and apart from wall time and speed the file equals that of a run never interrupted.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from simclr_jax import buckets, files


class NoMetrics:
    """Stands in for `MetricsWriter` in processes that do not write."""

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
            self._add(step, summary=scalar(name, value))

    def flush(self) -> None:
        with files.explaining(self._directory):
            self._writer.flush()

    def close(self) -> None:
        with files.explaining(self._directory):
            self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with files.explaining(self._directory):
            self._writer.write_event(Event(wall_time=time.time(), step=step, **content))


class MetricsWriter:
    """Appends metrics to `workdir/metrics.jsonl` and to event files in `workdir/tensorboard`."""

    def __init__(self, workdir: epath.Path, resume_step: int):
        self._path = workdir / "metrics.jsonl"
        with files.explaining(self._path):
            self._cut(resume_step)
        self._file = files.Growing(self._path)
        self._events = buckets.Mirror(workdir / "tensorboard")
        self._board = _Board(self._events.local, resume_step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line; numbers that JSON does not know become null."""
        clean = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._board.write(step, values)

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
        try:
            self.flush()
        finally:
            self._board.close()
            self._file.close()
            self._events.close()

    def _cut(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = []  # a run that starts anew evaluates step 0 anew
        for line in self._path.read_text().splitlines(keepends=True):
            # A line without its end was being written when the run was killed.
            if step == 0 or not line.endswith("\n") or json.loads(line)["step"] > step:
                break
            kept.append(line)
        files.write_atomically(self._path, "".join(kept))
