"""`metrics.jsonl` of a run that goes on, as it was when the step was saved that it goes on from.

The checkpoint knows which lines there were. If they are not there any more, because the file was
damaged, cut short, removed or replaced, they are made again from what TensorBoard's events still
have, and what is lost is said. What was there is kept beside it.
"""

from __future__ import annotations

import collections
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from etils import epath

from simclr_jax import documents, files
from simclr_jax.train import events

REPAIRED = "repaired"  # a number of lines whose numbers are those of TensorBoard, float32
MOST_SHOWN = 10  # steps in a line for the user

Content = dict[str, float | None]


class Line(NamedTuple):
    """A line of `metrics.jsonl`: its text with its end, its step and its numbers."""

    text: str
    step: int
    values: Content


class Seal(TypedDict, total=False):
    """What a checkpoint knows of the log.

    Attributes:
      lines: steps of the lines in `metrics.jsonl`.
      crc32: of all of them.
      events: bytes of each of TensorBoard's event files.
      window: steps that are summed up for the next line.
      sums: of each metric over these steps, by `float.hex`.
    """

    lines: list[int]
    crc32: str
    events: dict[str, int]
    window: int
    sums: dict[str, str]


def checksum(texts: Iterable[str], before: str = "0") -> str:
    """Return the checksum of lines, which go on from those whose checksum is `before`."""
    value = int(before, 16)
    for text in texts:
        value = zlib.crc32(text.encode(), value)
    return f"{value:08x}"


def parsed(text: str) -> Line | None:
    """Return a line, None if it is damaged or none of metrics."""
    try:
        values = documents.parse(text, Content)
        step = values.pop("step", None)
    except documents.Unfit:
        return None
    if step is None or step < 0 or step != int(step):
        return None
    return Line(text, int(step), values)


def lines_until(
    path: epath.Path,
    step: int,
    seal: Seal,
    directory: epath.Path,
    say: Callable[[str], None],
) -> list[Line]:
    """Make a file hold the lines up to a step, and return them.

    Args:
      path: of the lines.
      step: that the run goes on from; 0: it starts anew.
      seal: of the checkpoint of that step; `{}` of one by an earlier version.
      directory: of TensorBoard's events.
      say: receives a line about what was not as it should be.

    Raises:
      UserError: if the file cannot be read or written.
    """
    try:
        raw = documents.content(path, "move it away: what can be is made again")
    except FileNotFoundError:
        raw = b""
    # What has no end was being written when the run was killed. Bytes that are no text are damage.
    texts = raw.decode(errors="replace").split("\n")[:-1]
    read = [parsed(f"{text}\n") for text in texts] if step else []
    found = [line for line in read if line and line.step <= step]
    if step == 0 and texts:  # a run that starts anew evaluates step 0 anew
        say(f"nothing was saved before: the run starts anew, and its {path.name} too")
    elif step and seal.get("crc32") != checksum(line.text for line in found):
        found = _mended(path, raw, read, step, seal, events.read(directory), say)
    if (content := "".join(line.text for line in found).encode()) != raw:
        with files.explaining(path):
            files.write_atomically(path, content)
    return found


def _mended(
    path: epath.Path,
    raw: bytes,
    read: Sequence[Line | None],
    step: int,
    seal: Seal,
    known: Iterable[events.Line],
    say: Callable[[str], None],
) -> list[Line]:
    """Return the lines up to a step as far as they are known, and say what was done.

    Where a checkpoint of an earlier version knows nothing of them, events and lines are compared.
    """
    known = [line for line in known if line.step <= step]
    there = places(known)
    found = [line for line in read if line and line.step <= step]
    kept = [line for line in found if agrees(line, there)]
    made = _missing(kept, known)

    def place(line: Line) -> tuple[int, float]:
        """Lines of one step are in the order in which TensorBoard has them."""
        known = [there[line.step, x][1] for x in line.values if (line.step, x) in there]
        return line.step, min(known, default=math.inf)

    lines = sorted(kept + made, key=place)
    had = collections.Counter(seal.get("lines", []))
    lost = sorted((had - collections.Counter(line.step for line in lines)).elements())
    said = []
    if made:
        steps = _shown([line.step for line in made])
        said.append(f"put back from TensorBoard's events, in float32: {steps}")
    if lost:
        said.append(f"lost: {_shown(lost)}")
    if "crc32" in seal and not said and not any(REPAIRED in line.values for line in lines):
        said.append("other numbers were written then, of which nothing is left")
    if said and (None in read or kept != found):
        said.append(f"what was there is kept as {files.keep_damaged(path, raw)}")
    if said:
        say(f"{path.name} is not as it was when step {step} was saved; {'; '.join(said)}")
    return lines


def places(known: Iterable[events.Line]) -> dict[tuple[int, str], tuple[float, int]]:
    """Return, of each step and name that TensorBoard was given, the number and the line's place."""
    return {
        (line.step, name): (x, i) for i, line in enumerate(known) for name, x in line[1].items()
    }


def agrees(line: Line, there: Mapping[tuple[int, str], tuple[float, int]]) -> bool:
    """Tell whether TensorBoard was given no other number than one of a line."""
    for name, value in line.values.items():
        given, _ = there.get((line.step, name), (value, 0))
        with np.errstate(over="ignore"):
            if given != value and (value is None or np.float32(value) != np.float32(given)):
                return False
    return True


def _missing(kept: Iterable[Line], known: Iterable[events.Line]) -> list[Line]:
    """Return lines of what TensorBoard was given and the lines that are `kept` have not."""
    there = {(line.step, name) for line in kept for name in line.values}
    made = []
    for step, values in known:
        lacking = {name: x for name, x in values.items() if (step, name) not in there}
        if lacking:
            content: Content = {**lacking, REPAIRED: 1}
            made.append(Line(documents.line({"step": step, **content}), step, content))
    return made


def _shown(steps: Sequence[int]) -> str:
    more = f" and {len(steps) - MOST_SHOWN} more" if len(steps) > MOST_SHOWN else ""
    line = "line" if len(steps) == 1 else "lines"
    return f"{len(steps)} {line} (of step {', '.join(map(str, steps[:MOST_SHOWN]))}{more})"
