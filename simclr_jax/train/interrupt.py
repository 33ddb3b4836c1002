"""Stopping on request: SIGTERM (preemption) or Ctrl-C lets the current chunk finish and saves."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from typing import Any

from jax.experimental import multihost_utils

from simclr_jax import closing, processes

# A SIGTERM that comes so soon after another is the same one: a scheduler may signal a process and
# its parent, which passes it on.
SAME_SECS = 3.0


class StopRequest:
    """While entered, SIGTERM and SIGINT ask to stop; a second one interrupts at once.

    Of several processes any may be asked: JAX's preemption service takes their SIGTERM, from their
    start on, and makes all of them stop after the same chunk, a few chunks later. A second SIGTERM
    does nothing then.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._asked = 0.0
        self._calls = 0  # of `after_chunk`
        self._previous: dict[int, Any] = {}

    def after_chunk(self) -> int:
        """Return the signal because of which to stop now, or 0.

        To be called after every chunk and, unless that has said to stop, once more at the end, when
        the last save is done: a signal may have come meanwhile.

        Every process has to call it equally often. The preemption service knows a moment by its
        number, and that is the number of the call: all processes are told to stop by calls of the
        same number.
        """
        if processes.count() == 1:
            return self._signal
        self._calls += 1
        now = multihost_utils.reached_preemption_sync_point(self._calls)
        return (self._signal or signal.SIGTERM) if now else 0

    def __enter__(self) -> StopRequest:
        # Python delivers signals to the main thread alone, and only there may handlers be set.
        if threading.current_thread() is threading.main_thread():
            several = processes.count() > 1
            for number in (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        previous = self._previous.items()
        closing.close(error, *[functools.partial(signal.signal, *pair) for pair in previous])

    def _handle(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._signal:
            if number == self._signal == signal.SIGTERM and now - self._asked < SAME_SECS:
                return
            raise KeyboardInterrupt
        self._signal, self._asked = number, now
        if processes.count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
