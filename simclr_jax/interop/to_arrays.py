"""Arrays by name in one file: safetensors with PyTorch's names and layouts, NumPy with our own.

Neither runs anything: what is read back is put into the network again, and that is compared.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from simclr_jax import archives, extras
from simclr_jax.interop import to_torch, torch_names
from simclr_jax.interop.network import Network, on_cpu

ABOUT = "about"


def check_safetensors() -> str:
    """Return what reads the file. Raises `UserError` if it is not installed."""
    with extras.needed("--format=safetensors", "safetensors"):
        import safetensors
    return f"safetensors {safetensors.__version__}"


def write_safetensors(network: Network, out: Path) -> None:
    """Write a file with PyTorch's names; what is said of it is JSON under `about`."""
    from safetensors.numpy import save

    about = json.dumps(network.about())
    out.write_bytes(save(to_torch.state(network), metadata={"format": "pt", ABOUT: about}))


def run_safetensors(out: Path, network: Network, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the network gives with the arrays of the file."""
    from safetensors.numpy import load_file

    names = torch_names.paths(traverse_util.flatten_dict(network.variables), network.architecture)
    return _applied(network, torch_names.to_tree(load_file(out), names), images)


def check_numpy() -> str:
    """Return what reads the file."""
    return f"NumPy {np.__version__}"


def write_numpy(network: Network, out: Path) -> None:
    """Write an archive with our names; what is said of it is JSON in the array `about`."""
    arrays: dict[str, Any] = traverse_util.flatten_dict(network.variables, sep="/")
    arrays[ABOUT] = np.array(json.dumps(network.about()))
    np.savez(out, **arrays)


def run_numpy(out: Path, network: Network, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the network gives with the arrays of the archive."""
    flat = archives.read(out)
    del flat[ABOUT]
    return _applied(network, traverse_util.unflatten_dict(flat, sep="/"), images)


def _applied(network: Network, tree: dict, images: np.ndarray) -> dict[str, np.ndarray]:
    variables = {"params": {}, "batch_stats": {}} | tree
    with on_cpu():
        return jax.device_get(jax.jit(network.apply)(variables, images))
