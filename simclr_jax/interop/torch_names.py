"""Names of an encoder's arrays in PyTorch: torchvision's, and timm's where torchvision has none.

    conv1, bn1                    the stem; with three convolutions conv1.0 to conv1.6, as timm
    layer1.0.conv1, .bn1, ...     block 1 of group 1
    layer1.0.downsample.0, .1     its shortcut; .1 and .2 where it is pooled first, as timm
    layer1.0.se.fc1, .fc2         squeeze-excitation, as timm
    layer1.0.sk2.conv, ...        selective kernels, which neither has, as in `models/`
    head.dense1, head.bn1, ...    the projection head, likewise
    fc                            the classifier

One function makes all names, and a table of them (`Names`) serves both ways. What PyTorch keeps
besides, `num_batches_tracked`, counts batches and is no array of ours.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from simclr_jax.interop.official_names import Architecture, Names, Path
from simclr_jax.models.normalization import BatchNorm
from simclr_jax.models.resnet import ResNet

Shapes = dict[str, tuple[int, ...]]

COUNTER = "num_batches_tracked"

LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}

# Modules of the stem and of blocks whose names differ; others keep theirs.
STEM = {"stem_conv": "conv1", "stem_bn": "bn1"}
DEEP_STEM = {
    "stem1_conv": "conv1.0",
    "stem1_bn": "conv1.1",
    "stem2_conv": "conv1.3",
    "stem2_bn": "conv1.4",
    "stem_conv": "conv1.6",
    "stem_bn": "bn1",
}
SHORTCUT = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}
POOLED_SHORTCUT = {"shortcut_conv": "downsample.1", "shortcut_bn": "downsample.2"}
EXCITATION = {"squeeze": "fc1", "excite": "fc2"}


def architecture(config: ConfigDict) -> Architecture:
    """Return the part of a recipe that decides which arrays an encoder has."""
    return Architecture(
        **{field.name: config.model[field.name] for field in dataclasses.fields(Architecture)}
    )


def name(path: Path, built: Architecture) -> str:
    """Return the name of the array at `path`: collection, part, modules, leaf."""
    _, part, *modules, leaf = path
    if modules[-1] == "conv":  # Flax's, inside ours
        modules.pop()
    if part == "encoder":
        modules = _encoder_modules(modules, built)
    elif part == "classifier":
        modules = ["fc"]
    else:
        modules = [part, *modules]
    return ".".join((*modules, LEAVES[leaf]))


def _encoder_modules(modules: list[str], built: Architecture) -> list[str]:
    pooled = built.sk_ratio > 0
    first, *inner = modules
    block = re.fullmatch(r"group(\d)_block(\d+)", first)
    if block is None:
        deep = pooled and built.stem == "imagenet"
        return [(DEEP_STEM if deep else STEM)[first]]
    if inner[0] == "se":
        inner = ["se", EXCITATION[inner[1]]]
    else:
        inner[0] = (POOLED_SHORTCUT if pooled else SHORTCUT).get(inner[0], inner[0])
    return [f"layer{block[1]}", str(int(block[2]) - 1), *inner]


def encoder(built: Architecture) -> Names:
    """Return the path of each array of an encoder by its name in PyTorch, without counters.

    With `shapes` they say whether a state dict is that of an encoder.
    """
    return {name(path, built): path for path in _encoder(built, 3)}


def shapes(built: Architecture, channels: int = 3) -> Shapes:
    """Return the shape in PyTorch of each array of an encoder for images of so many channels."""
    found = _encoder(built, channels)
    return {name(path, built): _turned(shape) for path, shape in found.items()}


@functools.lru_cache(64)
def _encoder(built: Architecture, channels: int) -> dict[Path, tuple[int, ...]]:
    """Return the shape of each array of an encoder by its path."""
    network = ResNet(**dataclasses.asdict(built), norm=BatchNorm)
    images = jax.ShapeDtypeStruct((2, 32, 32, channels), jnp.float32)
    made = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, True), images)
    flat = traverse_util.flatten_dict({kind: {"encoder": tree} for kind, tree in made.items()})
    return {path: leaf.shape for path, leaf in flat.items()}


def to_torch(tree: Mapping[str, Any], built: Architecture, batches: int = 0) -> dict[str, Any]:
    """Return arrays of a tree `{params: ..., batch_stats: ...}` by name, laid out as in PyTorch.

    Convolutions are `[out, in, h, w]`, dense kernels `[out, in]`. A normalisation with statistics
    is followed by its counter, int64, which says `batches`.
    """
    flat = traverse_util.flatten_dict(tree)
    found: dict[str, Any] = {}
    for path, leaf in flat.items():
        named = name(path, built)
        x = np.asarray(leaf)
        found[named] = np.ascontiguousarray(x.transpose(_axes(x.ndim)))
        if path[-1] == "var":
            found[f"{named.rpartition('.')[0]}.{COUNTER}"] = np.array(batches, np.int64)
    return found


def to_tree(values: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Return arrays by name in PyTorch as a tree `{params: ..., batch_stats: ...}`.

    Args:
      values: laid out as in PyTorch; counters are left out.
      names: the path of each, see `encoder` and `paths`.
    """
    flat = {
        names[named]: np.ascontiguousarray(np.transpose(x, np.argsort(_axes(np.ndim(x)))))
        for named, x in values.items()
        if not named.endswith(f".{COUNTER}")
    }
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(flat)


def paths(leaves: Iterable[Path], built: Architecture) -> Names:
    """Return the path of each array by its name in PyTorch, of any parts of a network."""
    return {name(path, built): path for path in leaves}


def _axes(dimensions: int) -> tuple[int, ...]:
    """Return the order of our axes in PyTorch."""
    return {4: (3, 2, 0, 1), 2: (1, 0)}.get(dimensions, tuple(range(dimensions)))


def _turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _axes(len(shape)))
