"""StableHLO by `jax.export`: the program and its weights, for CPUs, GPUs and TPUs, any batch.

model.stablehlo    `jax.export.deserialize` reads it, and needs JAX alone
about.json         preprocessing, taps, recipe, step, checksum
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from simclr_jax import documents
from simclr_jax.interop import to_onnx
from simclr_jax.interop.network import Network, on_cpu

MODEL, ABOUT = "model.stablehlo", "about.json"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
LARGEST = 2_000_000_000  # bytes: a flatbuffer holds no more than 2^31


def check() -> str:
    """Return the runtime that an export is run by."""
    return f"JAX {jax.__version__}"


def write(network: Network, out: Path) -> None:
    """Write the directory.

    Raises:
      UserError: if the weights are too many for a file.
    """
    to_onnx.check_size(network, "StableHLO", LARGEST)
    height, width, channels = network.shape()
    shape = jax.export.symbolic_shape(f"batch, {height}, {width}, {channels}")
    dtype = jnp.uint8 if network.sides else jnp.float32
    program = jax.export.export(jax.jit(network.function()), platforms=PLATFORMS)
    out.mkdir()
    exported = program(jax.ShapeDtypeStruct(shape, dtype))
    (out / MODEL).write_bytes(exported.serialize())
    documents.write(out / ABOUT, network.about())


def run(out: Path, network: Network, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the exported program gives for images `[b, h, w, c]`."""
    program = jax.export.deserialize(bytearray((out / MODEL).read_bytes()))
    with on_cpu():
        return jax.device_get(program.call(jnp.asarray(images)))
