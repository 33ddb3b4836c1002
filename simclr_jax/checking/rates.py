"""How fast images arrive, beside how fast a step takes them."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from simclr_jax import fields, processes, validation
from simclr_jax.checking.findings import NOTE, SOUND, Finding
from simclr_jax.errors import UserError
from simclr_jax.planning.program import nbytes
from simclr_jax.stages import pretrain
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.prepare import Prepared, prepare
from simclr_jax.stages.run import STAGES
from simclr_jax.train.stage import Batch, Stage, TrainState
from simclr_jax.train.step import make_step

SECS = 5.0  # that each of the two rates is measured
MANY = 10**6  # steps, so that the batches of a short run do not end
SMALL = 8  # images in a batch on CPUs, where a step of a usual batch takes minutes
USUAL = 512  # in a batch of photographs that are made
SIDES = (375, 500)  # of these, in pixels, as are the usual ones of ImageNet


@dataclasses.dataclass(frozen=True)
class Rates:
    """Images per second, of all devices and processes together, and the batch they are of."""

    arriving: float
    taken: float
    batch: int
    checkpoint: int  # bytes of one


def photographs(place: Path, count: int) -> None:
    """Write JPEGs that take as long to decode as photographs do: blurred noise of many colours."""
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = random.integers(0, 256, (SIDES[0] // 15, SIDES[1] // 15, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize(SIDES[::-1], Image.Resampling.BICUBIC)
        grain = random.normal(0, 8, (*SIDES, 3))
        pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.jpg", quality=92)


def made(config: ConfigDict, place: Path, mesh: Mesh) -> ConfigDict:
    """Return the recipe of a folder for photographs that are made in `place`, of a usual size."""
    c = config.copy_and_resolve_references()
    cpus = mesh.devices.flat[0].platform == "cpu"
    each = max(1, -(-(SMALL if cpus else USUAL) // mesh.size))
    with c.unlocked():
        c.data.path, c.train.batch_size = os.fspath(place), mesh.size * each
        c.data.image_size = 32 if cpus else 224
        if cpus:  # whose compiler takes a minute for the usual network
            c.model.depth, c.model.width, c.model.stem = 10, 1 / 4, "cifar"
    photographs(place, max(64, 5 * c.train.batch_size // 4))
    return c


def shrunk(ready: Prepared, mesh: Mesh) -> tuple[Prepared, str]:
    """Return what is prepared, with a batch that CPUs take in seconds where devices are CPUs.

    And why it has its own batch there, where the recipe allows no such one; "" otherwise.
    """
    c = ready.config
    least = mesh.size * max(1, -(-SMALL // mesh.size))
    whole = c.bn.groups <= 1 and c.train.accumulate == 1
    if mesh.devices.flat[0].platform != "cpu" or not whole or c.train.batch_size <= least:
        return ready, ""
    c = c.copy_and_resolve_references()
    with c.unlocked():
        c.train.batch_size = least
    timetable = dataclasses.replace(ready.timetable, batch_size=least)
    try:
        validation.validate(c, mesh.size)
        if c.stage not in fields.LABELLED:
            pretrain.check(c, timetable, ready.train)
    except UserError as error:
        return ready, str(error)
    return dataclasses.replace(ready, config=c, timetable=timetable), ""


def opened(config: ConfigDict, mesh: Mesh) -> tuple[Prepared, str]:
    """Open the images of a recipe and check it, as a run does before it begins; see `shrunk`.

    Raises:
      UserError: for what is wrong with recipe or images.
    """
    return shrunk(prepare(config, mesh.size), mesh)


def measure(ready: Prepared, mesh: Mesh, secs: float, during: Callable) -> Rates:
    """Measure a recipe: its images alone, and its step alone.

    Args:
      ready: a recipe and its images.
      mesh: all devices.
      secs: that each is measured.
      during: makes the signs of life of what takes long, see `alive.during`.
    """
    with during("building the network"):
        inputs = Inputs(ready.config, ready.train, ready.test)
        stage = STAGES[ready.config.stage](ready.config, ready.timetable, inputs, mesh)
    with during("reading images"):
        arriving = sum(processes.everyone(_arriving(stage, ready, secs)))
        batch = next(stage.batches(0, MANY))[1]
    with during("compiling and running the step"):
        taken, size = _taken(stage, ready, mesh, batch, secs)
    return Rates(arriving, taken, ready.timetable.batch_size, size)


def _arriving(stage: Stage, ready: Prepared, secs: float) -> float:
    """Return the images per second of this process, after the first chunk."""
    chunks: Iterator = stage.batches(0, MANY)
    own = ready.timetable.batch_size / processes.count()
    jax.block_until_ready(next(chunks)[1])
    start, images = time.perf_counter(), 0.0
    while not images or time.perf_counter() - start < secs:
        steps, batch = next(chunks)
        jax.block_until_ready(batch)
        images += own * len(steps)
    found = images / max(time.perf_counter() - start, 1e-9)
    close = getattr(chunks, "close", None)
    if close is not None:
        close()
    return found


def _taken(
    stage: Stage, ready: Prepared, mesh: Mesh, batch: Batch, secs: float
) -> tuple[float, int]:
    """Return the images per second that the step takes, and the bytes of a state."""
    step, state = make_step(stage, mesh), stage.init()
    size = sum(map(nbytes, jax.tree.leaves(state)))
    in_chunk = jax.tree.leaves(batch)[0].shape[0] * ready.timetable.batch_size
    state = _after(step, state, batch, stage)  # which compiles it
    start, images = time.perf_counter(), 0
    while not images or processes.on_first(lambda: time.perf_counter() - start < secs):
        state = _after(step, state, batch, stage)
        images += in_chunk
    return images / max(time.perf_counter() - start, 1e-9), size


def _after(step: Callable, state: TrainState, batch: Batch, stage: Stage) -> TrainState:
    state, _ = step(state, batch, stage.frozen)
    return jax.block_until_ready(state)


def compared(rates: Rates, config: ConfigDict, what: str, cpus: bool) -> Finding:
    """Return whether the images arrive as fast as the step takes them, and what to change."""
    said = (
        f"{what} arrive at {rates.arriving:.0f} images/s, a step of {rates.batch} takes "
        f"{rates.taken:.0f} images/s"
    )
    if cpus:
        said += " (on CPUs, which both have to share)"
    if rates.arriving >= rates.taken:
        return Finding(SOUND, "input", said)
    threads = config.data.threads or len(os.sched_getaffinity(0))
    said += f": devices wait for {1 - rates.arriving / rates.taken:.0%} of the time"
    advice = f"decode on more than {threads} cores"
    if config.data.source != "packed":
        advice += ", or store the images shrunk by `simclr pack` (docs/packing.md)"
    if config.augment.placement == "host":
        advice = "set --config.augment.placement=canvas, or split; or " + advice
    return Finding(NOTE, "input", said, advice)
