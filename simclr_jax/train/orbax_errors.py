"""What Orbax's threads print of errors that are raised here as well."""

from __future__ import annotations

import sys
from logging import ERROR, LogRecord
from typing import Any

from absl import logging


def hush_orbax() -> None:
    """Drop it from now on. May be called again.

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
