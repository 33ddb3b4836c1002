"""TensorBoard: event files in `workdir/tensorboard`."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from simclr_jax import closing, files, tables

# Metrics by which runs are compared beside their settings, where they are measured.
COMPARED = ("loss", "knn_accuracy", "probe_accuracy", "accuracy")


class Board:
    """An event file.

    tensorboardX's `SummaryWriter` writes it in a thread. On a full disk that thread ends, its queue
    fills up, and the run waits for it without end.

    Args:
      directory: of the files.
      resume_step: from which on what other files have is not shown any more; 0: a run begins.
    """

    def __init__(self, directory: epath.Path, resume_step: int):
        """Begin a file of its own, whatever others there are and however young they are."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._directory = directory
        with files.explaining(directory):
            directory.mkdir(parents=True, exist_ok=True)
            suffix = f".{time.time_ns() % 10**9:09}"  # the name has the second
            self._writer = EventsWriter(os.fspath(directory / "events"), suffix)
        # What is there of later steps is not shown any more.
        start = resume_step + 1 if resume_step else 0
        self._add(start, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the finite numbers of a line."""
        from tensorboardX.proto.summary_pb2 import Summary

        numbers = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        if numbers:
            self._add(step, summary=Summary(value=numbers))

    def settings(self, settings: Mapping[str, Any]) -> None:
        """Write the fields of a recipe, by which the tab HPARAMS compares runs."""
        from tensorboardX import summary

        begun = summary.hparams(dict(settings), dict.fromkeys(COMPARED))
        for content in begun[:2]:  # the third says that the run is over
            self._add(0, summary=content)

    def picture(self, name: str, png: bytes) -> None:
        """Write a picture, as of step 0."""
        from tensorboardX.proto.summary_pb2 import Summary

        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
        self._add(0, summary=Summary(value=[Summary.Value(tag=name, image=image)]))

    def table(
        self, name: str, step: int, header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Write a table."""
        from tensorboardX import summary

        self._add(step, summary=summary.text(name, tables.markdown(header, rows)))

    def flush(self) -> None:
        """Put on disk what was written."""
        with files.explaining(self._directory):
            self._writer.flush()

    def close(self) -> None:
        """End the file."""
        # By itself the writer leaves its file open if the last of it cannot be written.
        with files.explaining(self._directory):
            closing.close(None, self._writer.flush, self._writer._py_recordio_writer.close)

    def _add(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with files.explaining(self._directory):
            self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
