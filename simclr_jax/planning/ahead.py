"""What the TPU's own compiler says of a program, on a machine without a TPU.

PyPI's `libtpu` (the extra `plan`) holds the compiler; a description of a topology
stands in for the devices.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from simclr_jax import extras
from simclr_jax.errors import UserError
from simclr_jax.parallel import AXIS
from simclr_jax.planning import devices
from simclr_jax.planning.footprint import Footprint

# The compiler tries fewer ways to make the program fast: minutes in place of a quarter of an hour.
# docs/planning.md has what that does to memory.
QUICK = {"exec_time_optimization_effort": -1.0}


# Read by libtpu when it is loaded.
SETTINGS = {
    # This may be no TPU machine: nobody is to be asked which, and any will do.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is run, so no other program is in the way
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiled step needs.

    Attributes:
      memory: of one device; None if it does not fit.
      needed: bytes of all of it, with the program itself; or what the compiler says it lacks room
        for, which may be its temporaries alone.
      flops: of one device and step, with those of elementwise operations.
      accessed: bytes that a device reads and writes in a step, in memory of any kind. Bodies of
        loops, such as the parts of a batch, are counted once by XLA, here and in `flops`.
      collectives: bytes each device receives in a step, by kind.
      exchanges: how many collectives there are in a step, by kind.
    """

    memory: Footprint | None
    needed: float
    flops: float
    accessed: float
    collectives: dict[str, int]
    exchanges: dict[str, int]


def available() -> bool:
    """Tell whether the TPU's compiler is installed."""
    return importlib.util.find_spec("libtpu") is not None


def mesh(device: str, chips: int) -> Mesh:
    """Return the mesh over the devices of a TPU slice that need not exist.

    Raises:
      UserError: if there are no such slices, or libtpu is not installed or cannot be used.
    """
    name, options = devices.topology(device, chips)
    if not available():
        raise UserError(
            f"libtpu is not installed: {extras.install('plan')}, or leave --compile out"
        )
    for name_of_setting, value in SETTINGS.items():
        os.environ.setdefault(name_of_setting, value)
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(topology_name=name, platform="tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"libtpu does not describe {name}: {reason}") from error
    return Mesh(np.array(described.devices), (AXIS,), axis_types=(AxisType.Auto,))


def compile_step(step: Any, state: Any, batch: Any, *, quick: bool = True) -> Compiled:
    """Compile a step of `train.step.make_step` for the devices of its mesh.

    Args:
      step: the step.
      state: description of the state, with shardings.
      batch: likewise.
      quick: let the compiler take less time.
    """
    try:
        lowered = step.lower(state, batch)
        compiled = lowered.compile(QUICK if quick else None)
    except jax.errors.JaxRuntimeError as error:
        needed = out_of_memory(str(error))
        if needed is None:
            raise
        return Compiled(None, needed, math.nan, math.nan, {}, {})
    found, text = compiled.memory_analysis(), compiled.as_text()
    kept = found.alias_size_in_bytes
    memory = Footprint(kept, found.argument_size_in_bytes - kept, found.temp_size_in_bytes)
    more = found.output_size_in_bytes - kept + found.generated_code_size_in_bytes
    cost = compiled.cost_analysis()
    return Compiled(
        memory,
        memory.peak + more,
        cost["flops"],
        cost["bytes accessed"],
        collectives(text),
        {kind: len(sizes) for kind, sizes in _received(text).items()},
    )


def out_of_memory(text: str) -> float | None:
    """Return the bytes that a compiler wanted, from its complaint; None if it is another."""
    found = re.search(r"\(([\d.]+)([MGT]?)\) exceeds available HBM", text)
    found = found or re.search(r"Used ([\d.]+)([MGT]?) of [\d.]+[MGT]? hbm", text)
    return float(found[1]) * devices.UNITS[found[2]] if found else None


COLLECTIVE = re.compile(
    r"= (?P<type>.+?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute|collective-broadcast)(?P<phase>-start|-done)?\("
)
ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+(?P<bits>\d+))\[(?P<shape>[\d,]*)\]")


COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
CALLED = re.compile(r"(?P<how>body|condition|calls|to_apply)=%?(?P<name>[\w.\-]+)")
TRIPS = re.compile(r'known_trip_count":\s*\{"n":"(\d+)"')
BOUND = re.compile(r"= s32\[\](?:\{[^}]*\})? constant\((\d+)\)")


def collectives(text: str) -> dict[str, int]:
    """Return the bytes each device receives in a compiled program, by kind of collective."""
    return {kind: sum(sizes) for kind, sizes in _received(text).items()}


def _received(text: str) -> dict[str, list[int]]:
    """Return the bytes that each collective of a compiled program brings, by its kind.

    Those in a loop come as often as it runs, where the program says how often.
    """
    bodies: dict[str, list[str]] = {}
    entry, lines = "", list[str]()
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            lines = bodies[head["name"]] = []
            entry = head["name"] if head["entry"] else entry
        else:
            lines.append(line)

    @functools.cache
    def inside(name: str) -> dict[str, list[int]]:
        received: dict[str, list[int]] = {}
        for line in bodies.get(name, ()):
            found = COLLECTIVE.search(line)
            # An asynchronous collective is a pair; the type of its end is the result alone.
            if found and found["phase"] != "-start":
                received.setdefault(found["kind"], []).append(_bytes(found["type"]))
            called = {each["how"]: each["name"] for each in CALLED.finditer(line)}
            times = _trips(line, bodies.get(called.get("condition", ""), []))
            for each in called.values():
                for kind, sizes in inside(each).items():
                    received.setdefault(kind, []).extend(times * sizes)
        return received

    return inside(entry)


def _trips(line: str, condition: list[str]) -> int:
    """Return how often what a line calls runs: 1, or in a loop to the bound of its condition."""
    if known := TRIPS.search(line):
        return int(known[1])
    bounds = [int(found[1]) for each in condition if (found := BOUND.search(each))]
    return bounds[0] if len(bounds) == 1 else 1


def _bytes(type_: str) -> int:
    """Return the bytes of the arrays of a type."""
    return sum(
        math.prod(map(int, filter(None, array["shape"].split(","))))
        * (int(array["bits"] or 8) // 8)
        for array in ARRAY.finditer(type_)
    )
