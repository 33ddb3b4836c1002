"""ONNX, through the PyTorch module: any number of images, preprocessing inside if it is asked for.

Not by jax2onnx: its releases until 0.17 ask for an orbax-checkpoint older than the one that runs
are saved with, so that both cannot be installed.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simclr_jax import extras
from simclr_jax.augment.resize import matrices
from simclr_jax.closing import Closing
from simclr_jax.errors import UserError
from simclr_jax.interop import to_torch
from simclr_jax.interop.network import Network, on_cpu

OPSET = 18
LARGEST = 2_000_000_000  # bytes: protobuf holds no more than 2^31 in a file


def check() -> str:
    """Return the runtime that an export is run by. Raises `UserError` if a package is missing."""
    with extras.needed("--format=onnx", "torch", "onnx", "onnxscript", "onnxruntime"):
        import onnx
        import onnxruntime
        import onnxscript
        import torch

    del onnx, onnxscript, torch
    return f"onnxruntime {onnxruntime.__version__}"


def write(network: Network, out: Path) -> None:
    """Write the file: one input `images`, an output for each tap.

    Raises:
      UserError: if the weights are too many for a file of ONNX.
    """
    check_size(network, "ONNX", LARGEST)
    import onnx
    import torch

    with tempfile.TemporaryDirectory(dir=out.parent) as place:
        there = Path(place) / "torch"
        to_torch.write(network, there)
        model = _wrapped(to_torch.model_of(there), network)
    images = torch.from_numpy(_laid_out(network, network.reference(2)))
    # The exporter reports its own steps and the fate of libraries that are not asked for.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), Closing(lambda: logger.setLevel(level)):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        program: Any = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(network.taps),
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"about": json.dumps(network.about())})
    onnx.checker.check_model(proto)
    out.write_bytes(proto.SerializeToString())


def run(out: Path, network: Network, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return what onnxruntime gives for images `[b, h, w, c]`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    given = session.run(list(network.taps), {"images": _laid_out(network, images)})
    return dict(zip(network.taps, given, strict=True))


def check_size(network: Network, target: str, most: int) -> None:
    """Raise `UserError` if the arrays are too large for one file of a format."""
    size = sum(4 * math.prod(x.shape) for x in jax.tree.leaves(network.variables))
    if size > most:
        raise UserError(
            f"the weights have {size / 1e9:.1f} GB, and a file of {target} holds {most / 1e9:.0f}: "
            "give --format=torch, or --format=safetensors"
        )


def _laid_out(network: Network, images: np.ndarray) -> np.ndarray:
    """Return images as the file takes them: bytes as they are decoded, floats channels first."""
    if network.sides:
        return images
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _wrapped(model: Any, network: Network) -> Any:
    """Return a module from images to a tuple of taps, with preprocessing if that is inside."""
    import torch
    from torch import nn

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            if network.sides:
                rows, columns = _resize(network)
                self.register_buffer("rows", torch.tensor(rows))  # [size, height]
                self.register_buffer("columns", torch.tensor(columns))  # [size, width]

        def forward(self, images: Any) -> Any:
            if network.sides:
                x = images.permute(0, 3, 1, 2).to(torch.float32) * (1 / 255)
                images = (self.rows @ x @ self.columns.T).clamp(0, 1)
            found = self.model(images)
            return tuple(found[tap] for tap in network.taps)

    return Wrapped().eval()


def _resize(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrices that crop and resize rows and columns of an image."""
    assert network.sides is not None
    size, box = network.encoder.size, network.box()
    y, x, height, width = box
    if (height, width) == (size, size):  # a crop alone, whatever the resize
        rows, columns = np.eye(size, network.sides[0], y), np.eye(size, network.sides[1], x)
        return rows.astype(np.float32), columns.astype(np.float32)
    grid = network.encoder.preprocessing.grid
    with on_cpu():
        made = matrices(network.sides, np.array(box), size, grid, np.dtype(np.float32))
    return np.asarray(made[0]), np.asarray(made[1])
