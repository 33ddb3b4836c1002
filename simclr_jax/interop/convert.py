"""From weights of other programs to a run like any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import documents, files, recipes
from simclr_jax.data.sources import tfds
from simclr_jax.errors import UserError
from simclr_jax.interop import (
    convert_folder,
    convert_torch,
    infer,
    model_folder,
    official_names,
    torch_files,
    written,
)
from simclr_jax.interop.infer import Model
from simclr_jax.interop.tensorflow_files import Checkpoint, beside, open_checkpoint
from simclr_jax.interop.written import NO_DATASET, Foreign, Options
from simclr_jax.train.workdir import started

FLAVOURS = {"tf1": "TensorFlow 1", "tf2": "TensorFlow 2"}


@dataclasses.dataclass(frozen=True)
class Resolved:
    """`Options` for one checkpoint; `tap` is None where there is no classifier."""

    dataset: str
    image_size: int
    tap: int | None


def run(source: str, workdir: str, options: Options) -> None:
    """Convert weights of another program, write them as a run, and say what it is.

    The run's `config.json` carries the preprocessing of the program it is from: of an official one
    pixels in [0, 1], no mean and deviation, the central 87.5 % (all of images up to 32 pixels), its
    bicubic grid; for PyTorch's see `interop/convert_torch.py`.

    Args:
      source: a model folder of this program, or see `interop.torch_files.find`, and else
        `interop.tensorflow_files.find`.
      workdir: of the run to be; must hold none.
      options: what the checkpoint does not say.

    Raises:
      UserError: if there is no such checkpoint, it is damaged or of another program, what it does
        not say contradicts it, or the workdir holds a run already.
    """
    workdir = files.expand_home(workdir)
    files.check_directory(workdir, "--workdir")
    if started(workdir):
        raise UserError(f"{workdir} holds a run already: give another --workdir")
    written.write(_opened(source, options), workdir)


def _opened(source: str, options: Options) -> Foreign:
    if model_folder.is_ours(source):
        return convert_folder.open_model(source, options)
    path = torch_files.find(source)
    return convert_torch.open_model(path, options) if path else _official(source, options)


def _official(source: str, options: Options) -> Foreign:
    checkpoint = open_checkpoint(source)
    for flag in ("prefix", "input"):
        if getattr(options, flag) is not None:
            raise UserError(
                f"--{flag}={getattr(options, flag)} is for weights of PyTorch, and {source} is a "
                "TensorFlow checkpoint: omit it"
            )
    model = infer.infer(checkpoint)
    resolved = _resolve(options, checkpoint, model)
    config = recipe(checkpoint.flavour, model, resolved)
    return Foreign(
        source=checkpoint.path,
        flavour=checkpoint.flavour,
        step=checkpoint.step or 0,
        config=config,
        known=("model", "head", "data.name", "data.image_size", "augment.grid"),
        classes=model.classes,
        tap=resolved.tap,
        channels=3,
        arrays=len(model.names),
        about=_about(checkpoint, model, resolved, config),
        read=lambda: _tree(checkpoint, model),
    )


def recipe(flavour: str, model: Model, resolved: Resolved) -> ConfigDict:
    """Return the recipe that describes an official model, see `written.described`.

    Other fields than those of model, head, images and grid are defaults.
    """
    c = written.described(resolved.dataset, resolved.image_size)
    c.model.update(dataclasses.asdict(model.architecture))
    c.head.kind = model.head_kind
    c.head.layers, c.head.dim = max(1, model.head_layers), max(1, model.head_dim)
    recipes.official(c, flavour)
    return c


def _resolve(options: Options, checkpoint: Checkpoint, model: Model) -> Resolved:
    """Fill in what is None by what the checkpoint's neighbour says, or by the usual; check it."""
    path, said = _flags_beside(checkpoint)
    small = model.architecture.stem == "cifar"

    def choose(given: Any, flag: str, usual: Any) -> Any:
        if given is not None or flag not in said:
            return usual if given is None else given
        if type(said[flag]) is not type(usual):
            raise UserError(f"{path} says {flag}={said[flag]!r}: repair or remove it")
        return said[flag]

    dataset = choose(options.dataset, "dataset", "cifar10" if small else "imagenet2012")
    size = choose(options.image_size, "image_size", 32 if small else 224)
    tap = choose(options.tap, "ft_proj_selector", 0)
    if size < 1:
        raise UserError(f"--image_size is {size}: it must be 1 pixel or more")
    if dataset != NO_DATASET and (model.classes or options.dataset):
        _check_classes(dataset, model)
    if not model.classes:
        if options.tap is not None:
            raise UserError(f"--tap={tap} is where a classifier reads, but there is none: omit it")
        return Resolved(dataset, size, None)
    if -model.head_layers <= tap < 0:
        tap += model.head_layers + 1
    _check_tap(tap, model)
    return Resolved(dataset, size, tap)


