"""A model of another program as a run like any other, and what is said of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from simclr_jax import recipes
from simclr_jax.frame import modules
from simclr_jax.train.stage import TrainState
from simclr_jax.train.workdir import CONVERTED, open_workdir

NO_DATASET = "none"
SHOWN = 3  # names of each kind of array that is left out


@dataclasses.dataclass(frozen=True)
class Options:
    """What a checkpoint does not say; None: what lies beside it says, or the usual.

    Attributes:
      dataset: of TensorFlow Datasets that it was trained on, or "none"; usually imagenet2012, or
        cifar10 for the CIFAR stem; of PyTorch's weights none.
      image_size: side of its images; usually 224, or 32 for the CIFAR stem.
      tap: layer of the head that its classifier reads; usually 0, which is h.
      prefix: what the names of the wanted encoder begin with, in PyTorch's weights.
      input: what the encoder makes of an image first, a key of `models.inputs.INPUTS`: PyTorch's
        weights usually expect "normalised".
    """

    dataset: str | None = None
    image_size: int | None = None
    tap: int | None = None
    prefix: str | None = None
    input: str | None = None


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A model of another program, known and not yet read.

    Attributes:
      source: file or prefix of files.
      flavour: of the program.
      step: updates that it had seen.
      config: the recipe that describes it.
      known: fields of that recipe that are the model's; others are defaults.
      classes: of its classifier; 0 without one.
      tap: layer of the head that this reads, or None.
      channels: of its images.
      arrays: how many there are.
      about: lines that say what was found.
      read: returns `{params: ..., batch_stats: ...}`.
    """

    source: str
    flavour: str
    step: int
    config: ConfigDict
    known: tuple[str, ...]
    classes: int
    tap: int | None
    channels: int
    arrays: int
    about: Iterable[str]
    read: Callable[[], dict[str, Any]]


def write(foreign: Foreign, workdir: str) -> None:
    """Write a model as a run, and say what it is.

    Raises:
      UserError: if its arrays cannot be read, or the workdir not written.
    """
    record = foreign.config.to_dict() | {
        "images": [],
        "converted": {
            "source": foreign.source,
            "flavour": foreign.flavour,
            "classes": foreign.classes,
            "classifier_tap": foreign.tap,
            "known": list(foreign.known),
        },
    }
    with open_workdir(workdir, record, "auto", keep=1, keep_period=None) as opened:
        say = opened.console.say
        for line in foreign.about:
            say(line)
        tree = foreign.read()
        for line in _numbers(foreign, tree):
            say(line)
        state = TrainState(jnp.int32(foreign.step), tree["params"], tree["batch_stats"], {})
        opened.checkpoints.save(foreign.step, state)
        opened.checkpoints.wait()
        written = opened.path / "checkpoints" / str(foreign.step)
        say(f"written    {written}: start from it by --config.init.run={opened.path}")


def described(dataset: str, image_size: int) -> ConfigDict:
    """Return the recipe of a model that was trained on such images; it is of the stage "convert".

    A checkpoint knows nothing of its training: fields that nobody sets are defaults.
    """
    c = recipes.base()
    c.stage = CONVERTED
    c.data.source, c.data.name = "tfds", dataset
    # Which of the two names for it TFDS has is known once the data set is prepared.
    c.data.eval_split = "validation" if dataset.startswith("imagenet2012") else "test"
    if dataset == NO_DATASET:
        c.data.source, c.data.name = "folder", ""
    c.data.image_size = image_size
    c.eval.probe = False
    return c


def left_out(names: dict[str, list[str]]) -> Iterator[str]:
    """Say which arrays of a file are no part of the model, by what they are."""
    for reason, found in names.items():
        more = ", ..." if len(found) > SHOWN else ""
        yield f"left out   {reason}, {len(found)}: {', '.join(found[:SHOWN])}{more}"


def reference_image(size: int) -> np.ndarray:
    """Return waves of colour, `[size, size, 3]` float32 in [0, 1], to compare outputs on."""
    y, x, c = np.meshgrid(*(np.arange(n) / n for n in (size, size, 3)), indexing="ij")
    waves = np.sin(2 * np.pi * (3 * x + c)) + np.cos(2 * np.pi * (2 * y - c * x))
    return ((waves + 2) / 4).astype(np.float32)


def _numbers(foreign: Foreign, tree: dict[str, Any]) -> Iterator[str]:
    """Say what the weights are, in numbers that another program can be compared on."""
    params = tree["params"]
    counts = ", ".join(f"{part} {_count(tree, part):,}" for part in params)
    yield f"mapped     {foreign.arrays} variables; parameters and statistics: {counts}"
    norms = ", ".join(f"{part} {_norm(params[part]):.6g}" for part in params)
    yield f"norms      of all parameters: {norms}"
    yield "check      outputs for the reference image of interop/written.py:"
    for name, x in _outputs(foreign, tree).items():
        first = " ".join(f"{value:.5f}" for value in x[:4])
        yield f"           {name} has norm {np.linalg.norm(x):.6g} and begins {first}"


def _outputs(foreign: Foreign, tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return what the model makes of the reference image."""
    config = foreign.config

    @jax.jit
    def outputs(tree: dict[str, Any], image: jax.Array) -> dict[str, jax.Array]:
        def part(name: str) -> dict[str, Any]:
            return {kind: sections.get(name, {}) for kind, sections in tree.items()}

        ends: Any = modules.encoder(config).apply(part("encoder"), image, train=False)
        hiddens: Any = modules.projection_head(config).apply(part("head"), ends["h"], train=False)
        found: dict[str, Any] = {"h": ends["h"]}
        if recipes.head_layers(config):
            found["z"] = hiddens[-1]
        if foreign.tap is not None:
            classifier = modules.classifier(config, foreign.classes)
            found["logits"] = classifier.apply(part("classifier"), hiddens[foreign.tap])
        return {name: value[0] for name, value in found.items()}

    image = jnp.asarray(reference_image(config.data.image_size))[None, ..., : foreign.channels]
    with jax.default_matmul_precision("highest"):  # five digits, on accelerators too
        found = jax.device_get(outputs(tree, image))
    return {name: found[name] for name in ("h", "z", "logits") if name in found}


def _count(tree: dict[str, Any], part: str) -> int:
    sections = [sections.get(part, {}) for sections in tree.values()]
    return sum(leaf.size for leaf in jax.tree.leaves(sections))


def _norm(params: Any) -> float:
    squares = (np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(params))
    return float(np.sqrt(sum(squares)))
