"""A state dict, and one file of Python that builds the encoder in PyTorch without this program.

encoder.py     the module; needs torch alone
weights.pt     its state dict, by torchvision's names
about.json     preprocessing, taps, recipe, step, checksum
"""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from simclr_jax import documents, extras
from simclr_jax.interop import torch_names
from simclr_jax.interop.network import Network

MODULE, WEIGHTS, ABOUT = "encoder.py", "weights.pt", "about.json"
EMPTY = 'json.loads("""{}""")'  # the settings of the module that is a template


def check() -> str:
    """Return the runtime that an export is run by.

    Raises:
      UserError: if it is not installed.
    """
    with extras.needed("--format=torch", "torch"):
        import torch
    return f"torch {torch.__version__}"


def state(network: Network) -> dict[str, np.ndarray]:
    """Return the state dict as NumPy arrays; counters of batches say the steps of the run."""
    return torch_names.to_torch(network.variables, network.architecture, network.encoder.step)


def module_text(network: Network) -> str:
    """Return the source of the module of a network."""
    template = (Path(__file__).parent / "torch_module.py").read_text()
    assert template.count(EMPTY) == 1
    settings = json.dumps(network.settings(), indent=4)
    return template.replace(EMPTY, f'json.loads("""{settings}""")')


def write(network: Network, out: Path) -> None:
    """Write the directory."""
    import torch

    out.mkdir()
    (out / MODULE).write_text(module_text(network))
    tensors = {name: torch.tensor(x) for name, x in state(network).items()}
    content = io.BytesIO()  # what torch says of a full disk is no error of the system
    torch.save(tensors, content)
    (out / WEIGHTS).write_bytes(content.getbuffer())
    documents.write(out / ABOUT, network.about())


def run(out: Path, network: Network, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the exported module gives for images `[b, h, w, c]`."""
    import torch

    model = model_of(out)
    with torch.inference_mode():
        found = model(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
    return {tap: x.numpy() for tap, x in found.items()}


def model_of(out: Path) -> Any:
    """Return the exported module with its weights, as a user would load it."""
    return load_module(out / MODULE).load(str(out / WEIGHTS))


def load_module(path: Path) -> Any:
    """Return the module in a file that an export has just written."""
    spec = importlib.util.spec_from_file_location("simclr_jax_exported", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_state(out: Path) -> Any:
    """Return the state dict of an exported directory."""
    import torch

    return torch.load(out / WEIGHTS, weights_only=True)
