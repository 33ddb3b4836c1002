"""Decoded images at positions of the order; what cannot be read is replaced and listed."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypedDict, TypeVar, cast

import numpy as np
from etils import epath

from simclr_jax import documents, files
from simclr_jax.closing import Closing
from simclr_jax.data.decode import BadImage, within_memory
from simclr_jax.data.read_ahead import ReadAhead
from simclr_jax.data.sources.arrays import Images
from simclr_jax.data.sources.source import Source
from simclr_jax.data.stream import Stream
from simclr_jax.errors import UserError, printable

SHOWN = 3  # unreadable images named on the console; the file lists all

Job = TypeVar("Job")
Done = TypeVar("Done")


class Listed(TypedDict):
    """A line of a list of images that could not be read."""

    image: str
    reason: str


class Row(NamedTuple):
    """A decoded image `[h, w, c]`, its label and its number."""

    image: np.ndarray
    label: int
    example: int


class Rows(NamedTuple):
    """Decoded images `[h, w, c]`, of any sizes, their labels and their numbers, int32 `[n]`."""

    images: list[np.ndarray]
    labels: np.ndarray
    examples: np.ndarray

    @classmethod
    def of(cls, rows: list[Row]) -> Rows:
        """Return images that were read one by one."""
        return cls(
            [row.image for row in rows],
            np.array([row.label for row in rows], np.int32),
            np.array([row.example for row in rows], np.int32),
        )


@dataclasses.dataclass
class Unreadable:
    """The list of images that could not be read; it stops the run when there are too many.

    Attributes:
      role: what the images are for: "train", say.
      size: how many there are.
      max_fraction: of them, this share may be unreadable.
      path: a file of one JSON object a line, continued by a resumed run; None keeps none.
      say: receives a line about each of the first few.
      fate: what becomes of their places, in words.
    """

    role: str
    size: int
    max_fraction: float
    path: epath.Path | None = None
    say: Callable[[str], object] = lambda line: None
    fate: str = "another image takes its place"

    def __post_init__(self):
        self._lock = threading.Lock()
        self._met: set[str] = set()  # by this process: what was repaired meanwhile counts no more
        self._listed: dict[str, str] = {}
        if self.path is not None and self.path.exists():
            self._read(self.path)
            self._write()

    def __len__(self) -> int:
        return len(self._met)

    def add(self, name: str, reason: object) -> None:
        """Note an image, once.

        Raises:
          UserError: if there are now more than `max_fraction` allows.
        """
        with self._lock:
            if name in self._met:
                return
            self._met.add(name)
            if name not in self._listed:
                self._listed[name] = str(reason)
                self._append(name)
            listed = f", listed in {self.path}" if self.path is not None else ""
            self.check(len(self), f"{name} ({reason}){listed}")
            if len(self) <= SHOWN:
                self.say(printable(f"unreadable: {name} ({reason}); {self.fate}"))

    def check(self, count: int, such: str) -> None:
        """Raise `UserError` if `count` unreadable images, such as one, are more than allowed."""
        if count > self.max_fraction * self.size:
            raise UserError(
                f"{count} of {self.size} images ({self.role}) are unreadable so far, such as "
                f"{such}: repair them, or raise data.max_bad_fraction={self.max_fraction}"
            )

    def _read(self, path: epath.Path) -> None:
        # A kill may have left half a line at the end. An image of a damaged one is listed again
        # when it is met again.
        lines, damaged = documents.content(path).rpartition(b"\n")[0].split(b"\n"), 0
        for line in filter(None, lines):
            try:
                record = documents.parse(line, Listed)
            except documents.Unfit:
                damaged += 1
            else:
                self._listed[record["image"]] = record["reason"]
        if damaged:
            self.say(f"note      {damaged} damaged line(s) of {documents.shown(path)} are left out")

    def _append(self, name: str) -> None:
        if self.path is not None and files.is_local(self.path):
            with files.explaining(self.path), self.path.open("a") as file:
                file.write(self._line(name))
        else:
            self._write()

    def _write(self) -> None:
        if self.path is not None:
            with files.explaining(self.path):
                files.write_atomically(self.path, "".join(map(self._line, self._listed)))

    def _line(self, name: str) -> str:
        return documents.line({"image": name, "reason": self._listed[name]})


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads what stands at given positions, until it is closed.

    Attributes:
      source: of the images.
      order: from positions to examples, both int64 `[n]`.
      unreadable: told about each example that could not be read.
    """

    source: Source
    order: Callable[[np.ndarray], np.ndarray]
    unreadable: Unreadable
    _closed: threading.Event = dataclasses.field(
        default_factory=threading.Event, init=False, repr=False, compare=False
    )
    # Held while announcing and while closing: one thread does the one, another the other.
    _announcing: threading.Lock = dataclasses.field(
        default_factory=threading.Lock, init=False, repr=False, compare=False
    )

    def read(
        self,
        positions: np.ndarray,
        shrink: Callable[[np.ndarray], np.ndarray] = lambda image: image,
    ) -> Rows:
        """Decode the examples at `positions`, int64 `[n]`, and `shrink` each before the next.

        In place of an unreadable one stands the example of the next position that is readable,
        which is the same one on any number of hosts and after any restart. `examples` are the
        numbers of the images that were taken.

        Raises:
          CancelledError: once the reader is closed.
        """
        return Rows.of(list(self.each(positions, shrink)))

    def each(
        self,
        positions: np.ndarray,
        shrink: Callable[[np.ndarray], np.ndarray] = lambda image: image,
    ) -> Iterator[Row]:
        """Yield one image after the other with its label and number, each as `read` returns them.

        The next is decoded when it is asked for.

        Raises:
          CancelledError: once the reader is closed.
        """
        for position, example in zip(positions, self.order(positions), strict=True):
            if self._closed.is_set():
                raise CancelledError
            yield self._row(position, example, shrink)

    def announce(self, positions: np.ndarray) -> None:
        """Start to fetch what will stand at `positions`, where the order has blocks to fetch.

        It is kept until `release` of the same positions. All windows end at about the same batch:
        what follows them is fetched while they last.
        """
        if isinstance(self.order, Stream):
            blocks = self._blocks(positions)
            later = self._blocks(self.order.a_window_later(positions))
            with self._announcing:
                if not self._closed.is_set():
                    self._records.announce(blocks, later)

    def release(self, positions: np.ndarray) -> None:
        """Forget what was announced for these positions, which were read, and for no others."""
        if isinstance(self.order, Stream):
            self._records.release(self._blocks(positions))

    def close(self) -> None:
        """End `read`, and fetch no more of what was announced."""
        with self._announcing:
            self._closed.set()
        if isinstance(self.order, Stream):
            self._records.close()

    @property
    def _records(self) -> ReadAhead:
        of_records: Any = self.source
        return of_records.raw

    def _blocks(self, positions: np.ndarray) -> list[np.ndarray]:
        """Return the blocks to fetch for positions, as rows of the records."""
        stream, of_records = cast(Stream, self.order), cast(Any, self.source)
        return [of_records.rows[examples] for examples in stream.blocks(positions)]

    def _row(self, position: int, example: int, shrink: Callable[[np.ndarray], np.ndarray]) -> Row:
        """Return the first readable image from a position on: shrunk pixels, label and number."""
        # Ends, because `unreadable` refuses a source that has nothing else to offer.
        while True:
            try:
                with within_memory(functools.partial(self.source.name, int(example))):
                    image, label = self.source.example(int(example))
                    return Row(shrink(image), label, int(example))
            except BadImage as reason:
                self.unreadable.add(self.source.name(int(example)), reason)
            position += 1
            (example,) = self.order(np.array([position]))


