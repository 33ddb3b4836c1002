"""What the TPU's own compiler says of a program, on a machine without a TPU.

PyPI's `libtpu` (`pip install 'simclr-jax[plan]'`) holds the compiler; a description of a topology
stands in for the devices.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

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
      collectives: bytes each device receives in a step, by kind.
    """

    memory: Footprint | None
    needed: float
    flops: float
    collectives: dict[str, int]


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
            "libtpu is not installed: pip install 'simclr-jax[plan]', or leave --compile out"
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
        return Compiled(None, needed, math.nan, {})
    found, text = compiled.memory_analysis(), compiled.as_text()
    kept = found.alias_size_in_bytes
    memory = Footprint(kept, found.argument_size_in_bytes - kept, found.temp_size_in_bytes)
    more = found.output_size_in_bytes - kept + found.generated_code_size_in_bytes
    flops = compiled.cost_analysis()["flops"]
    return Compiled(memory, memory.peak + more, flops, collectives(text))


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


def collectives(text: str) -> dict[str, int]:
    """Return the bytes each device receives in a compiled program, by kind of collective."""
    received: collections.Counter[str] = collections.Counter()
    for line in text.splitlines():
        # An asynchronous collective is a pair; the type of its end is the result alone.
        if (found := COLLECTIVE.search(line)) and found["phase"] != "-start":
            for array in ARRAY.finditer(found["type"]):
                count = math.prod(map(int, filter(None, array["shape"].split(","))))
                received[found["kind"]] += count * (int(array["bits"] or 8) // 8)
    return dict(received)
