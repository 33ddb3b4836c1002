"""Where a run's numbers go: `metrics.jsonl`, one line a step or evaluation, and TensorBoard.

The file is exact across interruptions: a run that resumes at step s first removes what was written
after s, and what belongs to a step is on disk before that step is saved. So no line is lost or
repeated, and apart from wall time and speed the file equals that of a run never interrupted.
"""

from __future__ import annotations

import json
import math
import os
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


class MetricsWriter:
    """Appends metrics to `workdir/metrics.jsonl` and to event files in `workdir/tensorboard`."""

    def __init__(self, workdir: epath.Path, resume_step: int):
        from tensorboardX import SummaryWriter

        self._path = workdir / "metrics.jsonl"
        self._cut(resume_step)
        self._file = files.Growing(self._path)
        self._events = buckets.Mirror(workdir / "tensorboard")
        self._board = SummaryWriter(
            os.fspath(self._events.local),
            purge_step=resume_step + 1 if resume_step else 0,
            write_to_disk=True,
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line; numbers that JSON does not know become null."""
        clean = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Put on disk what was written.

        Raises:
          UserError: if the disk is full or failing, or the file is not there any more.
        """
        self._file.flush(sync=True)
        with files.explaining(self._path):
            self._board.flush()
        self._events.publish()

    def close(self) -> None:
        """Flush and close both."""
        self.flush()
        self._file.close()
        self._board.close()
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
