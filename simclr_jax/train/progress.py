"""What a person sees: lines that read well in a terminal and in a log file."""

from __future__ import annotations

import datetime
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TextIO, TypeVar

from etils import epath

from simclr_jax import closing, documents, files
from simclr_jax.alive import duration
from simclr_jax.background import Work
from simclr_jax.errors import BadFile, printable
from simclr_jax.train.timetable import Timetable

Batch = TypeVar("Batch")
Value = TypeVar("Value")

STATUS_SECS = 5.0  # in a file, progress is written no more often than this
SIGN_SECS = 8.0  # without a line, after which work that takes long gives a sign of life
BUCKET_SECS = 60.0  # and to a bucket, the log
LOG = "log.txt"
STAMP = "%Y-%m-%d %H:%M:%S"  # of a line in it, whose first line of a session begins so:
SESSION = "  run       "
BEGUN = re.compile(rf"\d{{4}}(-\d\d){{2}} \d\d(:\d\d){{2}}{SESSION}")  # also behind a torn line


class Console:
    """Prints lines, and keeps them in `workdir/log.txt`.

    In a terminal the progress of a run stays on one line that renews itself; elsewhere it is one
    line every few seconds.
    """

    def __init__(self, workdir: epath.Path, stream: TextIO | None = None):
        self._stream = stream or sys.stdout
        self._log = files.Growing(workdir / LOG, every_secs=BUCKET_SECS)
        self._terminal = self._stream.isatty()
        self._width = 0
        self._last_status = 0.0
        self._last_line = time.monotonic()
        self._lock = threading.RLock()  # threads that read or compile have things to say

    def say(self, text: str) -> None:
        """Print a line that stays, or several."""
        text = _printable(text)
        with self._lock:
            self._erase()
            self._print(text + "\n")
            self._keep(text)

    def status(self, text: str) -> None:
        """Show how far the run is."""
        text = _printable(text)
        with self._lock:
            now = time.monotonic()
            due = now - self._last_status >= STATUS_SECS
            if due:
                self._last_status = now
                self._keep(text)
            if self._terminal:
                self._erase()
                # A line that goes on in the next row cannot be erased.
                text = text[: shutil.get_terminal_size().columns - 1]
                self._print(text)
                self._width = len(text)
            elif due:
                self._print(text + "\n")

    def during(self, what: str, action: Callable[[], Value]) -> Value:
        """Do what may take long, with a sign of life every few seconds; return what it returns.

        It is done in a thread, so that this one hears signals.

        Raises:
          BaseException: what the action raises, or what a signal handler does.
        """
        return self.awaited(what, Work(action))

    def awaited(self, what: str, work: Work[Value]) -> Value:
        """Wait for work that was begun, see `during`."""

        def sign(seconds: float) -> None:
            if time.monotonic() - self._last_line >= SIGN_SECS:
                self.status(f"{what}, {duration(seconds)} so far")

        return work.result(sign)

    def close(self) -> None:
        """End the renewing line, close the log."""
        closing.close(None, self._erase, self._log.close)

    def _erase(self) -> None:
        if self._width:
            self._print("\r" + " " * self._width + "\r")
            self._width = 0

    def _print(self, text: str) -> None:
        self._last_line = time.monotonic()
        with files.explaining("the output"):
            self._stream.write(text)
            self._stream.flush()

    def _keep(self, text: str) -> None:
        stamp = time.strftime(STAMP)
        self._log.write("".join(f"{stamp}  {line}\n" for line in text.splitlines() or [""]))
        self._log.flush()


def _printable(text: str) -> str:
    """Return lines without what would move a cursor, or cannot be written as UTF-8."""
    return "\n".join(printable(line) for line in text.split("\n"))


class Silence(Console):
    """The console of processes that do not write."""

    def __init__(self) -> None:
        pass

    def say(self, text: str) -> None:
        """Drop a line."""

    def status(self, text: str) -> None:
        """Drop it."""

    def awaited(self, what: str, work: Work[Value]) -> Value:
        """Wait for work without a word."""
        return work.result()

    def close(self) -> None:
        """Do nothing."""


def minutes(workdir: epath.Path) -> float | None:
    """Return the minutes from the first to the last line of a run's log, over all its sessions.

    None without a log, or a line in it that says when it was written.
    """
    try:
        content = documents.content(workdir / LOG)
    except (FileNotFoundError, BadFile):
        return None
    # A full disk or a power cut may have torn a line.
    return minutes_of(content.decode(errors="replace").splitlines())


def minutes_of(log: Iterable[str]) -> float | None:
    """Return the minutes in the lines of a log, see `minutes`."""
    total, start, last = 0.0, None, None
    for line in log:
        if begun := BEGUN.search(line):
            line = line[begun.start() :]
        try:
            now = datetime.datetime.strptime(line[:19], STAMP)
        except ValueError:  # a line that was torn
            continue
        if start is None or line[19:].startswith(SESSION):
            total += (last - start).total_seconds() if start and last else 0.0
            start = now
        last = now
    total += (last - start).total_seconds() if start and last else 0.0
    return None if last is None else total / 60


class Speed:
    """Measures images per second of training alone: evaluation, saving and compilation are out."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._since: float | None = None
        self._steps = 0
        self._waited = 0.0
        self.images_per_second = 0.0
        self.input_wait = 0.0

    def add(self, steps: int) -> None:
        """Count finished steps; the first after a pause only starts the clock."""
        now = time.perf_counter()
        if self._since is None:
            self._since, self._steps, self._waited = now, 0, 0.0
            return
        self._steps += steps
        seconds = max(now - self._since, 1e-9)
        self.images_per_second = self._steps * self._batch_size / seconds
        self.input_wait = self._waited / seconds

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches; `input_wait` is the share of the time spent waiting for them.

        The device may be at work meanwhile: it stands still for this share at most.
        """
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def pause(self) -> None:
        """Stop the clock until the next step."""
        self._since = None


def shown(formats: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """Return those metrics that have a format, in its order.

    `{}` in a format is the metric it belongs to; `{NAME}` is another one that goes with it, such as
    in `{"loss": "loss {:.3f} (mean {loss_mean:.3f})"}`.
    """
    there = [(name, form) for name, form in formats.items() if name in metrics]
    return "  ".join(form.format(metrics[name], **metrics) for name, form in there)


def progress_line(step: int, timetable: Timetable, metrics: str, speed: Speed) -> str:
    """Return `step 120/562  21%  0:41 left  loss 5.31  ...  1234 images/s`.

    What is wanted most comes first: a narrow terminal shows the beginning.
    """
    parts = [f"step {step}/{timetable.total_steps}", f"{step / timetable.total_steps:4.0%}"]
    if speed.images_per_second:
        left = (timetable.total_steps - step) * timetable.batch_size / speed.images_per_second
        return "  ".join(
            [*parts, f"{duration(left)} left", metrics, f"{speed.images_per_second:.0f} images/s"]
        )
    return "  ".join([*parts, metrics])
