"""Whose ResNet loads an exported state dict strictly, and whether its features are equal then.

What decides, of all that an encoder may be: names and shapes (shortcuts, width, stem, attention,
a head) for loading; the max-pool's padding and the epsilon of normalisation, which no array shows,
for equal features. Convolutions pad alike, a bottleneck's stride is in its 3x3 convolution in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from simclr_jax import extras
from simclr_jax.errors import UserError
from simclr_jax.interop.network import LOGITS, Network

LIBRARIES = ("torchvision", "timm")
EPSILON = 1e-5  # of their normalisation
DEPTHS = {"torchvision": (18, 34, 50, 101, 152), "timm": (18, 34, 50, 101, 152, 200)}
EXCITED = (50, 101, 152)  # depths of timm's seresnet whose ratio is one for all blocks
EXCITATION = 0.25  # of 3x3 channels: 1/16 of a block's outputs
LIKE_THEIRS = "train with --config.model.variant=torchvision"


@dataclasses.dataclass(frozen=True)
class Match:
    """How an encoder is to a library.

    Attributes:
      library: its name.
      model: its model that loads the arrays strictly, or "".
      why: what keeps it from loading them, or its features from being equal; "": nothing.
    """

    library: str
    model: str
    why: str

    def __str__(self) -> str:
        if not self.model:
            return f"not by {self.library}: {self.why}"
        if self.why:
            return f"by {self.library} {self.model}, with other features: {self.why}"
        return f"by {self.library} {self.model}, with equal features"


def match(network: Network, library: str) -> Match:
    """Say how an encoder is to a library."""
    built, config = network.architecture, network.encoder.config
    excited = built.se_ratio > 0
    basic = built.depth < 50
    own_module = "use encoder.py (--format=torch, huggingface)"
    reasons = [
        (built.depth not in DEPTHS[library], f"it has no ResNet-{built.depth}: {own_module}"),
        (built.width != 1, f"its channels are not {built.width:g} times as many: {own_module}"),
        (built.stem != "imagenet", f"its stem is 7x7 with a pool: {own_module}"),
        (built.sk_ratio > 0, f"it has no selective kernels: {own_module}"),
        (
            excited and not _has_excitation(network, library),
            f"it has no such squeeze-excitation: {own_module}",
        ),
        (
            config.model.input == "lightness" or network.encoder.channels != 3,
            f"its first convolution is of 3 channels: {own_module}",
        ),
        (network.has_head, "it has no projection head: leave out --tap"),
        (
            basic and built.variant != "torchvision",
            f"its first group has no shortcut of its own: {LIKE_THEIRS}, or {own_module}",
        ),
    ]
    why = next((why for holds, why in reasons if holds), "")
    if why:
        return Match(library, "", why)
    if built.variant != "torchvision":
        why = f"its max-pool pads on both sides: {LIKE_THEIRS}, or {own_module}"
    elif config.bn.epsilon != EPSILON:
        why = f"its normalisation adds {EPSILON:g}, not {config.bn.epsilon:g}: {own_module}"
    return Match(library, f"{'se' if excited else ''}resnet{built.depth}", why)


def _has_excitation(network: Network, library: str) -> bool:
    built = network.architecture
    return library == "timm" and built.depth in EXCITED and built.se_ratio == EXCITATION


def demand(network: Network, library: str) -> Match:
    """Return how an encoder is to a library that is to load it and give equal features.

    Raises:
      UserError: if it cannot, or is not installed.
    """
    found = match(network, library)
    if found.why:
        raise UserError(f"--loads_in={library}, but the weights load {found}")
    if not {*network.taps} & {"h", LOGITS}:
        raise UserError(f"--loads_in={library} gives h and logits alone: leave out --tap")
    _imported(library)
    return found


def run(
    found: Match, state: Mapping[str, Any], network: Network, images: np.ndarray
) -> dict[str, np.ndarray]:
    """Return what the library's own model gives, with the arrays loaded strictly.

    Args:
      found: see `demand`.
      state: the state dict as it was read from the exported file.
      network: that was exported.
      images: `[b, h, w, c]` floats in [0, 1].
    """
    import torch

    from simclr_jax.interop import torch_module

    logits = network.encoder.classifier if LOGITS in network.taps else None
    classes = len(logits[1].bias) if logits else 0
    model = _made(found, classes)
    model.load_state_dict(dict(state), strict=True)
    model.eval()
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.inference_mode():
        given = model(torch_module.shown(pixels, network.encoder.config.model.input))
    return {LOGITS if logits else "h": given.numpy()}


def _made(found: Match, classes: int) -> Any:
    library = _imported(found.library)
    if found.library == "timm":
        return library.create_model(found.model, pretrained=False, num_classes=classes)
    from torch import nn

    model = getattr(library.models, found.model)(weights=None, num_classes=classes or 1)
    if not classes:
        model.fc = nn.Identity()
    return model


def _imported(library: str) -> Any:
    with extras.needed(f"--loads_in={library}", library, "torch"):
        if library == "timm":
            import timm

            return timm
        import torchvision

        return torchvision


def words(network: Network) -> list[str]:
    """Return a line for each library: whether it loads the arrays, and what is equal then."""
    return [str(match(network, library)) for library in LIBRARIES]