def _flags_beside(checkpoint: Checkpoint) -> tuple[epath.Path, dict[str, Any]]:
    """Return the flags of the program that wrote the checkpoint, if it left them, and where."""
    parents = list(epath.Path(checkpoint.path).parents)
    # A SavedModel lies in MODEL_DIR/hub/STEP or MODEL_DIR/saved_model/STEP, below the flags.
    places = parents[:4] if parents[0].name == "variables" else parents[:1]
    path = next((p / "flags.json" for p in places if (p / "flags.json").exists()), None)
    if path is None:
        return places[0] / "flags.json", {}
    return path, documents.read(path, dict[str, Any], "repair or remove it")


def _check_tap(tap: int, model: Model) -> None:
    if tap in model.taps():
        return
    if not model.head_layers:
        raise UserError(
            f"the classifier is to read layer {tap} of the projection head, but there is none in "
            "this checkpoint: give --tap=0, or convert the run instead of its hub module"
        )
    fitting = " or ".join(f"--tap={tap}" for tap in model.taps()) or "another checkpoint"
    raise UserError(
        f"the classifier reads {model.classifier_inputs} numbers, which is not layer {tap} of "
        f"the projection head (0 is h, of {model.features}): give {fitting}"
    )


def _check_classes(dataset: str, model: Model) -> None:
    remedy = f"name the one it was trained on by --dataset, or --dataset={NO_DATASET}"
    try:
        classes = tfds.declared_classes(dataset)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from None
    if model.classes and classes != model.classes:
        raise UserError(
            f"the classifier has {model.classes} classes, but the data set {dataset} has "
            f"{classes}: {remedy}"
        )


def _tree(checkpoint: Checkpoint, model: Model) -> dict[str, Any]:
    values = {name: checkpoint.read(name) for name in model.names}
    for name, value in values.items():
        if not np.all(np.isfinite(value)):
            raise UserError(
                f"{name} of {checkpoint.path} is not finite: the run that saved it had diverged"
            )
    return official_names.to_tree(values, model.names)


def _about(
    checkpoint: Checkpoint, model: Model, resolved: Resolved, config: ConfigDict
) -> Iterator[str]:
    """Say what was found, before values are read."""
    step = "it does not say" if checkpoint.step is None else checkpoint.step
    yield f"source     {checkpoint.path} ({FLAVOURS[checkpoint.flavour]}; step: {step})"
    others = [name for name in beside(checkpoint.path) if not checkpoint.path.endswith(f"/{name}")]
    if others:
        yield f"note       beside it lie {', '.join(others)}"
    yield f"encoder    {infer.describe(model.architecture)}: h has {model.features} numbers"
    layers = f"{model.head_layers} layer{'s' if model.head_layers > 1 else ''}"
    head = f"{model.head_kind}, {layers}: z has {model.head_dim} numbers"
    yield f"head       {head if model.head_layers else 'none'}"
    yield f"classifier {_classifier(model, resolved)}"
    yield from written.left_out(checkpoint.left_out)
    yield (
        f"images     {config.data.image_size} pixels in [0, 1], no mean and deviation, grid "
        f"{config.augment.grid}, of {config.data.name or 'a data set of your own'}"
    )


def _classifier(model: Model, resolved: Resolved) -> str:
    if resolved.tap is None:
        return "none"
    names = {tap: f"layer {tap} of the head" if tap else "h" for tap in model.taps()}
    where = names.pop(resolved.tap)
    doubt = f"; by its size it could read {' or '.join(names.values())}: --tap" if names else ""
    return f"{model.classes} classes on {where}{doubt}"
