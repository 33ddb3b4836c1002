"""Long work in a thread, so that the main thread hears signals and can say how long it takes.

Python runs signal handlers in the main thread, and only between two of its own instructions: while
that thread compiles a program, a request to stop waits for the compiler.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")

POLL_SECS = 1.0  # a signal that another thread takes is noticed when the main thread looks up
NAME = "simclr_jax.background"  # of the threads


class Work(Generic[Value]):
    """`action`, begun in a thread of its own.

    The thread is no daemon: a process that ends waits for it, unless it leaves by `os._exit` as
    `entry.run` does where one is `left`. A daemon could be inside a compiler while Python is taken
    apart around it.
    """

    def __init__(self, action: Callable[[], Value]):
        self._action, self._done = action, threading.Event()
        self._value: Value
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name=NAME).start()

    def _run(self) -> None:
        try:
            self._value = self._action()
        except BaseException as error:  # raised by `result`, in the thread that asks for it
            self._error = error
        self._done.set()

    @property
    def done(self) -> bool:
        """Tell whether it has ended."""
        return self._done.is_set()

    def result(self, sign: Callable[[float], object] | None = None) -> Value:
        """Wait for what the action returns.

        Args:
          sign: called about every second meanwhile, with the seconds waited so far.

        Raises:
          BaseException: what the action has raised, or what a signal handler raises meanwhile.
        """
        start = time.monotonic()
        while not self._done.wait(POLL_SECS):
            if sign is not None:
                sign(time.monotonic() - start)
        if self._error is not None:
            raise self._error
        return self._value


def left() -> bool:
    """Tell whether work is still under way, for which nobody may wait any more."""
    return any(thread.name == NAME for thread in threading.enumerate())
