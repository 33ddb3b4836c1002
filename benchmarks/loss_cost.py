"""What NT-Xent costs: temporaries and time, all rows at once beside rows in tiles, as shipped.

    python benchmarks/loss_cost.py
    python benchmarks/loss_cost.py --compiled=16384x1 --timed=4096 --at_once=256,1024 --turns=9

The loss with its metrics and its gradient by both views, in float32. `plain` takes all rows of a
device at once, `shipped` as many as the loss chooses by itself (`losses/tiles.py`); --at_once adds
other numbers. Temporaries are what the compiler plans for one device (`memory_analysis`); sizes of
--compiled are pairs x devices and are never run: where so many devices are not here, CPU devices
stand for them. Those of --timed are run on one device, the ways in turns; plain takes about 8 GiB
at 16384 pairs. Machines are noisy: read the ratio, and how
far from 1 it is where both ways are the same program, as they are where `shipped` takes all rows.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from absl import flags

from simclr_jax import entry, errors, flag_kinds

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

FLAGS = flags.FLAGS
flags.DEFINE_list("compiled", ["16384x1", "65536x8"], "Pairs x devices, compiled only.")
flags.DEFINE_list("timed", ["1024", "4096", "16384"], "Pairs, run on one device; or none.")
flags.DEFINE_list("at_once", [], "Further numbers of rows to take at once.")
flags.DEFINE_integer("dim", 128, "Numbers in a projection.", lower_bound=1)
flags.DEFINE(flag_kinds.Number(above=0), "temperature", 0.1, "Of the loss.")
flags.DEFINE_integer("turns", 5, "How often each way is timed.", lower_bound=1)
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

MIB = 2**20
TURN = 0.3  # seconds at least


def main() -> None:
    """Print both tables."""
    sizes, pairs, tiles = asked()
    if sizes and pairs:
        # So many CPU devices share the threads of one: what is timed would not be one device.
        given = ("compiled", "at_once", "dim", "temperature", "turns")
        same = [f"--{name}={_text(FLAGS[name].value)}" for name in given if FLAGS[name].value]
        command = [sys.executable, __file__, *same, "--timed=none"]
        code = subprocess.run(command, check=False).returncode
        if code:
            raise SystemExit(code)
        print()
    elif sizes:
        compiled(sizes, tiles)
    if pairs:
        timed(pairs, tiles)


def asked() -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Return the sizes to compile for, pairs and devices; the pairs to time; rows at once.

    Raises:
      UserError: for what is no such number, or no whole number of pairs on each device.
    """
    sizes = []
    for text in FLAGS.compiled:
        found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
        if not found:
            raise errors.UserError(f'--compiled has "{text}": write PAIRSxDEVICES, as 65536x8')
        pairs, devices = map(int, found.groups())
        if pairs % devices:
            raise errors.UserError(
                f"--compiled has {text}: {pairs} pairs are no {devices} equal parts, give a "
                "multiple"
            )
        sizes.append((pairs, devices))
    numbers: dict[str, list[int]] = {}
    for flag in ("timed", "at_once"):
        texts = [] if getattr(FLAGS, flag) == ["none"] else getattr(FLAGS, flag)
        given = [errors.number(f"--{flag}", text, above=0) for text in texts]
        if wrong := [number for number in given if number != int(number)]:
            raise errors.UserError(f"--{flag} has {wrong[0]:g}: give whole numbers")
        numbers[flag] = [int(number) for number in given]
    return sizes, numbers["timed"], numbers["at_once"]


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def ways(pairs: int, devices: int, tiles: list[int]) -> dict[str, int]:
    """Return by how many rows at once each way compares the pairs of one device."""
    import jax.numpy as jnp

    from simclr_jax.losses.tiles import rows_at_once

    rows = pairs // devices
    found = {"plain": rows, "shipped": rows_at_once(rows, 2 * pairs, jnp.float32)}
    return found | {f"{number} at once": number for number in tiles if number < rows}


