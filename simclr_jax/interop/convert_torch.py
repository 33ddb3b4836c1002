"""From PyTorch's weights of a ResNet to a run.

What these expect of an image, their files do not say: nearly all programs take off ImageNet's mean
and deviation, which here the encoder does itself (`model.input="normalised"`) on pixels in [0, 1].
It could not be folded into the first convolution: what pads an image there is 0 after the
normalisation, not before it. Evaluations look at the central 87.5 %, which is `Resize(256)` and
`CenterCrop(224)`, on torchvision's grid ("antialias").
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simclr_jax import documents
from simclr_jax.data.sources import tfds
from simclr_jax.errors import UserError, choose
from simclr_jax.interop import torch_files, torch_model, torch_names, written
from simclr_jax.interop.infer import describe
from simclr_jax.interop.torch_files import Weights
from simclr_jax.interop.torch_model import Found
from simclr_jax.interop.written import NO_DATASET, Foreign, Options
from simclr_jax.models.inputs import COLOURED, DEVIATION, INPUTS, MEAN

INPUT = "normalised"
# Architectures of timm that are what their names and shapes look like: `resnetblur50` is not.
PLAIN = re.compile(r"(tv_|gluon_|legacy_)?(se)?resnet\d+(_gn|c|d)?")


@dataclasses.dataclass(frozen=True)
class Beside:
    """What the `config.json` beside weights of timm says; None: nothing.

    Attributes:
      image_size: side of its images.
      input: a key of `INPUTS`.
    """

    image_size: int | None = None
    input: str | None = None


def open_model(path: Path, options: Options) -> Foreign:
    """Return the encoder in a file of PyTorch's weights.

    Args:
      path: see `torch_files.find`.
      options: what it does not say.

    Raises:
      UserError: if the file cannot be read, holds no encoder that this program can be, or options
        contradict it.
    """
    if options.tap is not None:
        raise UserError(
            f"--tap={options.tap} is where a classifier reads, and none is taken from weights of "
            "PyTorch: omit it"
        )
    if options.input is not None:
        choose("--input", options.input, INPUTS)
    weights = torch_files.open_weights(path)
    found = torch_model.infer(weights, options.prefix)
    beside = _ours(weights) or _beside(path)
    shown = options.input or beside.input or (INPUT if found.channels == 3 else "rgb")
    if found.channels != 3 and shown in COLOURED:
        raise UserError(
            f"--input={shown} is made of images of 3 channels, and the encoder in {path} takes "
            f"{found.channels}: give --input=rgb"
        )
    if options.dataset not in (None, NO_DATASET):
        tfds.declared_classes(options.dataset)  # is there one?
    small = found.architecture.stem == "cifar"
    size = options.image_size or beside.image_size or (32 if small else 224)
    config = written.described(options.dataset or NO_DATASET, size)
    config.model.update(dataclasses.asdict(found.architecture))
    config.model.input = shown
    config.head.kind, config.head.layers, config.head.dim = "none", 1, 1
    config.augment.grid = "antialias"
    return Foreign(
        source=str(path),
        flavour=found.family,
        step=0,
        config=config,
        known=("model",),
        classes=0,
        tap=None,
        channels=found.channels,
        arrays=len(found.names),
        about=_about(weights, found, config),
        read=lambda: read(weights, found),
    )


def read(weights: Weights, found: Found) -> dict[str, Any]:
    """Return the arrays of an encoder as a tree `{params: ..., batch_stats: ...}`, float32."""
    values = {name: weights.read(there) for name, there in found.names.items()}
    return torch_names.to_tree(values, torch_names.encoder(found.architecture))


def _about(weights: Weights, found: Found, config: Any) -> Iterator[str]:
    """Say what was found, before values are read."""
    begin = f"names begin with {found.prefix}" if found.prefix else "names without a prefix"
    yield f"source     {weights.path} (PyTorch, as {found.family}: {begin})"
    if found.rivals:
        yield f"note       other encoders in it: {', '.join(found.rivals)} (--prefix)"
    words = describe(found.architecture)
    yield f"encoder    {words}: h has {found.features} numbers"
    yield "head       none, classifier none"
    if weights.others:
        yield f"left out   without tensors, {len(weights.others)}: {', '.join(weights.others)}"
    yield from written.left_out(found.left_out)
    kinds = collections.Counter(weights.dtypes[there] for there in found.names.values())
    if set(kinds) != {"float32"}:
        said = ", ".join(f"{count} arrays {kind}" for kind, count in kinds.items())
        yield f"precision  {said}: all are float32 from here on"
    if config.model.stem == "cifar":
        yield "note       a 3x3 stem: taken to have stride 1, padding 1 and no pooling after it"
    yield (
        f"images     {config.data.image_size} pixels in [0, 1], model.input={config.model.input} "
        f"(--input), grid {config.augment.grid}"
    )


def _beside(path: Path) -> Beside:
    """Return what timm's `config.json` says of a file in a folder of Hugging Face's hub.

    Raises:
      UserError: if it is another architecture than it looks like, or has another normalisation.
    """
    file = path.with_name("config.json")
    if path.name not in torch_files.IN_A_FOLDER or not file.is_file():
        return Beside()
    said = documents.read(file, dict[str, Any], "repair or remove it")
    if said.get("model_type") == "simclr_jax":
        raise UserError(
            f"{path.parent} is a model folder of this program: give --source={path.parent}, which "
            "takes head, classifier and preprocessing too"
        )
    name, images = said.get("architecture"), said.get("pretrained_cfg")
    if isinstance(name, str) and images and not PLAIN.fullmatch(name):
        raise UserError(
            f"{file} says architecture={json.dumps(name)}, whose strides or pooling are not "
            "those of ours: convert a plain resnet18 to resnet152"
        )
    if not isinstance(images, dict):
        return Beside()
    size, mean, deviation = (images.get(field) for field in ("input_size", "mean", "std"))
    looks: dict[tuple, str] = {(MEAN, DEVIATION): INPUT, ((0.0,) * 3, (1.0,) * 3): "rgb"}
    shown = None
    if mean is not None and deviation is not None:
        shown = looks.get((_numbers(mean), _numbers(deviation)))
        if shown is None:
            raise UserError(
                f"{file} says mean={mean} and std={deviation}, and the encoder takes off "
                "ImageNet's (--input=normalised) or none (rgb): correct it there"
            )
    side = size[-1] if isinstance(size, list) and size else None
    return Beside(side if type(side) is int and side > 0 else None, shown)


def _ours(weights: Weights) -> Beside | None:
    """Return what this program has said in a file that it exported; None for a stranger's.

    Raises:
      UserError: if it is of an encoder whose max-pool is not torchvision's, which no name shows.
    """
    try:
        said = documents.parse(weights.said.get("about", "{}"), dict[str, Any])
        model, size = (said["recipe"][group] for group in ("model", "data"))
        variant, shown, side = model.get("variant", "official"), model["input"], size["image_size"]
    except (documents.Unfit, KeyError, TypeError, AttributeError):
        return None
    if variant != "torchvision":
        raise UserError(
            f"{weights.path} was exported from an encoder of model.variant={variant}, whose "
            "max-pool is not PyTorch's: start from the run it was exported from"
        )
    return Beside(side if type(side) is int else None, shown if shown in INPUTS else None)


def _numbers(values: Any) -> tuple[float, ...]:
    fitting = isinstance(values, list) and all(type(x) in (int, float) for x in values)
    return tuple(float(x) for x in values) if fitting else ()
