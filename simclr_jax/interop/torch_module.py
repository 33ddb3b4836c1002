"""An encoder of simclr_jax in PyTorch: this file and `weights.pt` are all it needs.

    import encoder  # this file

    model = encoder.load("weights.pt")  # in evaluation mode
    found = model(images)  # {"h": [n, d], ...}; images: float32 [n, c, size, size] in [0, 1]

Take no mean and deviation off the images: `forward` makes what the network is shown. Names of
arrays are torchvision's, and timm's where torchvision has none, so that those libraries load the
weights where they have the architecture. `SETTINGS` says what was exported. In training mode moving
variances are those of n - 1, as PyTorch has them; simclr_jax divides by n.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SETTINGS: dict[str, Any] = json.loads("""{}""")

BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
LUMINANCE = (0.212671, 0.715160, 0.072169)


def load(weights: str, settings: dict[str, Any] = SETTINGS) -> Encoder:
    """Return the encoder with the weights of a file, in evaluation mode."""
    model = Encoder(settings)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


def shown(images: Tensor, kind: str) -> Tensor:
    """Return what the first convolution is given of images `[n, c, h, w]` in [0, 1]."""
    if kind == "standardised":
        values = images.shape[1] * images.shape[2] * images.shape[3]
        mean = images.mean((1, 2, 3), keepdim=True)
        variance = (images - mean).square().mean((1, 2, 3), keepdim=True)
        return (images - mean) / variance.clamp(min=1 / values).sqrt()
    if kind == "normalised":
        return (images - _channels(MEAN, images)) / _channels(DEVIATION, images)
    if kind == "lightness":
        linear = torch.where(images > 0.04045, ((images + 0.055) / 1.055) ** 2.4, images / 12.92)
        y = (linear * _channels(LUMINANCE, images)).sum(1, keepdim=True)
        root = torch.where(y > 0.008856, y.clamp(min=0.008856) ** (1 / 3), 7.787 * y + 16 / 116)
        return 1.16 * root - 0.16
    return images


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


def conv(inputs: int, outputs: int, size: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Return a convolution that is padded on both sides."""
    return nn.Conv2d(inputs, outputs, size, stride, (size - 1) // 2, bias=bias)


class Norm(nn.BatchNorm2d):
    """Batch normalisation of `[n, c, h, w]`."""

    def __init__(self, channels: int, settings: dict[str, Any]):
        super().__init__(channels, settings["epsilon"], 1 - settings["momentum"])


class VectorNorm(nn.BatchNorm1d):
    """Batch normalisation of `[n, c]`, with or without scale and bias."""

    def __init__(self, channels: int, settings: dict[str, Any], scaled: bool, center: bool):
        super().__init__(channels, settings["epsilon"], 1 - settings["momentum"])
        if not scaled:
            self.register_parameter("weight", None)
        if not center:
            self.register_parameter("bias", None)


class SelectiveKernel(nn.Module):
    """Mix two 3x3 convolutions by weights that sum to 1 (Li et al. 2019)."""

    def __init__(self, inputs: int, features: int, stride: int, settings: dict[str, Any]):
        super().__init__()
        squeezed = max(int(features * settings["sk_ratio"]), 32)
        self.conv = conv(inputs, 2 * features, 3, stride)
        self.bn = Norm(2 * features, settings)
        self.squeeze = conv(features, squeezed, 1)
        self.squeeze_bn = Norm(squeezed, settings)
        self.excite = conv(squeezed, 2 * features, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.relu(self.bn(self.conv(x))).chunk(2, 1)  # [n, f, h, w] each
        pooled = first.mean((2, 3), keepdim=True) + second.mean((2, 3), keepdim=True)
        logits = self.excite(F.relu(self.squeeze_bn(self.squeeze(pooled))))
        one, other = torch.stack(logits.chunk(2, 1)).softmax(0).unbind(0)  # [n, f, 1, 1] each
        return first * one + second * other


class SqueezeExcitation(nn.Module):
    """Scale each channel by a number in (0, 1) (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.fc1 = conv(channels, squeezed, 1, bias=True)
        self.fc2 = conv(squeezed, channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * self.fc2(hidden).sigmoid()


class Pool(nn.Module):
    """Average 2x2 pixels before a shortcut, as ResNet-D (He et al. 2019)."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:  # an edge counts twice, which leaves the mean of what is there
            return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, 1)
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 2)  # zeros after an odd side count


