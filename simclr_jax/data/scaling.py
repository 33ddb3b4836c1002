"""JPEGs decoded at a part of their size, where they are read to be shrunk.

Their cosine transform can be undone for 1/2, 3/8, 1/4 or 1/8 of the pixels at a part of the cost.
Sources decode what they read and need not know of it: it is asked for around them, in a thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar

from simclr_jax.closing import Closing


@dataclasses.dataclass
class Scaled:
    """What is asked for, and what was done.

    Attributes:
      side: pixels that the longer side of an image keeps, or more; None: all.
      stored: height and width in its file of the image decoded last, if it was scaled.
    """

    side: int | None
    stored: tuple[int, int] | None = None


_SCALED: ContextVar[Scaled | None] = ContextVar("scaled", default=None)


@contextlib.contextmanager
def to(side: int | None) -> Iterator[Scaled]:
    """Decode the JPEGs that this thread reads at a half of their size or less, down to `side`."""
    scaled = Scaled(side)
    token = _SCALED.set(scaled)
    with Closing(lambda: _SCALED.reset(token)):
        yield scaled


def forget() -> None:
    """Begin another image."""
    if scaled := _SCALED.get():
        scaled.stored = None


def wanted(height: int, width: int) -> dict[str, int]:
    """Return the arguments of simplejpeg by which an image of this size is scaled; none: it is not.

    It is then counted as scaled.
    """
    scaled, longer = _SCALED.get(), max(height, width)
    if scaled is None or scaled.side is None or longer < 2 * scaled.side:
        return {}
    scaled.stored = (height, width)
    rows, columns = (-(-x * scaled.side // longer) for x in (height, width))
    return {"min_height": rows, "min_width": columns, "min_factor": 2}
