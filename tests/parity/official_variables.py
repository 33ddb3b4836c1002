"""Names of the official variables, made from the architecture, with the paths of our parameters.

Both flavours number layers in the order in which they are built, a shortcut before its residual
branch. TensorFlow 1 numbers within the encoder and lists variables as they are built; TensorFlow 2
numbers through the whole model, and lists the trainable variables of a section before the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from simclr_jax.models.resnet import ARCHITECTURES

Path = tuple[str, ...]
Names = dict[str, Path]  # official name: collection, section, modules, leaf; in the official order

LEAVES = {
    "kernel": ("params", "kernel"),
    "bias": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}
MOVING = ("moving_mean", "moving_variance")


def _leaves(scope: str, path: Path, *leaves: str) -> Names:
    return {f"{scope}/{x}": (LEAVES[x][0], *path, LEAVES[x][1]) for x in leaves}


def _norm(scope: str, path: Path, center: bool = True) -> Names:
    return _leaves(scope, path, "gamma", *(["beta"] if center else []), *MOVING)


def _blocks(depth: int) -> Iterator[tuple[int, str, list[str]]]:
    """Yield group, our name and layers of each residual block, the layers as they are built."""
    bottleneck, blocks = ARCHITECTURES[depth]
    branch = ["1", "2", "3"] if bottleneck else ["1", "2"]
    for group, count in enumerate(blocks, start=1):
        for block in range(1, count + 1):
            shortcut = ["shortcut"] if block == 1 else []
            yield group, f"group{group}_block{block}", shortcut + branch


def _convolution(ours: str, layer: str) -> tuple[Path, Path]:
    """Return where a block keeps the convolution and the normalisation of a layer."""
    if layer == "shortcut":
        return ("encoder", ours, "shortcut_conv", "conv"), ("encoder", ours, "shortcut_bn")
    return ("encoder", ours, f"conv{layer}", "conv"), ("encoder", ours, f"bn{layer}")


STEM = ("encoder", "stem_conv", "conv"), ("encoder", "stem_bn")


class TF1:
    """Names under TensorFlow 1 (repository root)."""

    def encoder(self, depth: int) -> Names:
        layers = [STEM]
        layers += [_convolution(ours, x) for _, ours, xs in _blocks(depth) for x in xs]
        names: Names = {}
        for i, (conv, norm) in enumerate(layers):
            suffix = f"_{i}" if i else ""
            names |= _leaves(f"base_model/conv2d{suffix}", conv, "kernel")
            names |= _norm(f"base_model/batch_normalization{suffix}", norm)
        return names

    def head(self, kind: str, layers: int) -> Names:
        names: Names = {}
        for i, letter, last in _head_layers(kind, layers):
            scope = f"head_contrastive/{letter}_{i}"
            names |= _leaves(f"{scope}/dense", ("head", f"dense{i + 1}"), "kernel")
            names |= _norm(f"{scope}/batch_normalization", ("head", f"bn{i + 1}"), not last)
        return names

    def classifier(self) -> Names:
        path = ("classifier", "dense")
        return _leaves("head_supervised/linear_layer/dense", path, "kernel", "bias")


class TF2:
    """Names under TensorFlow 2; ask for the sections in the order in which the model has them."""

    def __init__(self, global_bn: bool = True):
        self._bn = "sync_batch_normalization" if global_bn else "batch_normalization"
        self._counts: dict[str, Iterator[int]] = {}

    def _next(self, module: str) -> str:
        i = next(self._counts.setdefault(module, itertools.count()))
        return f"{module}_{i}" if i else module

    def _convolve(self, scope: str, path: Path) -> Names:
        conv = f"{scope}/{self._next('conv2d_fixed_padding')}/{self._next('conv2d')}"
        return _leaves(conv, path, "kernel")

    def _normalize(self, scope: str, path: Path, center: bool = True) -> Names:
        return _norm(
            f"{scope}/{self._next('batch_norm_relu')}/{self._next(self._bn)}", path, center
        )

    def encoder(self, depth: int) -> Names:
        names = self._convolve("resnet", STEM[0]) | self._normalize("resnet", STEM[1])
        kind = "bottleneck_block" if ARCHITECTURES[depth][0] else "residual_block"
        for group, ours, layers in _blocks(depth):
            scope = f"resnet/block_group{group}/{self._next(kind)}"
            built = {}
            for layer in layers:
                conv, norm = _convolution(ours, layer)
                built[layer] = self._convolve(scope, conv) | self._normalize(scope, norm)
            if kind == "residual_block" and "shortcut" in built:  # built first, but listed last
                built["shortcut"] = built.pop("shortcut")
            for listed in built.values():
                names |= listed
        return _trainable_first(names)

    def head(self, kind: str, layers: int, scope: str = "projection_head/") -> Names:
        names: Names = {}
        for i, letter, last in _head_layers(kind, layers):
            layer = f"{scope}{letter}_{i}"
            names |= self._normalize(layer, ("head", f"bn{i + 1}"), not last)
            dense = f"{layer}/{self._next('dense')}"
            names |= _leaves(dense, ("head", f"dense{i + 1}"), "kernel")
        return _trainable_first(names)

    def classifier(self) -> Names:
        scope = f"head_supervised/linear_layer/{self._next('dense')}"
        return _leaves(scope, ("classifier", "dense"), "kernel", "bias")


def _head_layers(kind: str, layers: int) -> Iterator[tuple[int, str, bool]]:
    """Yield number, letter and whether it is the last for the layers of a projection head."""
    count, letter = {"none": (0, ""), "linear": (1, "l"), "nonlinear": (layers, "nl")}[kind]
    for i in range(count):
        yield i, letter, i == count - 1


def _trainable_first(names: Names) -> Names:
    return dict(sorted(names.items(), key=lambda item: item[0].endswith(MOVING)))


def namer(tf1: bool, global_bn: bool = True) -> TF1 | TF2:
    """Return what names the variables of a flavour."""
    return TF1() if tf1 else TF2(global_bn)


def to_tree(values: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Return official values as a tree `{params: ..., batch_stats: ...}`."""
    flat = {names[name]: np.asarray(value) for name, value in values.items()}
    return {"params": {}, "batch_stats": {}} | flax.traverse_util.unflatten_dict(flat)


def from_tree(tree: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Return the leaves of a tree by official name; variables it does not hold are left out."""
    flat = flax.traverse_util.flatten_dict(tree)
    assert set(flat) <= set(names.values()), set(flat) - set(names.values())
    return {name: flat[path] for name, path in names.items() if path in flat}


def by_role(name: str) -> Path:
    """Return a path that has the role of an official variable, whatever model it is from.

    For recordings of optimisers on a few loose variables, which no architecture has.
    """
    top, *modules, leaf = name.split("/")
    top = {"head_supervised": "classifier", "projection_head": "head"}.get(top, top)
    if modules and "batch_normalization" in modules[-1]:
        modules[-1] = "bn"
    return (top, *modules, LEAVES[leaf][1])
