"""The step of a run, compiled in a thread before it is needed, with a word on how long it takes.

That is kept in the user's cache, for the next time. Compiled programs are kept there by JAX
(`parallel.use_compilation_cache`); tracing is done at each start, for it is what notices that the
code has changed.
"""

from __future__ import annotations

import hashlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import jax

from simclr_jax import documents, files, processes
from simclr_jax.background import Work
from simclr_jax.closing import Closing
from simclr_jax.errors import BadFile, UserError
from simclr_jax.train.progress import Console, duration
from simclr_jax.train.stage import Batch, Metrics, TrainState

Value = TypeVar("Value")

NAME = "compile_times.json"  # in the user's cache
MOST = 200  # programs that it remembers, the newest
Shapes = Mapping[str, Any]  # arrays, or what says their shapes, dtypes and shardings
Like = tuple[tuple[str, tuple[int, ...], str], ...]  # batches that one program takes


class Took(TypedDict):
    """What a program took when it was compiled.

    Attributes:
      where: the devices and the version of JAX it was compiled for and by.
      length: of its text.
      seconds: the last time, which may have found it in JAX's cache.
      first: seconds of the first time.
    """

    where: str
    length: int
    seconds: float
    first: float


class Times:
    """What programs took to compile here, kept from run to run.

    It is worth a remark and no more: a file that is damaged counts as empty, and one that cannot be
    read or written, such as in a home that is not there, is left alone.
    """

    def __init__(self) -> None:
        self._path: Path | None = files.cache_directory() / NAME
        self._known: dict[str, Took] = {}
        try:
            self._known = documents.read(files.cache_directory() / NAME, dict[str, Took])
        except (FileNotFoundError, BadFile):
            pass  # the next time that is kept begins it
        except UserError:
            self._path = None

    def expected(self, program: str, where: str, length: int) -> str:
        """Return how long a program will take, in words: from the last time, or by its length."""
        if took := self._known.get(program):
            if took["seconds"] == took["first"]:  # there was one time, and JAX has kept the program
                return f"{_seconds(took['first'])} the first time, now less"
            return f"about {_seconds(took['seconds'])}, as the last time"
        paces = [t["first"] / t["length"] for t in self._known.values() if t["where"] == where]
        if not paces:
            return "for the first time on such devices, which may take minutes"
        guess = statistics.median(paces) * length
        return f"for the first time; by its length about {_seconds(guess)}"

    def keep(self, program: str, where: str, length: int, seconds: float) -> None:
        """Remember what a program took."""
        if self._path is None:
            return
        before = self._known.pop(program, None)  # the newest stand last
        first = before["first"] if before else seconds
        self._known[program] = Took(where=where, length=length, seconds=seconds, first=first)
        newest = dict([*self._known.items()][-MOST:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            documents.write(self._path, newest)
        except (UserError, OSError):
            self._path = None


class Ahead:
    """A step that compiles a program for each shape of batches, before it is called if it is told.

    Args:
      step: of `train.step.make_step`. Any other callable is called as it is.
      state: a description of the state, see `parallel.describe`.
      frozen: see `train.stage.Stage`.
      console: where it is said.
    """

    def __init__(self, step: Any, state: Any, frozen: Any, console: Console):
        self._step, self._state, self._frozen = step, state, frozen
        self._console, self._work = console, dict[Like, Work[Callable]]()

    def begin(self, batches: Shapes) -> None:
        """Compile the program for such batches in a thread."""
        if hasattr(self._step, "lower") and (key := _like(batches)) not in self._work:
            described = {
                name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
                for name, x in batches.items()
            }
            self._work[key] = Work(lambda: self._compile(described))

    def wait(self, chunk: tuple[range, Shapes] | None) -> None:
        """Wait until the program for such a chunk, if any, is there, with a sign of life.

        Raises:
          BaseException: what compiling it raises.
        """
        if chunk is None:
            return
        self.begin(chunk[1])
        if work := self._work.get(_like(chunk[1])):
            self._console.awaited("compiling the training step", work)

    def __call__(
        self, state: TrainState, batches: Batch, frozen: Any
    ) -> tuple[TrainState, Metrics]:
        """Take a chunk of steps; see `train.step.make_step`."""
        work = self._work.get(_like(batches))
        if work is None:
            if not hasattr(self._step, "lower"):
                return self._step(state, batches, frozen)
            self.wait((range(0), batches))  # of another shape, such as a shorter last chunk's
            work = self._work[_like(batches)]
        return work.result()(state, batches, frozen)

    def _compile(self, batches: Shapes) -> Callable:
        start = time.perf_counter()
        lowered = self._step.lower(self._state, dict(batches), self._frozen)
        text = lowered.as_text()
        where = _where(batches)
        program = hashlib.sha256(f"{where} {text}".encode()).hexdigest()[:32]
        traced = time.perf_counter()
        times = Times()
        expected = times.expected(program, where, len(text))
        self._console.say(f"compiling the training step: {expected}")
        compiled = lowered.compile()
        seconds = time.perf_counter() - traced
        if processes.rank() == 0:
            times.keep(program, where, len(text), seconds)
        self._console.say(
            f"compiled  in {_seconds(seconds)}, after {_seconds(traced - start)} of tracing"
        )
        return compiled


def _like(batches: Shapes | Batch) -> Like:
    return tuple((name, x.shape, str(x.dtype)) for name, x in sorted(batches.items()))


def _where(batches: Shapes) -> str:
    devices = next(iter(batches.values())).sharding.device_set
    kind = next(iter(devices)).device_kind
    return f"{len(devices)} x {kind}, JAX {jax.__version__}"


def _seconds(value: float) -> str:
    return duration(value) if value >= 60 else f"{max(value, 0.1):.2g} s"


class FirstAhead(Iterator[Value]):
    """Batches, the first of which is made in a thread from now on."""

    def __init__(self, batches: Iterator[Value]):
        self._batches, self._lock = batches, threading.Lock()
        self._closed = self._made = False
        self._first: Work[Value | None] | None = Work(self._make_first)

    def first(self, console: Console) -> Value | None:
        """Return the first batch, which stays the first, or None if there is none."""
        return console.awaited("reading the first batch", self._first) if self._first else None

    def __next__(self) -> Value:
        if self._first is None:
            return next(self._batches)
        batch, self._first = self._first.result(), None
        if batch is None:
            raise StopIteration
        return batch

    def close(self) -> None:
        """Close the batches: at once, or where the first is being made when it is there."""
        with self._lock:
            self._closed = True
            if not self._made:
                return
        self._close()

    def _make_first(self) -> Value | None:
        with Closing(self._first_is_over):
            return next(self._batches, None)

    def _first_is_over(self) -> None:
        with self._lock:
            self._made, closed = True, self._closed
        if closed:
            self._close()

    def _close(self) -> None:
        getattr(self._batches, "close", lambda: None)()  # those of a run have threads that read
