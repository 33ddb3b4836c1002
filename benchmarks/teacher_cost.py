"""What a teacher costs a step of distillation, and that it runs forward once.

    python benchmarks/teacher_cost.py --teachers=runs/a,runs/b --steps=20

For each teacher, a student of the recipe (by default the teacher's own model, `configs/distill.py`)
takes steps with it and, in turn, steps of fine-tuning without any, on the same images. Convolutions
are counted in the lowered step: those of a teacher are as many as in one forward pass of it.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, cast

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from simclr_jax import entry, errors, parallel, recipes
from simclr_jax.stages import run
from simclr_jax.stages.encoder import embedder
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.prepare import prepare
from simclr_jax.tables import table
from simclr_jax.train import saved
from simclr_jax.train.step import make_step

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", "configs/distill.py", "Recipe of the student.")
flags.DEFINE_list("teachers", [], "Runs with a classifier.")
flags.DEFINE_integer("steps", 20, "Steps to time, after two that are not counted.", lower_bound=1)
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

WARM_UP = 2
CONVOLUTION = "stablehlo.convolution"


def main() -> None:
    """Time a student with each teacher, and print the cost beside its size."""
    if not FLAGS.teachers:
        raise errors.UserError("no teacher: give --teachers=RUN")
    parallel.use_compilation_cache()
    rows = [_row(teacher) for teacher in FLAGS.teachers]
    header = ("teacher", "parameters", "convolutions", "in one forward", "added", "time of a step")
    print(table(header, rows))


def _row(teacher: str) -> tuple[str, ...]:
    config = FLAGS.config.copy_and_resolve_references()
    config.distill.teacher = teacher
    taught = _Student(config)
    alone = taught.config.copy_and_resolve_references()
    alone.stage, alone.distill = "finetune", recipes.base().distill
    without = _Student(alone)
    for _ in range(FLAGS.steps + WARM_UP):
        taught.step_once()
        without.step_once()
    convolutions = (taught.convolutions, without.convolutions)
    ratio = taught.median / without.median
    read = saved.read(teacher)
    size = sum(x.size for name, x in read.leaves.items() if name.startswith("params/encoder/"))
    cells = (f"{size:,}", f"{convolutions[0]}", f"{_forward(read, taught)}")
    return (teacher, *cells, f"{convolutions[0] - convolutions[1]}", f"x {ratio:.2f}")


def _forward(read: saved.Saved, taught: _Student) -> int:
    """Count the convolutions of one forward pass of the teacher's encoder."""
    side = taught.config.data.image_size
    images = jax.ShapeDtypeStruct((1, side, side, taught.channels), "float32")
    embed = jax.jit(embedder(read.config, ("h",)))
    return embed.lower(taught.teacher, images).as_text().count(CONVOLUTION)


class _Student:
    """A stage, its compiled step, and how long steps take."""

    def __init__(self, config: ConfigDict):
        mesh = parallel.make_mesh()
        ready = prepare(config, mesh.size)
        self.config, self.channels = ready.config, ready.train.channels
        inputs = Inputs(ready.config, ready.train, ready.test)
        stage = run.STAGES[ready.config.stage](ready.config, ready.timetable, inputs, mesh)
        self._batches = stage.batches(0, FLAGS.steps + WARM_UP)
        self._frozen, self._state = stage.frozen, stage.init()
        self.teacher = stage.frozen.get("teacher")
        self._step = cast(Any, make_step(stage, mesh))  # compiled: it can be lowered
        batch = next(stage.batches(0, 1))[1]
        lowered = self._step.lower(self._state, batch, self._frozen)
        self.convolutions = lowered.as_text().count(CONVOLUTION)
        self._seconds: list[float] = []

    def step_once(self) -> None:
        _, batch = jax.block_until_ready(next(self._batches))
        start = time.perf_counter()
        self._state, _ = jax.block_until_ready(self._step(self._state, batch, self._frozen))
        self._seconds.append(time.perf_counter() - start)

    @property
    def median(self) -> float:
        return statistics.median(self._seconds[WARM_UP:])


if __name__ == "__main__":
    entry.run(main)