def load(source: Source, unreadable: Unreadable, threads: int) -> Images:
    """Decode a whole split into memory; its images must have one size.

    Unreadable images stay in their place, marked and with their labels, so that the order of
    examples is the same as where images are decoded as they are needed.

    Raises:
      UserError: if sizes differ, naming two images that do.
    """
    if isinstance(source, Images):
        return source

    def decoded(i: int) -> np.ndarray | None:
        try:
            with within_memory(functools.partial(source.name, i)):
                return source.example(i)[0]
        except BadImage as reason:
            unreadable.add(source.name(i), reason)
            return None

    pixels, first, bad = None, 0, np.zeros(len(source), bool)
    with ThreadPoolExecutor(threads) as pool:
        for i, found in enumerate(ahead(pool, decoded, range(len(source)), 64 * threads)):
            if found is None:
                bad[i] = True
                continue
            if pixels is None:
                pixels, first = _room(len(source), found.shape), i
            if found.shape != pixels.shape[1:]:
                a, b = ("x".join(map(str, s[:2])) for s in (pixels.shape[1:], found.shape))
                raise UserError(
                    f"augment.placement=device needs images of one size, but {source.name(first)} "
                    f"is {a} and {source.name(i)} {b} pixels: set --config.augment.placement=split "
                    "--config.augment.grid=opencv"
                )
            pixels[i] = found
    assert pixels is not None  # `unreadable` has refused a split without a readable image
    marked = bad if bad.any() else None
    return Images(pixels, source.labels, source.classes, marked, source.class_names)


def _room(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return zeros for so many images of a shape, which memory may not have room for."""
    try:
        return np.zeros((count, *shape), np.uint8)
    except MemoryError as error:
        raise UserError(
            f"{count} images of {shape[0]}x{shape[1]} pixels do not fit into memory, where "
            "augment.placement=device keeps them: set --config.augment.placement=split "
            "--config.augment.grid=opencv"
        ) from error


def ahead(
    pool: ThreadPoolExecutor, work: Callable[[Job], Done], jobs: Iterable[Job], depth: int
) -> Generator[Done, None, None]:
    """Yield `work(job)` for each job, in order, with up to `depth` more under way."""
    waiting: deque[Future[Done]] = deque()
    with Closing(lambda: [future.cancel() for future in waiting]):
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
