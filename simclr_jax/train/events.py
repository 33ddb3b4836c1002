"""What TensorBoard's event files still know of a run's metrics, in float32.

An event file is records, each with checksums. TensorBoard reads it up to the first damage, and goes
on with the next file: a process that resumes a run begins one, and says from which step on what the
files before have is not shown any more.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from simclr_jax import buckets, documents
from simclr_jax.errors import BadFile

HEAD, TAIL = 12, 4  # bytes before and after those of a record
LAST = "input_wait"  # of a line about training; files of earlier versions have an event a number


class Line(NamedTuple):
    """The finite numbers of a line of `metrics.jsonl`, by name, in float32."""

    step: int
    values: dict[str, float]


def sizes(directory: epath.Path) -> dict[str, int]:
    """Return the bytes of each event file.

    Raises:
      UserError: if that cannot be known.
    """
    found = {}
    for path in buckets.listing(directory):
        with contextlib.suppress(FileNotFoundError), buckets.reaching(path, (FileNotFoundError,)):
            found[path.name] = path.stat().length
    return found


def missing(directory: epath.Path, were: Mapping[str, int]) -> list[str]:
    """Say which event files are shorter than they were."""
    now = sizes(directory)
    return [
        f"{name} has {now.get(name, 0)} of {size} bytes"
        for name, size in were.items()
        if now.get(name, 0) < size
    ]


def read(directory: epath.Path) -> list[Line]:
    """Return the lines that the events of a run still have, without those that were written anew.

    The numbers of a line that are not finite are not there.

    Raises:
      UserError: if a file cannot be read for a reason that is not its own: its lines are not lost.
    """
    found: list[Line] = []
    for path in buckets.listing(directory):
        try:
            content = documents.content(path)
        except (FileNotFoundError, BadFile):  # gone, or no file: there is no more there
            continue
        lines, start = _lines(content)
        if start is not None:
            found = [line for line in found if line.step < start] + lines
    return found


def _lines(content: bytes) -> tuple[list[Line], int | None]:
    """Return the lines in a file, and the step from which on those before do not count."""
    lines: list[Line] = []
    start, single = None, False
    for event in _events(content):
        if event.HasField("session_log"):
            start = event.step
        if not event.HasField("summary"):
            continue
        start = start or 0  # a run that starts has not said so in earlier versions
        # Beside numbers there are pictures, a table, and the fields of the recipe.
        numbers = [x for x in event.summary.value if x.WhichOneof("value") == "simple_value"]
        if not numbers:
            continue
        values = {value.tag: value.simple_value for value in numbers}
        goes_on = single and len(values) == 1 and lines and lines[-1].step == event.step
        if goes_on and LAST not in lines[-1].values and not values.keys() & lines[-1].values:
            lines[-1].values.update(values)
        else:
            lines.append(Line(event.step, values))
        single = len(values) == 1
    return lines, start


def _events(content: bytes) -> Iterator[Any]:
    """Yield the events of a file up to its end, or to the first damage."""
    from google.protobuf.message import DecodeError
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def whole(start: int, end: int) -> bool:
        value = crc32c(content[start:end])
        masked = ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF
        return content[end : end + 4] == struct.pack("<I", masked)

    at = 0
    while at + HEAD <= len(content) and whole(at, at + 8):
        end = at + HEAD + struct.unpack_from("<Q", content, at)[0]
        if end + TAIL > len(content) or not whole(at + HEAD, end):
            return
        try:
            yield Event.FromString(content[at + HEAD : end])
        except DecodeError:
            return
        at = end + TAIL
