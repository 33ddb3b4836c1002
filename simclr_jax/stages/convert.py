"""From a checkpoint of the official programs to a run like any other."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import config as recipes
from simclr_jax.data.sources import tfds
from simclr_jax.errors import UserError
from simclr_jax.interop import infer, official_names
from simclr_jax.interop.infer import Model
from simclr_jax.interop.tensorflow_files import Checkpoint, open_checkpoint
from simclr_jax.stages import build
from simclr_jax.train.stage import TrainState
from simclr_jax.train.workdir import CONVERTED, Workdir, open_workdir

FLAVOURS = {"tf1": "TensorFlow 1", "tf2": "TensorFlow 2"}
SHOWN = 3  # names of each kind of variable that is left out
NO_DATASET = "none"


@dataclasses.dataclass(frozen=True)
class Options:
    """What a checkpoint does not say; None: what the `flags.json` beside it says, or the usual.

    Attributes:
      dataset: of TensorFlow Datasets that it was trained on, or "none"; usually imagenet2012, or
        cifar10 for the CIFAR stem.
      image_size: side of its images; usually 224, or 32 for the CIFAR stem.
      tap: layer of the head that its classifier reads; usually 0, which is h.
    """

    dataset: str | None = None
    image_size: int | None = None
    tap: int | None = None


@dataclasses.dataclass(frozen=True)
class Attached:
    """`Options`, resolved for one checkpoint."""

    dataset: str
    image_size: int
    tap: int


def run(source: str, workdir: str, options: Options) -> None:
    """Convert an official checkpoint, write it as a run, and say what it is.

    The run's `config.json` carries the preprocessing of the program it is from: pixels in [0, 1],
    no mean and deviation, the central 87.5 % (all of images up to 32 pixels), its bicubic grid.

    Args:
      source: see `interop.tensorflow_files.find`.
      workdir: of the run to be; must hold none.
      options: what the checkpoint does not say.

    Raises:
      UserError: if there is no such checkpoint, it is damaged or of another program, what it does
        not say contradicts it, or the workdir holds a run already.
    """
    checkpoint = open_checkpoint(source)
    model = infer.infer(checkpoint)
    attached = _resolve(options, checkpoint, model)
    config = recipe(checkpoint.flavour, model, attached)
    tree = _tree(checkpoint, model)
    record = config.to_dict() | {
        "images": [],
        "converted": {
            "source": checkpoint.path,
            "flavour": checkpoint.flavour,
            "classes": model.classes,
            "classifier_tap": attached.tap,
        },
    }
    step = checkpoint.step or 0
    with open_workdir(workdir, record, "auto", keep=1, keep_period=None) as opened:
        if opened.checkpoints.steps():
            raise UserError(f"{workdir} holds a run already: give another --workdir")
        state = TrainState(jnp.int32(step), tree["params"], tree["batch_stats"], {})
        opened.checkpoints.save(step, state)
        opened.checkpoints.wait()
        _say(opened, checkpoint, model, attached, config, tree)


def recipe(flavour: str, model: Model, attached: Attached) -> ConfigDict:
    """Return the recipe that describes a converted model; it is of the stage "convert"."""
    c = recipes.base()
    c.stage = CONVERTED
    c.data.source, c.data.name, c.data.eval_split = "tfds", attached.dataset, "validation"
    if attached.dataset == NO_DATASET:
        c.data.source, c.data.name = "folder", ""
    elif not attached.dataset.startswith("imagenet"):
        c.data.eval_split = "test"
    c.data.image_size = attached.image_size
    c.model.update(dataclasses.asdict(model.architecture))
    c.head.kind = model.head_kind
    c.head.layers, c.head.dim = max(1, model.head_layers), max(1, model.head_dim)
    recipes.official(c, flavour)
    c.eval.probe = False
    return c


def reference_image(size: int) -> np.ndarray:
    """Return waves of colour, `[size, size, 3]` float32 in [0, 1], to compare outputs on."""
    y, x, c = np.meshgrid(*(np.arange(n) / n for n in (size, size, 3)), indexing="ij")
    waves = np.sin(2 * np.pi * (3 * x + c)) + np.cos(2 * np.pi * (2 * y - c * x))
    return ((waves + 2) / 4).astype(np.float32)


def _resolve(options: Options, checkpoint: Checkpoint, model: Model) -> Attached:
    """Fill in what is None, and check it against the variables."""
    said = _flags_beside(checkpoint)
    small = model.architecture.stem == "cifar"
    usual = {
        "dataset": "cifar10" if small else "imagenet2012",
        "image_size": 32 if small else 224,
        "ft_proj_selector": 0,
    }

    def choose(given: Any, flag: str) -> Any:
        return given if given is not None else said.get(flag, usual[flag])

    dataset = choose(options.dataset, "dataset")
    size = choose(options.image_size, "image_size")
    tap = choose(options.tap, "ft_proj_selector")
    if tap < 0:
        tap += model.head_layers + 1
    if size < 1:
        raise UserError(f"--image_size is {size}: it must be 1 pixel or more")
    if model.classes:
        _check_tap(tap, model)
    if dataset != NO_DATASET and (model.classes or options.dataset):
        _check_classes(dataset, model)
    return Attached(dataset, size, tap)


def _flags_beside(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the flags of the program that wrote the checkpoint, if it left them there."""
    path = epath.Path(checkpoint.path).parent / "flags.json"
    try:
        found = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        raise UserError(f"{path} is not JSON: repair or remove it") from None
    return found if isinstance(found, dict) else {}


