"""What this program makes of a file of PyTorch's weights."""

from __future__ import annotations

import functools

import jax
import numpy as np
from interop import torch_networks, torch_packages

from simclr_jax.frame import modules
from simclr_jax.interop import convert_torch
from simclr_jax.interop.written import Options

NONE = Options()


def h_of(path, images, options=NONE) -> np.ndarray:
    """Return h of images `[n, h, w, c]` uint8, of the run that a file would become."""
    model = convert_torch.open_model(path, options)
    tree = model.read()
    variables = {kind: sections["encoder"] for kind, sections in tree.items()}
    with jax.default_matmul_precision("highest"):
        h = jax.jit(functools.partial(modules.encoder(model.config).apply, train=False))
        return np.asarray(h(variables, images.astype(np.float32) / 255)["h"])


def both(name: str, path) -> tuple[np.ndarray, np.ndarray]:
    """Save a network of `torch_networks.PROGRAMS`; return h of its images here and there."""
    written = torch_networks.PROGRAMS[name]()
    torch_packages.torch().save(written.content, path)
    images = torch_networks.images(written.size)
    return h_of(path, images), torch_networks.h_of(written, images)


def import_table() -> None:
    """Print the largest difference of each program, as in docs/checkpoints.md."""
    import tempfile
    from pathlib import Path

    for name in torch_networks.PROGRAMS:
        with tempfile.TemporaryDirectory() as directory:
            here, there = both(name, Path(directory) / "weights.pth")
        difference, largest = np.abs(here - there).max(), np.abs(there).max()
        print(f"| {name} | {difference:.1e} | {largest:.2f} |", flush=True)


if __name__ == "__main__":
    import_table()
