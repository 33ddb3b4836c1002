"""A recipe's step, for images and devices that need not be here."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from simclr_jax import parallel, recipes, validation
from simclr_jax.data import sources
from simclr_jax.data.sources import Images, Opened, Source
from simclr_jax.errors import UserError
from simclr_jax.planning import ahead, program
from simclr_jax.planning.ahead import Compiled
from simclr_jax.planning.any_batch import AnyBatch
from simclr_jax.stages import run
from simclr_jax.stages.inputs import Inputs, describe, images_of
from simclr_jax.stages.prepare import Prepared, prepare
from simclr_jax.train.stage import Stage, TrainState
from simclr_jax.train.step import make_step

# Images, held-out images and classes of data sets that need not be here to be planned for.
KNOWN = {
    "imagenet2012": (1_281_167, 50_000, 1000),
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
}
STAGES = ("pretrain", "finetune")  # a teacher's weights would have to be there


class Described(Images):
    """Images of which nothing but number, size and labels is known."""

    def fingerprint(self) -> str:
        """Return what there is to tell them apart."""
        return f"{len(self)} images that are not here"

    def take(self, rows: np.ndarray) -> Described:
        """Return so many of them."""
        labels = None if self.labels is None else self.labels[rows]
        pixels = np.broadcast_to(self.pixels[:1], (len(rows), *self.pixels.shape[1:]))
        return dataclasses.replace(self, pixels=pixels, labels=labels)


def describe_images(count: int, side: int, classes: int) -> Described:
    """Return so many images of `side` pixels, which take no memory."""
    pixels = np.broadcast_to(np.zeros((1, side, side, 3), np.uint8), (count, side, side, 3))
    labels = np.arange(count, dtype=np.int32) % classes if classes else None
    return Described(pixels, labels, classes)


def splits(config: ConfigDict, images: int, classes: int) -> tuple[Source, Source]:
    """Return the images to plan for, those to learn from and those held out.

    Args:
      config: a recipe.
      images: how many, if they are not here; 0: the recipe's, described if they are well known.
      classes: of such images.
    """
    side = config.data.image_size or 224
    if images:
        return describe_images(images, side, classes), describe_images(1000, side, classes)
    if config.data.source == "tfds" and config.data.name in KNOWN:
        train, test, classes = KNOWN[config.data.name]
        return describe_images(train, side, classes), describe_images(test, side, classes)
    try:
        return sources.open_splits(config.data)
    except UserError as error:
        raise UserError(f"{error}; or plan without the images: give --images=NUMBER") from error


@dataclasses.dataclass(frozen=True)
class Case:
    """A recipe ready to be planned: its images are known, its fields set.

    Attributes:
      config: the recipe.
      prepared: by `stages.prepare.prepare`.
      devices: over which a batch is spread.
    """

    config: ConfigDict
    prepared: Prepared
    devices: int

    @classmethod
    def of(cls, config: ConfigDict, count: int, images: int = 0, classes: int = 0) -> Case:
        """Check a recipe.

        Raises:
          UserError: for whatever a user can put right.
        """
        if config.stage not in STAGES:
            raise UserError(f"stage is {config.stage}: plan knows {' and '.join(STAGES)}")

        def opened(*_: Any) -> Opened:
            train, test = splits(config, images, classes)
            return Opened(train, test, train)

        found = prepare(config, count, open_all=opened, read=lambda *_: [])
        return cls(found.config, found, count)

    @property
    def images(self) -> int:
        """Return the images of a batch on one device."""
        return self.config.train.batch_size // self.devices

    @property
    def waiting(self) -> int:
        """Return how many batches a device holds beside that of the step.

        There are two chunks, one in use and one on its way (`data.batches.device_batches`).
        """
        return 2 * self.config.train.steps_per_call - 1

    @property
    def resident(self) -> jax.ShapeDtypeStruct | None:
        """Return a description of the images that every device keeps, if it keeps all."""
        if not self.config.data.resident:
            return None
        shape, dtype = images_of(self.config, self.prepared.train)["image"]
        return jax.ShapeDtypeStruct((len(self.prepared.train), *shape), dtype)

    def changed(self, **fields: Any) -> Case:
        """Return the case with other fields, their dots written as double underscores."""
        config = recipes.copied(self.config)
        named = {name.replace("__", "."): value for name, value in fields.items()}
        config.update_from_flattened_dict(named)
        validation.validate(config, self.devices)
        return dataclasses.replace(self, config=config)

    def stage(self, mesh: Any) -> Stage:
        """Return the stage over a mesh whose devices need not exist."""
        found = self.prepared
        inputs = Inputs(self.config, found.train, found.test)
        return run.STAGES[self.config.stage](self.config, found.timetable, inputs, mesh)

    @property
    def views(self) -> int:
        """Return how many views of an image pass through the network."""
        return self.stage(parallel.make_mesh(1)).views_per_image

    def state(self) -> TrainState:
        """Return a description of the state."""
        made = jax.eval_shape(self.stage(parallel.make_mesh(1)).init)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), made)

    def batch(self, images: int, mesh: Mesh | AbstractMesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Return a description of the batches of a step, with so many images on a device."""
        return describe(self.config, self.prepared.train, mesh, images * self.devices)

    @property
    def sent(self) -> int:
        """Return the bytes that the host sends to a device for a step."""
        batch = dict(self.batch(self.images, program.abstract_mesh(self.devices)))
        if self.config.data.resident:
            del batch["image"]
        return sum(map(program.nbytes, batch.values())) // self.devices

    def view_flops(self) -> int:
        """Return the operations by which a device makes the views of a step."""
        mesh: Any = program.abstract_mesh(1)
        alone = dataclasses.replace(self, devices=1)
        batch = {
            name: jax.ShapeDtypeStruct(described.shape[1:], described.dtype)
            for name, described in alone.batch(self.images, mesh).items()
        }
        look = jax.make_jaxpr(self.stage(parallel.make_mesh(1)).look)(batch)
        return program.flops(program.flatten(look.jaxpr))

    def at_any_batch(self) -> AnyBatch:
        """Return what one device does, at any batch size."""
        mesh: Any = program.abstract_mesh(self.devices)  # will do, for nothing is run on it
        state, step = self.state(), make_step(self.stage(mesh), mesh)

        def read(images: int) -> program.Program:
            return program.read(step, state, self.batch(images, mesh))

        return AnyBatch.of(read, len(jax.tree.leaves(state)), self.config.train.accumulate)

    def compile(self, device: str, quick: bool = True) -> Compiled:
        """Compile the step for a TPU."""
        mesh = ahead.mesh(device, self.devices)
        state = parallel.describe(mesh, self.state())
        step = make_step(self.stage(mesh), mesh)
        return ahead.compile_step(step, state, self.batch(self.images, mesh), quick=quick)
