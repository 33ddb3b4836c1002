"""The mesh: one axis over all devices of all hosts, and where arrays live on it."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from simclr_jax import files

AXIS = "data"

# What a compiler for GPUs must be told for its programs to repeat to the bit: no sums by atomic
# additions, and no kernels chosen by how fast they were a moment ago. It implies
# xla_gpu_exclude_nondeterministic_ops. Compilers of all devices know the option.
DETERMINISTIC = {"xla_gpu_deterministic_ops": True}


def make_mesh(devices: int | None = None) -> Mesh:
    """Return the 1-D mesh over the first `devices` devices, or over all of them.

    The devices of a process are neighbours, so its part of a batch is one run of rows.
    """
    chosen = sorted(jax.devices(), key=lambda device: device.process_index)[:devices]
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def compiler_options(mesh: Mesh | AbstractMesh, deterministic: bool) -> dict[str, bool] | None:
    """Return the `compiler_options` of `jax.jit` for programs that are to repeat to the bit.

    None where the devices of the mesh repeat themselves anyway, as CPUs and TPUs do, and where
    nobody asks for it.
    """
    return dict(DETERMINISTIC) if deterministic and on_gpus(mesh) else None


def on_gpus(mesh: Mesh | AbstractMesh) -> bool:
    """Say whether the devices of a mesh are GPUs, whoever made them; of no devices they are not."""
    return not isinstance(mesh, AbstractMesh) and mesh.devices.flat[0].platform in (
        "gpu",
        "cuda",
        "rocm",
    )


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Put a whole tree of host arrays, the same in all processes, on every device."""
    return jax.tree.map(lambda x: place(x, NamedSharding(mesh, P())), tree)


def place(values: Any, sharding: Sharding) -> jax.Array:
    """Put an array that every process has whole on the devices of a sharding."""
    traced = isinstance(values, jax.core.Tracer)
    if sharding.is_fully_addressable or traced or getattr(values, "sharding", None) == sharding:
        return jax.device_put(values, sharding)
    values = np.asarray(values)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def describe(mesh: Mesh, shapes: Any) -> Any:
    """Say of a tree of shapes that every device is to hold the whole of it."""
    replicated = NamedSharding(mesh, P())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), shapes
    )


def shard(mesh: Mesh, tree: Any, axis: int = 0) -> Any:
    """Put this host's part of a batch on its devices, split along `axis`.

    Args:
      tree: NumPy arrays; along `axis` the rows of this host, a multiple of its devices.
    """
    sharding = NamedSharding(mesh, P(*[None] * axis, AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def everyone(rows: jax.Array) -> jax.Array:
    """Return the rows `[N, ...]` of all devices, in the order of the global batch.

    Inside `shard_map`. Unlike after `lax.all_gather`, the result counts as the same on every device
    and may be part of the state.
    """
    n, devices = rows.shape[0], lax.axis_size(AXIS)
    gathered = jnp.zeros((devices * n, *rows.shape[1:]), rows.dtype)
    gathered = lax.pcast(gathered, AXIS, to="varying")
    own = lax.dynamic_update_slice_in_dim(gathered, rows, lax.axis_index(AXIS) * n, 0)
    return lax.psum(own, AXIS)


def local_rows(mesh: Mesh, rows: int) -> slice:
    """Return which rows of a global batch this host supplies: one contiguous part."""
    processes = sorted({device.process_index for device in mesh.devices.flat})
    per_process = rows // len(processes)
    rank = processes.index(jax.process_index())
    return slice(rank * per_process, (rank + 1) * per_process)


def split64(values: np.ndarray) -> np.ndarray:
    """Return 64-bit non-negative integers `[n]` as uint32 `[n, 2]`, high word first.

    JAX without x64 has no 64-bit integers, and positions outgrow 32 bits: 1000 epochs of ImageNet
    are 1.3e9 examples.
    """
    values = np.asarray(values).astype(np.uint64)
    return np.stack([values >> np.uint64(32), values & np.uint64(0xFFFFFFFF)], -1).astype(np.uint32)


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache directory, unless JAX was told otherwise.

    A ResNet-50 step compiles for a minute; the second start takes seconds. On a full disk the run
    goes on without, and says so once.
    """
    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        jax.config.update("jax_compilation_cache_dir", os.fspath(files.cache_directory()))
    if not isinstance(warnings.showwarning, _CacheWarnings):
        warnings.showwarning = _CacheWarnings(warnings.showwarning)
        # Of several programs of one name Python would show the first.
        warnings.filterwarnings("always", "Error (reading|writing) persistent compilation")


class _CacheWarnings:
    """Says in one line what JAX warns of for each program, and removes what is half written.

    JAX would try to read that at every start, and never write it again.
    """

    said_of = re.compile(r"Error (reading|writing) persistent compilation .* '(.*?)': (.*)", re.S)

    def __init__(self, before: Callable[..., None]):
        self._before, self._said = before, set[str]()

    def __call__(self, message: Warning | str, *where: Any, **options: Any) -> None:
        if not (found := self.said_of.match(str(message))):
            self._before(message, *where, **options)
            return
        action, program, reason = found.groups()
        directory = os.fspath(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            for path in Path(directory).glob(f"{glob.escape(program)}-*-cache"):
                path.unlink(missing_ok=True)
        if action not in self._said:
            self._said.add(action)
            done = {"reading": "read from", "writing": "kept in"}[action]
            reason = " ".join(reason.split())[:200]
            with contextlib.suppress(OSError):
                print(
                    f"note      compiled programs cannot be {done} {directory} ({reason}): they "
                    "are compiled anew",
                    file=sys.stderr,
                    flush=True,
                )
