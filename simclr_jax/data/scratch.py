"""Memory in which a thread decodes one image after the other, so that the system is asked once.

Photographs take memory that the allocator gives back to the system as soon as some of them are let
go, and to have it again, zeroed page by page, takes a third of the time that decoding takes; for
all threads of a process the system does it one after the other. Sources decode what they read and
need not know of it: it is lent around them, in a thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import numpy as np

from simclr_jax.closing import Closing

LENT = 2**24  # bytes of a thread: of some photographs of the web, or one of five megapixels


class Scratch:
    """The memory of a thread.

    What was decoded into it is valid until `clear`.
    """

    def __init__(self):
        self._memory, self._used = np.empty(LENT, np.uint8), 0

    def clear(self) -> None:
        """Let go of what was decoded."""
        self._used = 0

    def take(self, count: int) -> np.ndarray | None:
        """Return so many bytes; None where so many are not left."""
        if self._used + count > LENT:
            return None
        self._used += count
        return self._memory[self._used - count : self._used]


_OF_THREAD = threading.local()
_LENT: ContextVar[Scratch | None] = ContextVar("lent", default=None)


@contextlib.contextmanager
def lent() -> Iterator[Scratch]:
    """Let this thread decode into memory of its own, which is empty.

    Images that are decoded meanwhile must be used before it is cleared, or lent again.
    """
    if not hasattr(_OF_THREAD, "scratch"):
        _OF_THREAD.scratch = Scratch()
    own: Scratch = _OF_THREAD.scratch
    own.clear()
    token = _LENT.set(own)
    with Closing(lambda: _LENT.reset(token)):
        yield own


def room(count: int) -> np.ndarray | None:
    """Return memory for an image of so many bytes; None: whoever decodes it takes its own."""
    own = _LENT.get()
    return None if own is None else own.take(count)