def _check_tap(tap: int, model: Model) -> None:
    if tap not in model.taps():
        if not model.head_layers:
            raise UserError(
                f"--tap={tap} is a layer of the projection head, but there is none in this "
                "checkpoint: give --tap=0, or the checkpoint of the run instead of its hub module"
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


def _say(
    workdir: Workdir,
    checkpoint: Checkpoint,
    model: Model,
    attached: Attached,
    config: ConfigDict,
    tree: dict[str, Any],
) -> None:
    say = workdir.console.say
    params = tree["params"]
    step = "it does not say" if checkpoint.step is None else checkpoint.step
    say(f"source     {checkpoint.path} ({FLAVOURS[checkpoint.flavour]}; step: {step})")
    say(f"encoder    {infer.describe(model.architecture)}: h has {model.features} numbers")
    layers = f"{model.head_layers} layer{'s' if model.head_layers > 1 else ''}"
    outputs = f"z has {model.head_dim} numbers"
    say(f"head       {f'{model.head_kind}, {layers}: {outputs}' if model.head_layers else 'none'}")
    say(f"classifier {_classifier(model, attached)}")
    counts = ", ".join(f"{part} {_count(tree, part):,}" for part in params)
    say(f"mapped     {len(model.names)} variables; parameters and statistics: {counts}")
    for reason, names in checkpoint.left_out.items():
        more = ", ..." if len(names) > SHOWN else ""
        say(f"left out   {reason}, {len(names)}: {', '.join(names[:SHOWN])}{more}")
    c = config
    say(
        f"images     {c.data.image_size} pixels in [0, 1], no mean and deviation, grid "
        f"{c.augment.grid}, of {c.data.name or 'a data set of your own'}"
    )
    norms = ", ".join(f"{part} {_norm(params[part]):.6g}" for part in params)
    say(f"norms      of all parameters: {norms}")
    say("check      outputs for the reference image of stages/convert.py:")
    for name, x in _outputs(config, model, attached, tree).items():
        first = " ".join(f"{value:.5f}" for value in x[:4])
        say(f"           {name} has norm {np.linalg.norm(x):.6g} and begins {first}")
    path = workdir.path / "checkpoints" / str(checkpoint.step or 0)
    say(f"written    {path}: start from it by --config.init.run={workdir.path}")


def _classifier(model: Model, attached: Attached) -> str:
    if not model.classes:
        return "none"
    names = {tap: f"layer {tap} of the head" if tap else "h" for tap in model.taps()}
    where = names.pop(attached.tap)
    doubt = f"; by its size it could read {' or '.join(names.values())}: --tap" if names else ""
    return f"{model.classes} classes on {where}{doubt}"


def _outputs(
    config: ConfigDict, model: Model, attached: Attached, tree: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Return what the model makes of the reference image, for comparison with another program."""

    def part(name: str) -> dict[str, Any]:
        return {kind: sections.get(name, {}) for kind, sections in tree.items()}

    @jax.jit
    def outputs(image: jax.Array) -> dict[str, jax.Array]:
        ends: Any = build.encoder(config).apply(part("encoder"), image, train=False)
        h = ends["h"]
        hiddens: Any = build.projection_head(config).apply(part("head"), h, train=False)
        found: dict[str, Any] = {"h": h}
        if model.head_layers:
            found["z"] = hiddens[-1]
        if model.classes:
            classifier: Any = build.classifier(config, model.classes)
            found["logits"] = classifier.apply(part("classifier"), hiddens[attached.tap])
        return {name: value[0] for name, value in found.items()}

    found = jax.device_get(outputs(jnp.asarray(reference_image(attached.image_size))[None]))
    return {name: found[name] for name in ("h", "z", "logits") if name in found}


def _count(tree: dict[str, Any], part: str) -> int:
    sections = [sections.get(part, {}) for sections in tree.values()]
    return sum(leaf.size for leaf in jax.tree.leaves(sections))


def _norm(params: Any) -> float:
    return float(
        np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(params)))
    )
