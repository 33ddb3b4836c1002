"""Stopping on request: SIGTERM (preemption) or Ctrl-C lets the current chunk finish and saves."""

from __future__ import annotations

import signal
import threading


class StopRequest:
    """While entered, SIGTERM and SIGINT set `signal`; a second one interrupts at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        # Python delivers signals to the main thread alone, and only there may handlers be set.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: object) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