def compiled(sizes: list[tuple[int, int]], tiles: list[int]) -> None:
    """Print the temporaries that the compiler plans for one device."""
    most = max(devices for _, devices in sizes)
    count = f"--xla_force_host_platform_device_count={most}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
    import jax
    import jax.numpy as jnp

    print("| pairs | devices | compiled for | way | rows at once | MiB of temporaries |")
    print("|" + "---|" * 6)
    for pairs, devices in sizes:
        here = jax.devices()
        chosen = here if len(here) >= devices else jax.devices("cpu")
        mesh = _mesh(chosen[:devices])
        z = jax.ShapeDtypeStruct((pairs, FLAGS.dim), jnp.float32)
        for way, rows in ways(pairs, devices, tiles).items():
            found = gradient(mesh, rows).lower(z, z).compile().memory_analysis()
            cells = (pairs, devices, chosen[0].device_kind, way, rows)
            size = f"{found.temp_size_in_bytes / MIB:.1f}"
            print("|", " | ".join(map(str, (*cells, size))), "|", flush=True)


def timed(sizes: list[int], tiles: list[int]) -> None:
    """Print the time of each way on one device, in turns, and as a share of the plain one's."""
    import jax

    device = jax.devices()[0]
    print(f"on one {device.device_kind}, JAX {jax.__version__}, {FLAGS.turns} turns")
    print("| pairs | way | rows at once | median ms | best ms | over plain | best over best |")
    print("|" + "---|" * 7)
    for pairs in sizes:
        views = [jax.random.normal(jax.random.key(i), (pairs, FLAGS.dim)) for i in range(2)]
        found = ways(pairs, 1, tiles)
        calls = {way: gradient(_mesh([device]), rows) for way, rows in found.items()}
        times: dict[str, list[float]] = {way: [] for way in calls}
        for call in calls.values():
            jax.block_until_ready(call(*views))  # compiles
        often = max(1, round(TURN / _seconds(calls["plain"], views, 1)))
        for turn in range(FLAGS.turns):
            for way, call in sorted(calls.items(), reverse=bool(turn % 2)):  # none is always first
                times[way].append(_seconds(call, views, often))
        plain, best = statistics.median(times["plain"]), min(times["plain"])
        for way, rows in found.items():
            median, least = statistics.median(times[way]), min(times[way])
            cells = f"{pairs} | {way} | {rows} | {1e3 * median:.2f} | {1e3 * least:.2f}"
            print(f"| {cells} | {median / plain:.3f} | {least / best:.3f} |", flush=True)


def _seconds(call: Callable[..., Any], views: list[jax.Array], often: int) -> float:
    """Return the seconds of a call, the mean over so many."""
    import jax

    start = time.perf_counter()
    for _ in range(often):
        result = call(*views)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / often


def _mesh(devices: list[jax.Device]) -> Mesh:
    import numpy as np
    from jax.sharding import AxisType, Mesh

    from simclr_jax.parallel import AXIS

    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def gradient(mesh: Mesh, at_once: int) -> Any:
    """Return the jitted function from both views to loss and metrics, and the gradient.

    Args:
      mesh: the devices over which the pairs are spread.
      at_once: see `nt_xent`.
    """
    import jax
    from jax import lax
    from jax.sharding import PartitionSpec as P

    from simclr_jax.losses.nt_xent import nt_xent
    from simclr_jax.parallel import AXIS

    temperature = FLAGS.temperature

    def share(z1: jax.Array, z2: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return nt_xent(z1, z2, temperature=temperature, axis_name=AXIS, at_once=at_once)

    def of_device(z1: jax.Array, z2: jax.Array) -> Any:
        found, slopes = jax.value_and_grad(share, argnums=(0, 1), has_aux=True)(z1, z2)
        return lax.psum(found, AXIS), slopes

    split = P(AXIS)
    return jax.jit(jax.shard_map(of_device, mesh=mesh, in_specs=split, out_specs=(P(), split)))


if __name__ == "__main__":
    entry.run(main)
