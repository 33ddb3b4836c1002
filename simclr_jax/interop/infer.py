"""Which model a set of official variables belongs to, from their names and shapes alone."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from simclr_jax import recipes
from simclr_jax.errors import UserError
from simclr_jax.interop import official_names
from simclr_jax.interop.official_names import Architecture, Names
from simclr_jax.interop.tensorflow_files import Checkpoint
from simclr_jax.models.heads import Classifier, ProjectionHead
from simclr_jax.models.normalization import BatchNorm
from simclr_jax.models.resnet import ARCHITECTURES, ResNet

SHOWN = 4  # names in an error
LARGEST = 2**24  # of the sizes of a variable

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Model:
    """An official model.

    Attributes:
      architecture: of the encoder.
      head_kind: "none", "linear" or "nonlinear".
      head_layers: of a nonlinear head.
      head_dim: of the projection; 0 without a head.
      classes: of the supervised head; 0 without one.
      classifier_inputs: numbers it reads; 0 without one.
      names: official name to path of each variable, in the official order.
    """

    architecture: Architecture
    head_kind: str
    head_layers: int
    head_dim: int
    classes: int
    classifier_inputs: int
    names: Names

    @property
    def features(self) -> int:
        """Return the length of `h`."""
        bottleneck, _ = ARCHITECTURES[self.architecture.depth]
        return (32 if bottleneck else 8) * int(64 * self.architecture.width)

    def taps(self) -> list[int]:
        """Return the layers of the head that the classifier may read, by its size; 0 is `h`."""
        layers = recipes.layer_count(self.head_kind, self.head_layers)
        sizes = [self.features] * layers + [self.head_dim if layers else self.features]
        return [tap for tap, size in enumerate(sizes) if size == self.classifier_inputs]


def infer(checkpoint: Checkpoint) -> Model:
    """Return the model whose variables the checkpoint holds.

    What leaves no trace in variables cannot be seen: the pooled shortcuts that selective kernels
    bring into encoders without bottlenecks with the CIFAR stem.

    Raises:
      UserError: if no model has just these variables, naming the nearest and what differs.
    """
    shapes = checkpoint.shapes
    for name, shape in shapes.items():
        if not all(1 <= size <= LARGEST for size in shape):
            raise UserError(
                f"{name} of {checkpoint.path} is {list(shape)}, which no variable can be: convert "
                "an unchanged checkpoint of that program"
            )
    kind, layers, dim = _head(shapes)
    kernels = [s for n, s in shapes.items() if n.startswith("head_supervised/") and len(s) == 2]
    inputs, classes = kernels[0] if kernels else (0, 0)

    def model(architecture: Architecture) -> Model:
        named = official_names.namer(checkpoint.flavour == "tf1", _synchronized(shapes))
        names = named.encoder(architecture) | named.head(kind, layers)
        if classes:
            names |= named.classifier()
        return Model(architecture, kind, layers, dim, classes, inputs, names)

    models = [model(architecture) for architecture in _candidates()]
    nearest = min(models, key=lambda m: (len(m.names.keys() ^ shapes.keys()), -len(m.names)))
    nearest = model(_sized(nearest, shapes))
    wanted = _shapes(nearest)
    found = [f"{name} is missing" for name in wanted if name not in shapes]
    found += [f"{name} is unknown" for name in shapes if name not in wanted]
    found += [f"{name} is unknown" for name in checkpoint.unknown]
    found += [
        f"{name} is {list(shapes[name])} and not {list(shape)}"
        for name, shape in wanted.items()
        if shapes.get(name, shape) != shape
    ]
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(
            f"{checkpoint.path} is no model of google-research/simclr; nearest is "
            f"{describe(nearest.architecture)}, but {'; '.join(found[:SHOWN])}{more}: "
            "convert an unchanged checkpoint of that program"
        )
    return nearest


def describe(architecture: Architecture) -> str:
    """Return the encoder in words."""
    words = [f"ResNet-{architecture.depth}", f"width {architecture.width:g}"]
    if architecture.sk_ratio:
        words.append(f"selective kernels {architecture.sk_ratio:g}")
    if architecture.se_ratio:
        words.append(f"squeeze-excitation {architecture.se_ratio:g}")
    words.append(f"{architecture.stem} stem")
    if architecture.variant != "official":
        words.append(f"variant {architecture.variant}")
    return ", ".join(words)


def _candidates() -> Iterable[Architecture]:
    options = itertools.product(ARCHITECTURES, ("imagenet", "cifar"), (0.0, 0.0625), (0.0, 0.25))
    return (Architecture(depth, 1.0, stem, sk, se) for depth, stem, sk, se in options)


def _sized(model: Model, shapes: Shapes) -> Architecture:
    """Return the architecture of a model with the stem and the sizes that its variables have."""
    by_path = {path: shapes[name] for name, path in model.names.items() if name in shapes}
    usual = (7, 7, 3, 64)
    stem = by_path.get(("params", "encoder", "stem_conv", "conv", "kernel"), usual)
    three = model.architecture.stem == "imagenet" and model.architecture.sk_ratio > 0
    if len(stem) != 4 or stem[-1] < (2 if three else 1):  # nonsense, to be named by who compares
        stem = usual
    sized: dict[str, Any] = {
        "width": stem[-1] / 64,
        "stem": "imagenet" if stem[0] == 7 or three else "cifar",
    }
    for field, module, least in (("sk_ratio", "sk2", 32), ("se_ratio", "se", 1)):
        kernels = {p[2]: shape for p, shape in by_path.items() if p[3:5] == (module, "squeeze")}
        sizes = [
            (stem[-1] * 2 ** (int(block[len("group")]) - 1), shape[-1])
            for block, shape in kernels.items()
            if shape
        ]
        if sizes:
            sized[field] = _ratio(sizes, least, usual=getattr(model.architecture, field))
    return dataclasses.replace(model.architecture, **sized)


def _ratio(sizes: list[tuple[int, int]], least: int, usual: float) -> float:
    """Return a ratio r with squeezed = max(int(features * r), least) for all pairs, if any."""
    features, squeezed = max(sizes)

    def fits(ratio: float) -> bool:
        return all(max(int(f * ratio), least) == s for f, s in sizes)

    exact = squeezed / features
    return next(filter(fits, (usual, exact, (squeezed + 0.5) / features)), exact)


def _head(shapes: Shapes) -> tuple[str, int, int]:
    """Return kind, layers and outputs of the projection head."""
    scope = re.compile(r"(?:head_contrastive|projection_head)/(n?l_\d{1,9})/dense(?:_\d+)?/kernel")
    found = ((scope.fullmatch(name), shape) for name, shape in shapes.items())
    kernels = {match[1]: shape for match, shape in found if match and len(shape) == 2}
    if not kernels:
        return "none", 0, 0
    kind = "linear" if "l_0" in kernels else "nonlinear"
    last = max(kernels, key=lambda module: int(module.rpartition("_")[2]))
    return kind, len(kernels), kernels[last][-1]


def _synchronized(shapes: Shapes) -> bool:
    return any("sync_batch_normalization" in name for name in shapes)


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Return the shape of each official variable of a model."""

    def init(key: jax.Array):
        side = 32
        resnet = ResNet(**dataclasses.asdict(model.architecture), norm=BatchNorm)
        ends, encoder = resnet.init_with_output(key, jnp.zeros((2, side, side, 3)), True)
        layers = recipes.layer_count(model.head_kind, model.head_layers)
        head = ProjectionHead(model.head_kind, layers, model.head_dim, BatchNorm)
        sections = {"encoder": encoder, "head": head.init(key, ends["h"], True)}
        if model.classes:
            read = jnp.zeros((2, model.classifier_inputs))
            sections["classifier"] = Classifier(model.classes).init(key, read)
        return {
            kind: {name: tree[kind] for name, tree in sections.items() if kind in tree}
            for kind in ("params", "batch_stats")
        }

    tree = jax.eval_shape(init, jax.random.key(0))
    leaves = official_names.from_tree(tree, model.names)
    return {name: leaf.shape for name, leaf in leaves.items()}
