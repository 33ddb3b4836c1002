"""For scripts that run others: signals to pass on, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAME_SECS = 5.0  # in which SIGTERM and SIGHUP come again where both a kernel and a shell send them


def hear(handler: Callable[[int, object], object]) -> None:
    """Call `handler` for each of the signals; under nohup not for a lost terminal."""
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


@contextlib.contextmanager
def group() -> Iterator[int]:
    """Make a process group that does not outlive this process, however it ends.

    The group's leader waits for the end of a pipe that only this process holds open.
    """
    end, held = os.pipe()
    leader = os.fork()
    if leader == 0:
        os.close(held)
        os.setpgid(0, 0)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        os.read(end, 1)
        os.killpg(0, signal.SIGKILL)
    os.close(end)
    with contextlib.suppress(PermissionError):  # then the leader has done it
        os.setpgid(leader, leader)
    try:
        yield leader
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
        os.waitpid(leader, 0)
        os.close(held)
