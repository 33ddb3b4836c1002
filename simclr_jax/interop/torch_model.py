"""Which encoder a file of PyTorch's weights holds, from names and shapes alone.

An encoder is known by the first convolution of its first block, wherever it stands. Where each
program's names are from:

    torchvision, timm  conv1, bn1, layer1 to layer4, fc (models/resnet.py of both)
    lightly            backbone.0, .1, .4 to .7: the children of a ResNet (examples/pytorch)
    solo-learn         backbone., before encoder.; 3x3 stem of CIFAR (solo/methods/base.py)
    MoCo               module.encoder_q., module.encoder_k. (moco/builder.py)
    MoCo v3            module.base_encoder., module.momentum_encoder. (moco/builder.py)
    SimSiam            module.encoder. (simsiam/builder.py)
    VISSL              _feature_blocks. (vissl/models/trunks/resnext.py), in
                       classy_state_dict/base_model/model/trunk
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from simclr_jax.errors import UserError
from simclr_jax.interop import torch_names
from simclr_jax.interop.infer import LARGEST, SHOWN, Shapes, describe
from simclr_jax.interop.official_names import Architecture
from simclr_jax.interop.torch_files import Weights
from simclr_jax.models.resnet import ARCHITECTURES

FIRST_BLOCK = re.compile(r"(?P<prefix>(?:.*[./])?)(?P<layer>layer1|[24])\.0\.conv1\.weight")
# Where the modules of a ResNet stand among its children, of which users make a `Sequential`.
CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
CHILDREN |= {"8": "avgpool", "9": "fc"}
IN_A_ROW = {"0": "conv1", "1": "bn1", "2": "layer1", "3": "layer2", "4": "layer3", "5": "layer4"}
# What may stand beside the layers of an encoder and reads its features.
HEADS = re.compile(
    r"(fc|linear|heads?|classifier|last_linear|proj(ection)?(_?head|_?mlp)?|projector|predictor"
    r"|prediction_head|prototypes|neck|mlp|queue(_ptr)?|avgpool|flatten)(\.|$)"
)
BLOCK = re.compile(r"(layer\d\.\d+)\.")
LAYER = re.compile(r"(conv1|bn1|layer\d)\.")
AVERAGED = re.compile(
    r"(?:^|[./_])(encoder_k|key_encoder|momentum|ema|teacher|target|averaged?)(?:[./_]|$)"
)
FAMILIES = (  # by what an encoder's names begin with
    ("MoCo", r"\bencoder_[qk]\.$"),
    ("MoCo v3", r"\b(base|momentum)_encoder\.$"),
    ("VISSL", r"_feature_blocks\.$"),
    ("SimSiam", r"\bmodule\.encoder\.$"),
)
OTHERS = (  # networks that are no ResNets, by names of theirs
    ("a vision transformer", r"patch_embed|cls_token|class_token|pos_embed|\.attn\.|conv_proj"),
    ("a ConvNeXt", r"conv_dw|dwconv|layer_scale|downsample_layers"),
    ("a network of another kind", r"stages?\.\d+|denseblock|features\.\d+|(^|[./])blocks\."),
)
REMEDY = "convert a ResNet of torchvision's construction"


@dataclasses.dataclass(frozen=True)
class Found:
    """An encoder in a file.

    Attributes:
      prefix: what its names begin with there.
      family: program whose names these are.
      architecture: of the encoder.
      channels: of the images it takes.
      names: its arrays' names in the file, by torchvision's name.
      left_out: names of other tensors, by what they are.
      rivals: what the names of other encoders in the file begin with.
    """

    prefix: str
    family: str
    architecture: Architecture
    channels: int
    names: dict[str, str]
    left_out: dict[str, list[str]]
    rivals: list[str]

    @property
    def features(self) -> int:
        """Return the length of `h`."""
        bottleneck, _ = ARCHITECTURES[self.architecture.depth]
        return (32 if bottleneck else 8) * int(64 * self.architecture.width)


def infer(weights: Weights, prefix: str | None = None) -> Found:
    """Return the encoder of a file.

    Of several the one that learns is taken, and not its moving average.

    Args:
      weights: of the file.
      prefix: what the names of the wanted one begin with; needed if there are several that learn.

    Raises:
      UserError: if there is none, several and none is named, or one that this program cannot be,
        saying in what it differs.
    """
    candidates = _candidates(weights.shapes)
    if not candidates:
        raise UserError(f"{weights.path} holds {_what_else(weights.shapes)}: {REMEDY}")
    chosen = _choose(candidates, weights, prefix)
    names, rest = _split(candidates[chosen], weights.path, chosen)
    shapes = {name: weights.shapes[there] for name, there in names.items()}
    family = _family(chosen, weights.shapes)
    _refuse(shapes, names, family, weights.path)
    architecture, channels = _architecture(shapes, weights.path)
    _compare(shapes, names, architecture, channels, weights.path)
    inside = set(candidates[chosen].values())
    for name in weights.shapes:
        if name not in inside:
            rest.setdefault(_part(name, chosen), []).append(name)
    rivals = sorted(set(candidates) - {chosen})
    return Found(chosen, family, architecture, channels, names, rest, rivals)


def _candidates(shapes: Shapes) -> dict[str, dict[str, str]]:
    """Return of each ResNet, by what its names begin with, its names by torchvision's."""
    found: dict[str, dict[str, str]] = {}
    for anchor in filter(None, map(FIRST_BLOCK.fullmatch, shapes)):
        prefix, children = anchor["prefix"], {}
        if anchor["layer"] != "layer1":
            if f"{prefix}0.weight" not in shapes:  # blocks of something else
                continue
            # Without a pooling layer, and an activation that is a module, blocks begin at 2.
            children = IN_A_ROW if f"{prefix}2.0.conv1.weight" in shapes else CHILDREN
        found[prefix] = {
            _usual(name.removeprefix(prefix), children): name
            for name in shapes
            if name.startswith(prefix)
        }
    for prefix, names in found.items():
        inner = tuple(other for other in found if other != prefix and other.startswith(prefix))
        found[prefix] = {n: there for n, there in names.items() if not there.startswith(inner)}
    return found


