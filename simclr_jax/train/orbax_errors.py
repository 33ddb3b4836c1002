"""What Orbax and TensorStore say of errors, and how."""

from __future__ import annotations

import re
import sys
from logging import ERROR, LogRecord
from typing import Any

from absl import logging


def errno_of(error: BaseException) -> int | None:
    """Return what the operating system said, if that is what an error is about."""
    code = re.search(r"os_error_code='(\d+)'", str(error))  # of TensorStore, which has no errno
    return int(code[1]) if code else getattr(error, "errno", None)


def hush_orbax() -> None:
    """Keep its threads from printing what is raised as well. May be called again.

    They log the traceback of what the next `save`, `wait` or `close` raises. And when a file cannot
    be written, TensorStore finds the event loop of that save closed for each file still under way,
    which it hands to `sys.unraisablehook`.
    """
    logging.get_absl_logger().addFilter(_no_error_of_orbax)
    if not isinstance(sys.unraisablehook, _NoClosedLoop):
        sys.unraisablehook = _NoClosedLoop(sys.unraisablehook)


def _no_error_of_orbax(record: LogRecord) -> bool:
    return record.levelno < ERROR or "orbax" not in record.pathname


class _NoClosedLoop:
    def __init__(self, before: Any):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        late = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not (late and unraisable.object is None):
            self._before(unraisable)
