"""From a checkpoint of the official programs to a run like any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import documents, files, recipes
from simclr_jax.data.sources import tfds
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.interop import infer, official_names
from simclr_jax.interop.infer import Model
from simclr_jax.interop.tensorflow_files import Checkpoint, beside, open_checkpoint
from simclr_jax.train.stage import TrainState
from simclr_jax.train.workdir import CONVERTED, open_workdir, started

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
class Resolved:
    """`Options` for one checkpoint; `tap` is None where there is no classifier."""

    dataset: str
    image_size: int
    tap: int | None


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
    workdir = files.expand_home(workdir)
    if started(workdir):
        raise UserError(f"{workdir} holds a run already: give another --workdir")
    checkpoint = open_checkpoint(source)
    model = infer.infer(checkpoint)
    resolved = _resolve(options, checkpoint, model)
    config, step = recipe(checkpoint.flavour, model, resolved), checkpoint.step or 0
    record = config.to_dict() | {
        "images": [],
        "converted": {
            "source": checkpoint.path,
            "flavour": checkpoint.flavour,
            "classes": model.classes,
            "classifier_tap": resolved.tap,
            "known": ["model", "head", "data.name", "data.image_size", "augment.grid"],
        },
    }
    with open_workdir(workdir, record, "auto", keep=1, keep_period=None) as opened:
        say = opened.console.say
        for line in _about(checkpoint, model, resolved, config):
            say(line)
        tree = _tree(checkpoint, model)
        for line in _numbers(config, model, resolved, tree):
            say(line)
        state = TrainState(jnp.int32(step), tree["params"], tree["batch_stats"], {})
        opened.checkpoints.save(step, state)
        opened.checkpoints.wait()
        written = opened.path / "checkpoints" / str(step)
        say(f"written    {written}: start from it by --config.init.run={opened.path}")


def recipe(flavour: str, model: Model, resolved: Resolved) -> ConfigDict:
    """Return the recipe that describes a converted model; it is of the stage "convert".

    A checkpoint knows nothing of its training: other fields than those of model, head, images and
    grid are defaults.
    """
    c = recipes.base()
    c.stage = CONVERTED
    c.data.source, c.data.name = "tfds", resolved.dataset
    # Which of the two names for it TFDS has is known once the data set is prepared.
    c.data.eval_split = "validation" if resolved.dataset.startswith("imagenet2012") else "test"
    if resolved.dataset == NO_DATASET:
        c.data.source, c.data.name = "folder", ""
    c.data.image_size = resolved.image_size
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
    for reason, names in checkpoint.left_out.items():
        more = ", ..." if len(names) > SHOWN else ""
        yield f"left out   {reason}, {len(names)}: {', '.join(names[:SHOWN])}{more}"
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


def _numbers(
    config: ConfigDict, model: Model, resolved: Resolved, tree: dict[str, Any]
) -> Iterator[str]:
    """Say what the weights are, in numbers that another program can be compared on."""
    params = tree["params"]
    counts = ", ".join(f"{part} {_count(tree, part):,}" for part in params)
    yield f"mapped     {len(model.names)} variables; parameters and statistics: {counts}"
    norms = ", ".join(f"{part} {_norm(params[part]):.6g}" for part in params)
    yield f"norms      of all parameters: {norms}"
    yield "check      outputs for the reference image of interop/convert.py:"
    for name, x in _outputs(config, model, resolved, tree).items():
        first = " ".join(f"{value:.5f}" for value in x[:4])
        yield f"           {name} has norm {np.linalg.norm(x):.6g} and begins {first}"


def _outputs(
    config: ConfigDict, model: Model, resolved: Resolved, tree: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Return what the model makes of the reference image."""

    @jax.jit
    def outputs(tree: dict[str, Any], image: jax.Array) -> dict[str, jax.Array]:
        def part(name: str) -> dict[str, Any]:
            return {kind: sections.get(name, {}) for kind, sections in tree.items()}

        ends: Any = modules.encoder(config).apply(part("encoder"), image, train=False)
        hiddens: Any = modules.projection_head(config).apply(part("head"), ends["h"], train=False)
        found: dict[str, Any] = {"h": ends["h"]}
        if model.head_layers:
            found["z"] = hiddens[-1]
        if resolved.tap is not None:
            classifier = modules.classifier(config, model.classes)
            found["logits"] = classifier.apply(part("classifier"), hiddens[resolved.tap])
        return {name: value[0] for name, value in found.items()}

    image = jnp.asarray(reference_image(resolved.image_size))[None]
    with jax.default_matmul_precision("highest"):  # five digits, on accelerators too
        found = jax.device_get(outputs(tree, image))
    return {name: found[name] for name in ("h", "z", "logits") if name in found}


def _count(tree: dict[str, Any], part: str) -> int:
    sections = [sections.get(part, {}) for sections in tree.values()]
    return sum(leaf.size for leaf in jax.tree.leaves(sections))


def _norm(params: Any) -> float:
    squares = (np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(params))
    return float(np.sqrt(sum(squares)))
