"""Signs of life: work that takes long says so, whatever it is busy with.

    with alive.during("compiling the step", say):
        compiled = lowered.compile()

says after ten seconds, and every ten from then on, `working   compiling the step, 0:10 so far`. The
lines come from a thread, so that nothing has to be called meanwhile: not by a compiler, and not by
another library.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from simclr_jax.closing import Closing

SECS = 10.0  # between two lines

Say = Callable[[str], object]  # takes a line


def during(
    what: str, say: Say, secs: float | None = None
) -> contextlib.AbstractContextManager[None]:
    """Say every few seconds that the `with` block is still at work.

    Args:
      what: it does, in words.
      say, secs: as in `lines`.
    """
    return lines(lambda gone: f"working   {what}, {duration(gone)} so far", say, secs)


@contextlib.contextmanager
def lines(line: Callable[[float], str], say: Say, secs: float | None = None) -> Iterator[None]:
    """Say every few seconds how far the `with` block is.

    Args:
      line: from the seconds since it began to the line; "": nothing is said this time.
      say: receives each line, in another thread. What it raises ends the lines and nothing else:
        who is at work meets a closed pipe or a full disk by itself.
      secs: between two lines; `SECS` by default.
    """
    every, done, start = secs or SECS, threading.Event(), time.monotonic()

    def speak() -> None:
        with contextlib.suppress(OSError):
            while not done.wait(every):
                if text := line(time.monotonic() - start):
                    say(text)

    speaker = threading.Thread(target=speak, name="signs of life", daemon=True)
    speaker.start()
    with Closing(done.set, speaker.join):
        yield


def duration(seconds: float) -> str:
    """Return `m:ss`, `h:mm:ss` or `2d 03:04:05`."""
    minutes, secs = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}:{minutes:02}:{secs:02}"
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"