def _usual(name: str, children: Mapping[str, str]) -> str:
    """Return the name that torchvision has for a name behind its prefix."""
    first, dot, rest = name.partition(".")
    rest = rest.replace(".shortcut.", ".downsample.")  # lightly, and many programs for CIFAR
    return f"{children.get(first, first)}{dot}{rest}"


def _choose(candidates: Mapping[str, dict[str, str]], weights: Weights, wanted: str | None) -> str:
    listed = " or ".join(f"--prefix={prefix or 'NONE'}" for prefix in sorted(candidates))
    if wanted is not None:
        asked = wanted.removesuffix("NONE").strip("./").replace("/", ".")
        plain = {prefix.strip("./").replace("/", "."): prefix for prefix in candidates}
        fitting = [p for said, p in plain.items() if said == asked or said.endswith(f".{asked}")]
        if asked in plain:
            return plain[asked]
        if len(fitting) == 1 and asked:
            return fitting[0]
        raise UserError(f"--prefix={wanted} names no encoder of {weights.path}: give {listed}")
    learning = [prefix for prefix in candidates if not AVERAGED.search(prefix)]
    learning = learning or list(candidates)
    first = min(learning, key=len)
    if all(_same(candidates[first], candidates[other], weights) for other in learning):
        return first
    raise UserError(f"{weights.path} holds {len(learning)} encoders: name one by {listed}")


def _same(one: Mapping[str, str], other: Mapping[str, str], weights: Weights) -> bool:
    """Tell whether two encoders are one under two names."""
    kept = [name for name in one if LAYER.match(name) and not name.endswith(torch_names.COUNTER)]
    return one is other or all(
        name in other
        and weights.shapes[one[name]] == weights.shapes[other[name]]
        and np.array_equal(weights.read(one[name]), weights.read(other[name]))
        for name in kept
    )


