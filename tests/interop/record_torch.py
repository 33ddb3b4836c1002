"""Record what torchvision's ResNets compute, for tests that run without PyTorch.

    PYTHONPATH=.:tests python tests/interop/record_torch.py

Writes `torch_resnets.npz`: for each narrow network its names and shapes in torchvision, and h of
two images. Its weights are drawn by name (`values`), so they need not be kept.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
from interop import torch_networks, torch_packages

RECORDED = Path(__file__).with_name("torch_resnets.npz")
SIZE, WIDTH = 64, 8  # pixels; channels of the stem
CASES = {
    "resnet18": ("BasicBlock", (2, 2, 2, 2), False),
    "resnet18_small": ("BasicBlock", (2, 2, 2, 2), True),
    "resnet50": ("Bottleneck", (3, 4, 6, 3), False),
}


def values(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return arrays by their names: weights that keep activations of one size."""
    found = {}
    for name, shape in shapes.items():
        random = np.random.RandomState(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            found[name] = np.array(7)
            continue
        x = random.uniform(-1, 1, shape)
        if len(shape) == 4:
            x *= np.sqrt(6 / np.prod(shape[1:]))
        elif name.endswith(("running_var", "weight")):
            x = (1 + x / 2) * (0.3 if re.search(r"bn[23]\.weight", name) else 1)
        else:
            x /= 5
        found[name] = x.astype(np.float32)
    return found


def shapes_of(recording: dict[str, np.ndarray], case: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a recorded network by name, in torchvision's order."""
    names, rows = recording[f"{case}/names"], recording[f"{case}/shapes"]
    return {str(n): tuple(int(x) for x in row if x) for n, row in zip(names, rows, strict=True)}


def record() -> None:
    """Run torchvision."""
    torch, models = torch_packages.torch(), torch_packages.torchvision().models.resnet
    arrays = {}
    for case, (block, counts, small) in CASES.items():
        network = models.ResNet(getattr(models, block), counts)
        network.inplanes = WIDTH
        stem = (3, 1, 1) if small else (7, 2, 3)
        network.conv1 = torch.nn.Conv2d(3, WIDTH, *stem, bias=False)
        network.bn1 = torch.nn.BatchNorm2d(WIDTH)
        for group, count in enumerate(counts):
            made = network._make_layer(
                getattr(models, block), WIDTH * 2**group, count, stride=2 if group else 1
            )
            setattr(network, f"layer{group + 1}", made)
        if small:
            network.maxpool = torch.nn.Identity()
        network.fc = torch.nn.Linear(network.inplanes, 5)
        state = network.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        network.load_state_dict({n: torch.as_tensor(x) for n, x in values(shapes).items()})
        network.fc = torch.nn.Identity()
        written = torch_networks.Written({}, network.eval())
        arrays[f"{case}/names"] = np.array(list(shapes))
        padded = [[*shape, *(0,) * (4 - len(shape))] for shape in shapes.values()]
        arrays[f"{case}/shapes"] = np.array(padded, np.int32)
        arrays[f"{case}/h"] = h = torch_networks.h_of(written, torch_networks.images(SIZE))
        print(case, h.shape, np.abs(h).max(), np.abs(h[0] - h[1]).max())
    np.savez_compressed(RECORDED, **arrays)


if __name__ == "__main__":
    record()
