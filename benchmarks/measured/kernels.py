"""A trace that JAX recorded, summed up by kinds of kernels, without TensorFlow.

JAX reads its own traces (`jax.profiler.ProfileData`). On an accelerator what counts are the lines
of its streams; on a CPU, where a line is a thread, the events that name an operation of the
program.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax.profiler import ProfileData

OTHER = "other"
# The first kind whose pattern is found counts. `convert` is no convolution, a transpose before one
# is no part of it, and names of convolution kernels often have "gemm" in them.
KINDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("collective", r"nccl|all[-_]?reduce|all[-_]?gather|reduce[-_]scatter|all[-_]to[-_]all|"
         r"collective|ppermute"),
        ("copy, transpose", r"memcpy|memset|transpose|n[cd]?hw\w*tonhwc|nhwc\w*ton[cd]?hw|"
         r"(^|[^a-z])copy|concatenate|(^|[^a-z])pad([^a-z]|$)"),
        ("convolution", r"conv(?!ert)|fprop|dgrad|wgrad|cudnn|winograd"),
        ("matrix product", r"gemm|nvjet|cublas|cutlass|matmul|(^|[^a-z])dot([^a-z]|$)"),
        ("pooling, scatter", r"reduce[-_]window|scatter"),
        ("reduction", r"reduce|(^|[^a-z])sort"),
        ("elementwise, normalisation", r"fusion|elementwise|loop_|wrapped_|convert|select|"
         r"broadcast|(^|[^a-z])(add|multiply|maximum|exponential|rsqrt|compare|iota)"),
    )
)  # fmt: skip
# Where in a step an operation was written, by the name that JAX gives it (`op_name`).
PARTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (part, re.compile(pattern))
    for part, pattern in (
        ("encoder, backward", r"transpose\(.*ResNet"),
        ("encoder, forward", r"ResNet"),
        ("head", r"ProjectionHead"),
        ("probe", r"Classifier"),
        ("views", r"/(jvp\()?vmap\("),
        ("loss", r"jvp\("),
        ("update, metrics", r"^jit\("),
    )
)
NAMED = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', re.MULTILINE)
# The lines of a card that hold what ran there; others are derived from these.
LINES = {"/device:GPU": "Stream", "/device:TPU": "XLA Ops"}
# Events that contain others.
CONTAIN = re.compile(r"^(while|call|conditional|end:)")


class Event(NamedTuple):
    """A kernel that ran: its name, that of the operation it belongs to, begin and length in ns."""

    kernel: str
    op: str
    start: float
    length: float


def kind_of(kernel: str, op: str = "") -> str:
    """Return the kind of a kernel, by its name and that of the operation of the program.

    A convolution that runs as a matrix product is a convolution: the operation says so.
    """
    for kind, pattern in KINDS:
        where = kernel or op if kind == "copy, transpose" else f"{kernel} {op}"
        if pattern.search(where):
            return kind
    return OTHER


def part_of(op_name: str) -> str:
    """Return the part of a pretraining step to which an operation belongs, by its `op_name`.

    A fusion has the name of one of its operations.
    """
    return next((part for part, pattern in PARTS if pattern.search(op_name)), OTHER)


def names(text: str) -> dict[str, str]:
    """Return the `op_name` of each instruction of a compiled program that has one."""
    return dict(NAMED.findall(text))


def read(directory: Path) -> list[Event]:
    """Return what ran on the devices of the one trace below a directory."""
    (path,) = directory.rglob("*.xplane.pb")
    return events(ProfileData.from_file(str(path)))


def events(data: ProfileData) -> list[Event]:
    """Return the kernels of all streams of accelerators, or, without one, the CPU's operations."""
    planes = list(data.planes)
    cards = [plane for plane in planes if plane.name.startswith(tuple(LINES))]
    found = []
    for plane in cards or planes:
        wanted = next((LINES[kind] for kind in LINES if plane.name.startswith(kind)), "")
        for line in plane.lines:
            if not line.name.startswith(wanted):
                continue
            for event in line.events:
                op = str(dict(event.stats).get("hlo_op", ""))
                if (op or cards) and not CONTAIN.match(event.name):
                    found.append(Event(event.name, op, event.start_ns, event.duration_ns))
    return found


def busy(found: Iterable[Event]) -> float:
    """Return the share of the time from the first to the last event in which any ran."""
    spans = sorted((event.start, event.start + event.length) for event in found)
    if not spans:
        return 0.0
    covered, end = 0.0, spans[0][0]
    for start, stop in spans:
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    whole = end - spans[0][0]
    return covered / whole if whole else 1.0


def summary(
    found: list[Event], steps: int, named: Mapping[str, str], most: int = 12
) -> dict[str, Any]:
    """Return the kernels of so many steps by kind and by part of the step, and the longest ones.

    Args:
      found: what `read` returns.
      steps: that were recorded.
      named: what `names` returns of the program.
      most: of the longest.

    Returns:
      kinds: for each kind, the longest first, its share of all kernels' time, milliseconds a step
        and kernels a step.
      parts: likewise for each part.
      longest: likewise for the kernels that took longest, with their kind and `op_name`.
      busy: share of the time in which any kernel ran.
    """
    total = sum(event.length for event in found) or 1.0
    kinds: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, list[float]] = defaultdict(list)
    single: dict[tuple[str, str], list[float]] = defaultdict(list)
    # Kernels of a graph may not say of which operation they are, but XLA names its own after it.
    by_kernel = {name.replace(".", "_").replace("-", "_"): where for name, where in named.items()}

    def place(kernel: str, op: str) -> str:
        return named.get(op) or by_kernel.get(kernel, "")

    for event in found:
        kinds[kind_of(event.kernel, event.op)].append(event.length)
        parts[part_of(place(event.kernel, event.op))].append(event.length)
        single[event.kernel, event.op].append(event.length)

    def rows(groups: Mapping[Any, list[float]]) -> dict[Any, dict[str, float]]:
        return {
            key: {
                "share": sum(times) / total,
                "ms_a_step": sum(times) / 1e6 / steps,
                "kernels_a_step": len(times) / steps,
            }
            for key, times in sorted(groups.items(), key=lambda item: -sum(item[1]))
        }

    longest = list(rows(single).items())[:most]
    return {
        "kinds": rows(kinds),
        "parts": rows(parts),
        "longest": [
            {"kernel": kernel[:100], "kind": kind_of(kernel, op), "where": place(kernel, op), **row}
            for (kernel, op), row in longest
        ],
        "busy": busy(found),
    }
