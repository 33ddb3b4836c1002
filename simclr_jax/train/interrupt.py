"""Stopping on request: SIGTERM (preemption) or Ctrl-C lets the current chunk finish and saves.

Outside the loop of steps there is nothing to finish or save, and SIGTERM ends a run at once.
"""

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


class Asked(SystemExit):
    """SIGTERM, where nothing has to be finished or saved first."""


class AtOnce:
    """While entered, SIGTERM raises `Asked` in the main thread, as Ctrl-C raises KeyboardInterrupt.

    Of several processes JAX's preemption service has the SIGTERM, from their start on.
    """

    def __init__(self) -> None:
        self._asked: float | None = None
        self._previous: Any = None

    def __enter__(self) -> AtOnce:
        main = threading.current_thread() is threading.main_thread()
        if main and processes.count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._previous is not None:
            closing.close(error, functools.partial(signal.signal, signal.SIGTERM, self._previous))

    def _handle(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._asked is None or now - self._asked >= SAME_SECS:
            self._asked = now
            raise Asked(os.EX_TEMPFAIL)


class StopRequest:
    """While entered and listening, SIGTERM and SIGINT ask to stop; a second one interrupts at once.

    Of several processes any may be asked: JAX's preemption service takes their SIGTERM, from their
    start on, and makes all of them stop after the same chunk, a few chunks later. A second SIGTERM
    does nothing then.
    """

    def __init__(self, listening: bool = True) -> None:
        self._listening = listening  # from `__enter__` on, or from `listen`
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
        if self._listening:
            self.listen()
        return self

    def listen(self) -> None:
        """Take signals from now on."""
        # Python delivers signals to the main thread alone, and only there may handlers be set.
        if threading.current_thread() is threading.main_thread():
            several = processes.count() > 1
            for number in (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)

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
