"""The time that is left, and where rows go: terminal and file, as soon as they are known."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from measured.worker import Worker


class Session:
    """One run of `gpu.py`.

    Args:
      budget: seconds that all of it may take.
      out: a file of JSON lines, to which every row is appended at once.
      say: prints a line.
      clock: seconds from any beginning.
    """

    def __init__(
        self,
        budget: float,
        out: Path,
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._say, self._clock = say, clock
        self._began, self._budget = clock(), budget
        self._section = ""
        self._rows: list[dict[str, Any]] = []
        self._out = out.open("a")
        self.log: IO[str] = out.with_suffix(".log").open("a")

    @property
    def elapsed(self) -> float:
        """Return the seconds since the beginning."""
        return self._clock() - self._began

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self._budget - self.elapsed

    def begin(self, section: str, seconds: float, what: str) -> bool:
        """Begin a section that wants so many seconds; return False if they are not left."""
        self._section = section
        self._say("")
        if self.left < seconds:
            self.row(skipped=f"wants {seconds:.0f} s, {self.left:.0f} s are left")
            return False
        self._say(f"{section}: {what} (at {self.elapsed:.0f} s)")
        return True

    def row(self, **values: Any) -> dict[str, Any]:
        """Print and write one row of the section under way, and return it."""
        self._say(
            "  ".join([f"  {self._section}", *(f"{k} {shown(v)}" for k, v in values.items())])
        )
        row = {"section": self._section, "at": round(self.elapsed, 1), **values}
        self._rows.append(row)
        self._out.write(json.dumps(row) + "\n")
        self._out.flush()
        os.fsync(self._out.fileno())
        return row

    def rows(self, section: str) -> list[dict[str, Any]]:
        """Return the rows of a section so far."""
        return [row for row in self._rows if row["section"] == section]

    @contextmanager
    def worker(self, script: str, **environment: str) -> Iterator[Worker]:
        """Start a process of this directory, and end it."""
        made = Worker(script, self.log, environment)
        try:
            yield made
        finally:
            made.end()

    def close(self) -> None:
        """Close the files."""
        self._out.close()
        self.log.close()


def shown(value: Any) -> str:
    """Return a value as a row shows it."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
