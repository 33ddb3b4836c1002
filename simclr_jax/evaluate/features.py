"""Run a frozen encoder over a set of images, every image once on any number of devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from simclr_jax.errors import UserError
from simclr_jax.parallel import AXIS, DETERMINISTIC, compiler_options, replicate

SMALLEST = 64  # images in a call


class Images(Protocol):
    """Random access by slice: an array `[M, H, W, C]` or anything that behaves like one."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Any: ...


def extract(
    encode: Callable[[Any, jax.Array], Any],
    variables: Any,
    images: Images,
    mesh: Mesh,
    batch_size: int = 512,
    deterministic: bool = False,
) -> Any:
    """Return `encode(variables, images)` for all `M` images as host arrays, in their order.

    `encode` maps variables and `[b, H, W, C]` images to `[b, ...]` features, or to a pytree of
    such arrays (`dict(h=..., z=...)`); it runs in inference mode, so that a feature does not
    depend on the rest of its batch. It is compiled once per function object and batch shape:
    pass the same object again to reuse the program.

    Args:
        encode: pure function, run on each device's rows of a batch.
        variables: pytree of arrays, copied to every device and left as it is.
        images: `[M, H, W, C]`, any dtype; only the slices a process needs are read.
        mesh: 1-D mesh with the axis "data".
        batch_size: images per call over all devices, rounded up to a multiple of them; less where
            there are few images.
        deterministic: whether GPUs must find the same bits at every call.

    Returns:
        The pytree of `encode` with NumPy leaves `[M, ...]`, whole on every process.

    Raises:
        UserError: there are no images, or `batch_size` is below 1.
    """
    count, devices = len(images), mesh.shape[AXIS]
    if count == 0:
        raise UserError("there are no images to encode: give at least one")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: give at least 1")
    # Padding costs as much as images do; few sizes, few programs.
    batch_size = min(batch_size, max(SMALLEST, 1 << (count - 1).bit_length()))
    batch_size = -(-batch_size // devices) * devices
    variables = replicate(mesh, variables)
    features: Any = None
    program = _repeatable if compiler_options(mesh, deterministic) else _encode
    run = functools.partial(program, encode, mesh, variables)
    for start, outputs in _outputs(run, images, mesh, batch_size):
        if features is None:
            features = jax.tree.map(lambda x: np.empty((count, *x.shape[1:]), x.dtype), outputs)
        jax.tree.map(functools.partial(_store, start), features, outputs)
    return features


def _outputs(
    run: Callable[[jax.Array], Any], images: Images, mesh: Mesh, batch_size: int
) -> Iterator[tuple[int, Any]]:
    """Yield each batch's first position and outputs, once the next batch is on its way."""
    running = None
    example = np.asarray(images[0:1])
    for start in range(0, len(images), batch_size):
        batch = _batch(images, example, start, batch_size, mesh)
        outputs = run(batch)
        if running is not None:
            yield running
        running = start, outputs
    if running is not None:
        yield running


def _store(start: int, features: np.ndarray, outputs: jax.Array) -> None:
    rows = features[start : start + len(outputs)]  # fewer than outputs where those are padding
    rows[:] = np.asarray(outputs)[: len(rows)]


def _batch(
    images: Images, example: np.ndarray, start: int, batch_size: int, mesh: Mesh
) -> jax.Array:
    """Put images `start` to `start + batch_size` on the mesh, zeros past the last."""

    def rows_of_a_device(index: Any) -> np.ndarray:
        first, last, _ = index[0].indices(batch_size)
        rows = np.zeros((last - first, *example.shape[1:]), example.dtype)
        read = min(start + last, len(images)) - (start + first)
        if read > 0:
            rows[:read] = images[start + first : start + first + read]
        return rows

    sharding = NamedSharding(mesh, P(AXIS))
    shape = (batch_size, *example.shape[1:])
    return jax.make_array_from_callback(shape, sharding, rows_of_a_device)


def _on_devices(encode: Callable, mesh: Mesh, variables: Any, images: jax.Array) -> Any:
    def on_device(variables, images):  # images [b / devices, H, W, C]
        outputs = encode(variables, images)
        # Gathered, so that every process can read all rows.
        return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True), outputs)

    # Nothing is differentiated here, and the check would refuse encoders that scan.
    mapped = jax.shard_map(
        on_device, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(), check_vma=False
    )
    return mapped(variables, images)


_encode = jax.jit(_on_devices, static_argnames=("encode", "mesh"))
_repeatable = jax.jit(
    _on_devices, static_argnames=("encode", "mesh"), compiler_options=DETERMINISTIC
)