def _split(
    names: Mapping[str, str], path: str, prefix: str
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the names of an encoder's arrays, and what stands beside them by what it is."""
    arrays: dict[str, str] = {}
    rest: dict[str, list[str]] = {}
    unknown = []
    nested = [name for name in names if "/" in name]  # of a wrapper inside, such as an optimiser's
    for name, there in names.items():
        if LAYER.match(name):
            if name.endswith(f".{torch_names.COUNTER}"):
                rest.setdefault(f"counters of batches ({torch_names.COUNTER})", []).append(there)
            else:
                arrays[name] = there
        elif HEADS.match(name):
            what = f"head ({prefix}{name.partition('.')[0]})"
            rest.setdefault(what, []).append(there)
        elif name in nested:
            rest.setdefault(name.partition("/")[0], []).append(there)
        else:
            unknown.append(there)
    if unknown:
        raise UserError(
            f"{path} holds beside the layers of a ResNet {_listed(unknown)}, which are "
            f"unknown: {REMEDY}"
        )
    return arrays, rest


def _family(prefix: str, shapes: Shapes) -> str:
    outer, _, inner = prefix.rpartition("/")
    before = f"{outer}/" if outer else ""
    heads = (f"{before}classifier.weight", f"{before}projector.0.weight")
    if re.fullmatch(r"(momentum_)?(backbone|encoder)\.", inner) and any(h in shapes for h in heads):
        return "solo-learn"
    if f"{prefix}0.weight" in shapes:
        return "lightly"
    return next((name for name, law in FAMILIES if re.search(law, prefix)), "torchvision or timm")


def _refuse(shapes: Shapes, names: Mapping[str, str], family: str, path: str) -> None:
    """Raise for what names and shapes show and this program does not have."""

    def shape(name: str, size: int = 4) -> tuple[int, ...]:
        found = shapes.get(name, ())
        return found if len(found) == size else (0,) * size

    stem, block = shape("conv1.weight"), shape("layer1.0.conv1.weight")
    grouped = shape("layer1.0.conv2.weight")
    deep = "conv1.0.weight" in shapes
    reasons = {
        "a deep stem of three 3x3 convolutions, as timm's resnet50d, whose other shortcuts are "
        "not pooled either where the stride is 1": deep,
        "shortcuts that are pooled first, as timm's resnet50d": "layer2.0.downsample.2.weight"
        in shapes,
        "attention inside its blocks": any(
            re.search(r"layer1\.0\.(attn|se\.conv|eca)", name) for name in shapes
        ),
        "group normalisation, or another without moving statistics": "bn1.weight" in shapes
        and "bn1.running_mean" not in shapes,
        "convolutions in groups (ResNeXt)": 0 < grouped[1] < grouped[0],
        "bottlenecks of another width than its stem (wide_resnet)": not deep
        and 0 < stem[0] != block[0] > 0,
        f"a stem for images of {stem[1]} channels": stem[1] not in (0, 1, 3),
        f"a stem of {stem[2]}x{stem[3]} pixels": stem[2:] not in ((7, 7), (3, 3), (0, 0)),
        "no activation after its first normalisation (lightly's ResNetGenerator as a Sequential)": (
            names.get("layer1.0.conv1.weight", "").endswith("2.0.conv1.weight")
        ),
        "a stem padded by 2 pixels (solo-learn for CIFAR), which shifts every later stride": (
            family == "solo-learn" and stem[2] == 3
        ),
    }
    for reason, given in reasons.items():
        if given:
            raise UserError(f"{path} is a ResNet with {reason}, and ours has none: {REMEDY}")


def _architecture(shapes: Shapes, path: str) -> tuple[Architecture, int]:
    """Return the architecture whose arrays these might be, and the channels of its images."""
    stem = shapes.get("conv1.weight", (64, 3, 7, 7))  # who compares says that it is missing
    for name, shape in (("conv1.weight", stem), *shapes.items()):
        sizes = len(shape) if name == "conv1.weight" else 4
        if sizes != 4 or not all(1 <= size <= LARGEST for size in shape):
            raise UserError(f"{name} of {path} is {list(shape)}, which no array can be: {REMEDY}")
    bottleneck = "layer1.0.conv3.weight" in shapes
    blocks = {match[1] for match in map(BLOCK.match, shapes) if match}
    groups = [block.partition(".")[0] for block in blocks]
    counts = tuple(groups.count(f"layer{group}") for group in range(1, 5))
    depth = next((d for d, law in ARCHITECTURES.items() if law == (bottleneck, counts)), None)
    if depth is None or len(groups) != sum(counts):
        kind = "bottlenecks" if bottleneck else "blocks of two convolutions"
        raise UserError(
            f"{path} is a ResNet with {', '.join(map(str, counts))} {kind} in its groups, which "
            f"no depth of ours has (model.depth: {', '.join(map(str, ARCHITECTURES))}): {REMEDY}"
        )
    squeezed = shapes.get("layer1.0.se.fc1.weight", (0,))[0]
    architecture = Architecture(
        depth,
        width=stem[0] / 64,
        stem="imagenet" if stem[2] == 7 else "cifar",
        se_ratio=squeezed / stem[0],
        variant="torchvision",
    )
    return architecture, stem[1]


def _compare(
    shapes: Shapes,
    names: Mapping[str, str],
    architecture: Architecture,
    channels: int,
    path: str,
) -> None:
    wanted = torch_names.shapes(architecture, channels)
    found = [f"{name} is missing" for name in wanted if name not in shapes]
    found += [f"{names[name]} is unknown" for name in shapes if name not in wanted]
    found += [
        f"{names[name]} is {list(shapes[name])} and not {list(shape)}"
        for name, shape in wanted.items()
        if shapes.get(name, shape) != shape
    ]
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(
            f"{path} is no ResNet of ours; nearest is {describe(architecture)}, but "
            f"{'; '.join(found[:SHOWN])}{more}: {REMEDY}"
        )


def _part(name: str, prefix: str) -> str:
    """Return the part of a file that a name is of, as far as it differs from the encoder's."""
    pieces, ours = re.findall(r"[^./]+[./]?", name), re.findall(r"[^./]+[./]?", prefix)
    same = 0
    while same < min(len(pieces), len(ours)) and pieces[same] == ours[same]:
        same += 1
    return "".join(pieces[: same + 1]).rstrip("./")


def _what_else(shapes: Shapes) -> str:
    if not shapes:
        return "no tensors"
    for what, law in OTHERS:
        if any(re.search(law, name) for name in shapes):
            return f"{what} and no ResNet (names are {_listed(list(shapes))})"
    return f"no ResNet (names are {_listed(list(shapes))})"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
