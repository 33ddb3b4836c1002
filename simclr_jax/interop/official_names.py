"""Names of the official variables, made from the architecture, with the paths of our parameters.

Both flavours number layers in the order in which they are built, a shortcut before its residual
branch. TensorFlow 1 numbers within the encoder and lists variables as they are built; TensorFlow 2
numbers through the whole model, and lists the trainable variables of a section before the others.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from simclr_jax.models.resnet import ARCHITECTURES, projects

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
CLASSIFIER = ("classifier", "dense")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What decides which variables an official encoder has; fields as those of `ResNet`."""

    depth: int
    width: float = 1.0
    stem: str = "imagenet"
    sk_ratio: float = 0.0
    se_ratio: float = 0.0
    variant: str = "official"


class _Layer(NamedTuple):
    """A convolution, by where this package keeps it, and how TensorFlow 2 builds and names it."""

    conv: Path
    norm: Path | None
    scope: str = ""  # the layer inside a block that it belongs to
    padded: bool = True  # whether it is wrapped in `conv2d_fixed_padding`
    bias: bool = False


def _normalized(module: Path, i: int | str = "") -> _Layer:
    return _Layer((*module, f"conv{i}", "conv"), (*module, f"bn{i}"))


def _stem(architecture: Architecture) -> list[_Layer]:
    three = architecture.stem == "imagenet" and architecture.sk_ratio > 0
    names = ["stem1", "stem2", "stem"] if three else ["stem"]
    return [_Layer(("encoder", f"{n}_conv", "conv"), ("encoder", f"{n}_bn")) for n in names]


class _Block(NamedTuple):
    group: int
    shortcut: list[_Layer]  # if it is a convolution; built first
    branch: list[_Layer]
    excitation: list[_Layer]


def _blocks(architecture: Architecture) -> Iterator[_Block]:
    bottleneck, blocks = ARCHITECTURES[architecture.depth]
    for group, count in enumerate(blocks, start=1):
        for number in range(1, count + 1):
            block = ("encoder", f"group{group}_block{number}")
            shortcut = _Layer((*block, "shortcut_conv", "conv"), (*block, "shortcut_bn"))
            branch = [_normalized(block, 1), _normalized(block, 2)]
            if bottleneck:
                middle = (
                    _selective_kernel((*block, "sk2")) if architecture.sk_ratio > 0 else branch[1:]
                )
                branch = [branch[0], *middle, _normalized(block, 3)]
            excitation = []
            if architecture.se_ratio > 0:
                excitation = [
                    _Layer((*block, "se", name, "conv"), None, "se__layer", padded=False, bias=True)
                    for name in ("squeeze", "excite")
                ]
            projected = projects(architecture.depth, architecture.variant, group, number)
            yield _Block(group, [shortcut] if projected else [], branch, excitation)


def _selective_kernel(module: Path) -> list[_Layer]:
    scope = "sk__conv2d"
    return [
        _Layer((*module, "conv", "conv"), (*module, "bn"), scope),
        _Layer((*module, "squeeze", "conv"), (*module, "squeeze_bn"), scope, padded=False),
        _Layer((*module, "excite", "conv"), None, scope, padded=False),
    ]


def _leaves(scope: str, path: Path, *leaves: str) -> Names:
    return {f"{scope}/{x}": (LEAVES[x][0], *path, LEAVES[x][1]) for x in leaves}


def _norm(scope: str, path: Path, center: bool = True) -> Names:
    return _leaves(scope, path, "gamma", *(["beta"] if center else []), *MOVING)


def _weights(layer: _Layer) -> tuple[str, ...]:
    return ("kernel", "bias") if layer.bias else ("kernel",)


class TF1:
    """Names under TensorFlow 1 (repository root)."""

    def encoder(self, architecture: Architecture) -> Names:
        layers = _stem(architecture)
        for block in _blocks(architecture):
            layers += [*block.shortcut, *block.branch, *block.excitation]
        names: Names = {}
        convs, norms = itertools.count(), itertools.count()
        for layer in layers:
            scope = _numbered("base_model/conv2d", next(convs))
            names |= _leaves(scope, layer.conv, *_weights(layer))
            if layer.norm:
                names |= _norm(_numbered("base_model/batch_normalization", next(norms)), layer.norm)
        return names

    def head(self, kind: str, layers: int) -> Names:
        names: Names = {}
        for i, letter, last in _head_layers(kind, layers):
            scope = f"head_contrastive/{letter}_{i}"
            names |= _leaves(f"{scope}/dense", ("head", f"dense{i + 1}"), "kernel")
            names |= _norm(f"{scope}/batch_normalization", ("head", f"bn{i + 1}"), not last)
        return names

    def classifier(self, path: Path = CLASSIFIER) -> Names:
        return _leaves("head_supervised/linear_layer/dense", path, "kernel", "bias")


class TF2:
    """Names under TensorFlow 2; ask for the sections in the order in which the model has them."""

    def __init__(self, global_bn: bool = True):
        self._bn = "sync_batch_normalization" if global_bn else "batch_normalization"
        self._counts: dict[str, Iterator[int]] = {}

    def _next(self, module: str) -> str:
        return _numbered(module, next(self._counts.setdefault(module, itertools.count())))

    def _build(self, scope: str, layers: list[_Layer]) -> Names:
        names: Names = {}
        inner = ""
        for i, layer in enumerate(layers):
            if layer.scope and (i == 0 or layers[i - 1].scope != layer.scope):
                inner = f"/{self._next(layer.scope)}"
            where = scope + (inner if layer.scope else "")
            wrapper = f"{self._next('conv2d_fixed_padding')}/" if layer.padded else ""
            conv = f"{where}/{wrapper}{self._next('conv2d')}"
            names |= _leaves(conv, layer.conv, *_weights(layer))
            if layer.norm:
                names |= self._normalize(where, layer.norm)
        return names

    def _normalize(self, scope: str, path: Path, center: bool = True) -> Names:
        return _norm(
            f"{scope}/{self._next('batch_norm_relu')}/{self._next(self._bn)}", path, center
        )

    def encoder(self, architecture: Architecture) -> Names:
        names = self._build("resnet", _stem(architecture))
        bottleneck, _ = ARCHITECTURES[architecture.depth]
        kind = "bottleneck_block" if bottleneck else "residual_block"
        for block in _blocks(architecture):
            scope = f"resnet/block_group{block.group}/{self._next(kind)}"
            built = [
                self._build(scope, layers)
                for layers in (block.shortcut, block.branch, block.excitation)
            ]
            if not bottleneck:  # its shortcut is built first, but listed after the branch
                built[0], built[1] = built[1], built[0]
            for listed in built:
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

    def classifier(self, path: Path = CLASSIFIER) -> Names:
        scope = f"head_supervised/linear_layer/{self._next('dense')}"
        return _leaves(scope, path, "kernel", "bias")


def _numbered(module: str, i: int) -> str:
    return f"{module}_{i}" if i else module


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
