"""A plain PyTorch step of SimCLR, to stand beside ours: forward, NT-Xent, backward, SGD.

    python benchmarks/torch_step.py --depth=18 --stem=cifar --size=32 --batch=64
    python benchmarks/torch_step.py --depth=50 --batch=256 --device=cuda --dtype=bfloat16 \
        --channels_last --compile

It does what the field's PyTorch codebases do, no less: `channels_last`, autocast to bfloat16 with
parameters in float32, `torch.compile`, cuDNN's search for algorithms, fused SGD. The network is
that of `configs/imagenet.py` and `configs/cifar10.py` to the last parameter, so that both steps do
the same job; ours besides trains a linear probe, and LARS takes norms. Views are noise, made once.
A line of JSON is printed; `views_per_s` counts both views of an image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import time
from typing import Any

from absl import flags

from simclr_jax import entry, errors

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
except ModuleNotFoundError:
    if __name__ == "__main__":
        errors.say("PyTorch is not installed: pip install torch")
        raise SystemExit(1) from None
    raise

# depth: (is it built of bottlenecks, blocks per group)
DEPTHS = {
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
}
STEMS = ("imagenet", "cifar")
DTYPES = ("float32", "bfloat16")
WARM_UP = 3


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1, beside a shortcut."""

    def __init__(self, inputs: int, features: int, stride: int, bottleneck: bool, project: bool):
        super().__init__()
        outputs = 4 * features if bottleneck else features
        kinds = [(features, 3, stride), (outputs, 3, 1)]
        if bottleneck:
            kinds = [(features, 1, 1), (features, 3, stride), (outputs, 1, 1)]
        layers: list[nn.Module] = []
        before = inputs
        for i, (width, size, step) in enumerate(kinds, start=1):
            layers += [_convolution(before, width, size, step), nn.BatchNorm2d(width)]
            layers += [nn.ReLU(inplace=True)] if i < len(kinds) else []
            before = width
        self.branch = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if project:
            normal = nn.BatchNorm2d(outputs)
            self.shortcut = nn.Sequential(_convolution(inputs, outputs, 1, stride), normal)
        self.outputs = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[n, c, h, w]` to `[n, outputs, h / stride, w / stride]`."""
        return F.relu(self.branch(x) + self.shortcut(x), inplace=True)


class Network(nn.Module):
    """A ResNet and a projection head, as the official SimCLR code builds them.

    Args:
      depth: one of `DEPTHS`.
      width: times 64 channels.
      stem: `imagenet` (7x7, stride 2, pooled) or `cifar` (3x3).
      layers: of the head; all but the last end in ReLU.
      dim: numbers in a projection.
    """

    def __init__(self, depth: int, width: float, stem: str, layers: int, dim: int):
        super().__init__()
        bottleneck, counts = DEPTHS[depth]
        channels = int(64 * width)
        first = (
            _convolution(3, channels, 7, 2) if stem == "imagenet" else _convolution(3, channels, 3)
        )
        parts: list[nn.Module] = [first, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        if stem == "imagenet":
            parts.append(nn.MaxPool2d(3, 2, 1))
        inputs = channels
        for group, count in enumerate(counts):
            for place in range(count):
                stride = 2 if group and not place else 1
                block = Block(inputs, channels * 2**group, stride, bottleneck, project=not place)
                parts.append(block)
                inputs = block.outputs
        self.encoder = nn.Sequential(*parts)
        head: list[nn.Module] = []
        for layer in range(layers):
            outputs = dim if layer == layers - 1 else inputs
            head += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)]
            head += [nn.ReLU(inplace=True)] if layer < layers - 1 else []
        head[-1].bias = None  # the official last layer is normalised without an offset
        self.head = nn.Sequential(*head)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """Map views `[2n, 3, h, w]` to projections `[2n, dim]`."""
        return self.head(self.encoder(views).mean((2, 3)))


def nt_xent(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return NT-Xent of projections `[2n, d]`, all first views and then all second ones.

    Its mean over 2n views, computed in float32.
    """
    z = F.normalize(z.float(), dim=1)
    count = len(z)
    similarity = z @ z.t() / temperature
    itself = torch.eye(count, dtype=torch.bool, device=z.device)
    partner = (torch.arange(count, device=z.device) + count // 2) % count
    return F.cross_entropy(similarity.masked_fill(itself, float("-inf")), partner)


@dataclasses.dataclass(frozen=True)
class Job:
    """What a step is to do.

    Attributes:
      depth: see `Network`; likewise `width`, `stem`, `layers` and `dim`.
      size: side of a view, pixels.
      batch: images, two views of each.
      dtype: of `DTYPES`; bfloat16 is autocast.
      device: as PyTorch names it.
      channels_last: order of memory.
      compile: by `torch.compile`.
      temperature: of the loss.
      threads: of a CPU; 0 leaves it to PyTorch.
    """

    depth: int
    size: int
    batch: int
    width: float = 1.0
    stem: str = "imagenet"
    layers: int = 3
    dim: int = 128
    dtype: str = "float32"
    device: str = "cpu"
    channels_last: bool = False
    compile: bool = False
    temperature: float = 0.1
    threads: int = 0


class TorchStep:
    """A step that can be taken; see `Job`."""

    def __init__(self, job: Job):
        self._job, self._device = job, torch.device(job.device)
        torch.manual_seed(0)
        if job.threads:
            torch.set_num_threads(job.threads)
        torch.backends.cuda.matmul.allow_tf32 = job.dtype != "float32"
        torch.backends.cudnn.allow_tf32 = job.dtype != "float32"
        torch.backends.cudnn.benchmark = True
        network: Any = Network(job.depth, job.width, job.stem, job.layers, job.dim)
        network = network.to(self._device)
        views = torch.randn(2 * job.batch, 3, job.size, job.size, device=self._device)
        if job.channels_last:
            network = network.to(memory_format=torch.channels_last)
            views = views.contiguous(memory_format=torch.channels_last)
        self._views = views
        self.parameters = sum(weight.numel() for weight in network.parameters())
        self._forward: Any = torch.compile(network) if job.compile else network
        fused = self._device.type == "cuda"
        self._optimizer = torch.optim.SGD(
            network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=fused
        )

    def step(self) -> torch.Tensor:
        """Take one step and return its loss, which need not be computed yet."""
        self._optimizer.zero_grad(set_to_none=True)
        narrow = self._job.dtype == "bfloat16"
        with (
            torch.autocast(self._device.type, dtype=torch.bfloat16)
            if narrow
            else contextlib.nullcontext()
        ):
            z = self._forward(self._views)
        loss = nt_xent(z, self._job.temperature)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def run(self, steps: int) -> tuple[float, float]:
        """Take so many steps; return the seconds of one, their mean, and the last loss."""
        self.wait()
        start = time.perf_counter()
        for _ in range(steps):
            loss = self.step()
        self.wait()
        return (time.perf_counter() - start) / steps, float(loss)

    def wait(self) -> None:
        """Wait for all that the device was given to do."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    @property
    def memory(self) -> int:
        """Return the most bytes of the device that were taken so far; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else 0


def main() -> None:
    """Time steps and print a line."""
    for name, choices in (("depth", DEPTHS), ("stem", STEMS), ("dtype", DTYPES)):
        errors.choose(f"--{name}", FLAGS[name].value, choices)
    given: dict[str, Any] = {f.name: FLAGS[f.name].value for f in dataclasses.fields(Job)}
    job = Job(**given)
    if job.device == "cuda" and not torch.cuda.is_available():
        raise errors.UserError("--device is cuda, but PyTorch sees none: set --device=cpu")
    start = time.perf_counter()
    made = TorchStep(job)
    made.run(1)
    first = time.perf_counter() - start
    made.run(WARM_UP)
    found = [made.run(1) for _ in range(FLAGS.steps)]
    seconds = statistics.median(one for one, _ in found)
    row = {
        "torch": torch.__version__,
        **dataclasses.asdict(job),
        "parameters": made.parameters,
        "first_s": round(first, 3),
        "ms": round(1e3 * seconds, 3),
        "best_ms": round(1e3 * min(one for one, _ in found), 3),
        "views_per_s": round(2 * job.batch / seconds, 1),
        "loss": round(found[-1][1], 5),
        "memory_gib": round(made.memory / 2**30, 3),
    }
    print(json.dumps(row))


FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define a flag for each field of `Job`, and how many steps to time."""
    for field in dataclasses.fields(Job):
        default = {"depth": 50, "size": 224, "batch": 64}.get(field.name, field.default)
        define: Any = {
            bool: flags.DEFINE_boolean,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
        }.get(type(default), flags.DEFINE_string)
        define(field.name, default, "See `Job`.")
    flags.DEFINE_integer("steps", 10, "Steps to time.", lower_bound=1)
    flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


if __name__ == "__main__":
    define_flags()
    entry.run(main)