class Block(nn.Module):
    """Add a residual branch to a shortcut."""

    def __init__(
        self, inputs: int, features: int, stride: int, project: bool, settings: dict[str, Any]
    ):
        super().__init__()
        selective = settings["sk_ratio"] > 0
        outputs = features
        if bottleneck := settings["depth"] >= 50:
            outputs = 4 * features
            self.conv1, self.bn1 = conv(inputs, features, 1), Norm(features, settings)
            if selective:
                self.sk2 = SelectiveKernel(features, features, stride, settings)
            else:
                self.conv2 = conv(features, features, 3, stride)
                self.bn2 = Norm(features, settings)
            self.conv3, self.bn3 = conv(features, outputs, 1), Norm(outputs, settings)
        else:
            self.conv1, self.bn1 = conv(inputs, features, 3, stride), Norm(features, settings)
            self.conv2, self.bn2 = conv(features, features, 3), Norm(features, settings)
        self.bottleneck, self.selective = bottleneck, selective
        self.se: nn.Module = nn.Identity()
        if settings["se_ratio"] > 0:
            self.se = SqueezeExcitation(outputs, max(1, int(features * settings["se_ratio"])))
        self.downsample: nn.Module = nn.Identity()
        if project:
            pool = [Pool(stride)] if selective else []
            projection = conv(inputs, outputs, 1, 1 if selective else stride)
            self.downsample = nn.Sequential(*pool, projection, Norm(outputs, settings))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        if self.bottleneck:
            x = self.sk2(x) if self.selective else F.relu(self.bn2(self.conv2(x)))
            x = self.bn3(self.conv3(x))
        else:
            x = self.bn2(self.conv2(x))
        return F.relu(self.se(x) + shortcut)


class Head(nn.Module):
    """The projection head, as far as it is read."""

    def __init__(self, layers: list[dict[str, Any]], settings: dict[str, Any]):
        super().__init__()
        self.layers = layers
        for i, layer in enumerate(layers, start=1):
            dense = nn.Linear(layer["inputs"], layer["outputs"], bias=layer["bias"])
            self.add_module(f"dense{i}", dense)
            if (norm := layer["norm"]) is not None:
                made = VectorNorm(layer["outputs"], settings, norm["scaled"], norm["center"])
                self.add_module(f"bn{i}", made)

    def forward(self, h: Tensor) -> list[Tensor]:
        found = [h]
        for i, layer in enumerate(self.layers, start=1):
            x = getattr(self, f"dense{i}")(found[-1])
            if layer["norm"] is not None:
                x = getattr(self, f"bn{i}")(x)
            found.append(x if layer["last"] else F.relu(x))
        return found


class Encoder(nn.Module):
    """A ResNet as simclr_jax trains it.

    Returns:
      A vector `[n, d]` for each of `settings["taps"]`: `h`, the representation; `group1` to
      `group4`, spatial means of the block groups; `head1` to `headL` and `z`, of the projection
      head; `logits`, of the classifier.
    """

    def __init__(self, settings: dict[str, Any] = SETTINGS):
        super().__init__()
        self.settings = settings
        width = int(64 * settings["width"])
        channels = 1 if settings["input"] == "lightness" else settings["channels"]
        deep = settings["sk_ratio"] > 0 and settings["stem"] == "imagenet"
        if deep:
            half = width // 2
            self.conv1: nn.Module = nn.Sequential(
                *(conv(channels, half, 3, 2), Norm(half, settings), nn.ReLU()),
                *(conv(half, half, 3), Norm(half, settings), nn.ReLU()),
                conv(half, width, 3),
            )
        elif settings["stem"] == "imagenet":
            self.conv1 = conv(channels, width, 7, 2)
        else:
            self.conv1 = conv(channels, width, 3)
        self.bn1 = Norm(width, settings)
        inputs = width
        for group, count in enumerate(BLOCKS[settings["depth"]], start=1):
            features, blocks = width * 2 ** (group - 1), []
            for block in range(count):
                outputs = features * (4 if settings["depth"] >= 50 else 1)
                stride = 2 if group > 1 and block == 0 else 1
                differs = stride > 1 or inputs != outputs
                official = settings["variant"] == "official" and block == 0
                blocks.append(Block(inputs, features, stride, differs or official, settings))
                inputs = outputs
            self.add_module(f"layer{group}", nn.Sequential(*blocks))
        if settings["head"]:
            self.head = Head(settings["head"], settings)
        if "logits" in settings["taps"]:
            classifier = settings["classifier"]
            self.fc = nn.Linear(classifier["inputs"], classifier["classes"])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Encode `images` `[n, c, size, size]`, floats in [0, 1]."""
        x = F.relu(self.bn1(self.conv1(shown(images, self.settings["input"]))))
        if self.settings["stem"] == "imagenet":
            x = self._pooled(x)
        found = {}
        for group in range(1, 5):
            x = getattr(self, f"layer{group}")(x)
            found[f"group{group}"] = x.mean((2, 3))
        found["h"] = found["group4"]
        if self.settings["head"]:
            hiddens = self.head(found["h"])
            found |= {f"head{i}": hidden for i, hidden in enumerate(hiddens) if i}
            found["z"] = hiddens[-1]
        if "logits" in self.settings["taps"]:
            found["logits"] = self.fc(found[self.settings["classifier"]["tap"]])
        return {tap: found[tap] for tap in self.settings["taps"]}

    def _pooled(self, x: Tensor) -> Tensor:
        if self.settings["variant"] == "torchvision":
            return F.max_pool2d(x, 3, 2, 1)
        # TensorFlow's "SAME": an even side is padded at its end alone. Nothing is below 0 here.
        height, width = x.shape[2:]
        return F.max_pool2d(F.pad(x, (width % 2, 1, height % 2, 1)), 3, 2)
