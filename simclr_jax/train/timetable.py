"""A run in numbers: how many steps, and at which of them something is due."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from simclr_jax import fields
from simclr_jax.errors import UserError
from simclr_jax.optim import schedules
from simclr_jax.segments import Segment


@dataclasses.dataclass(frozen=True)
class Timetable:
    """What a recipe and the size of its data set come to.

    Intervals are in steps and multiples of `steps_per_call`, the unit in which the loop moves.
    `warmup_steps`, `peak_rate`, `cosine_epochs` and `drops` are of the run as its recipe plans it;
    `segments` have their own.
    """

    examples: int
    batch_size: int
    total_steps: int
    warmup_steps: int
    peak_rate: float
    steps_per_call: int
    log_every: int
    evaluate_every: int  # 0: only at the end
    save_every: int
    cosine_epochs: tuple[float, float] | None = None  # where a rate by the epoch falls: from, to
    drops: tuple[int, ...] = ()  # steps at which the rate drops, in place of a cosine
    drop_factor: float = 0.1
    segments: tuple[Segment, ...] = ()  # by which it was extended

    @property
    def planned_steps(self) -> int:
        """How many steps the recipe alone says."""
        return self.segments[0].first_step if self.segments else self.total_steps

    @property
    def borders(self) -> tuple[int, ...]:
        """Where one segment ends and the next begins: steps finished then."""
        return tuple(segment.first_step for segment in self.segments)

    def at_end(self, done: int) -> bool:
        """Tell whether the run, or a segment of it, ends after so many steps."""
        return done == self.total_steps or done in self.borders

    def segment(self, done: int) -> int:
        """Return the number of the segment that made the last of so many steps, 0 of the plan."""
        return sum(border < done for border in self.borders)

    @property
    def epochs(self) -> float:
        """How often the run sees each example."""
        return self.total_steps * self.batch_size / self.examples

    @property
    def epoch_starts(self) -> np.ndarray:
        """Return the first step of each epoch whose first image the run sees, int64."""
        epochs = np.arange(-(-self.total_steps * self.batch_size // self.examples))
        return -(-epochs * self.examples // self.batch_size)

    def new_epoch(self, steps: range) -> int | None:
        """Return the epoch in which a chunk begins, if the chunk before began in another."""
        cuts = [step for step in self.borders if step < steps[0]]
        start = max([(steps[0] - 1) // self.steps_per_call * self.steps_per_call, *cuts])
        epoch = steps[0] * self.batch_size // self.examples
        return epoch if epoch > start * self.batch_size // self.examples else None


def make(config: ConfigDict, examples: int, segments: Sequence[Segment] = ()) -> Timetable:
    """Work out the timetable of a recipe for a data set of `examples` images.

    `segments` are those by which the run was extended.

    Raises:
      UserError: if the batch is larger than the data set, the run over before the warm-up or a
        drop of the rate, or the segments do not begin where it ends.
    """
    c, batch = config, config.train.batch_size
    if batch > examples:
        raise UserError(
            f"train.batch_size is {batch}, more than the {examples} images: an image would stand "
            f"in a batch twice; set --config.train.batch_size={_fitting(examples)}"
        )
    total = c.train.steps or schedules.total_steps(c.train.epochs, examples, batch)
    warmup = schedules.warmup_steps(c.optim.warmup_epochs, examples, batch)
    if warmup >= total:
        raise UserError(
            f"optim.warmup_epochs={c.optim.warmup_epochs:g} is {warmup} steps, longer than the "
            f"whole run of {total}: shorten it or train for more epochs"
        )
    if segments and segments[0].first_step != total:
        raise UserError(
            f"the run was extended at step {segments[0].first_step}, but {examples} images and "
            f"this recipe make {total} steps: put back its images and its config.json"
        )
    per_call = c.train.steps_per_call
    every = c.eval.every_epochs * examples / batch / per_call
    return Timetable(
        examples=examples,
        batch_size=batch,
        total_steps=segments[-1].total_steps if segments else total,
        warmup_steps=warmup,
        peak_rate=schedules.peak_rate(c.optim.base_lr, c.optim.lr_scaling, batch),
        steps_per_call=per_call,
        log_every=c.log.every_steps,
        evaluate_every=max(1, round(every)) * per_call if every else 0,
        save_every=c.checkpoint.every_steps,
        cosine_epochs=_cosine_epochs(c, total * batch / examples),
        drops=_drops(c, examples, total),
        drop_factor=c.optim.drop_factor,
        segments=tuple(segments),
    )


def _drops(config: ConfigDict, examples: int, total: int) -> tuple[int, ...]:
    """Return the steps at which the rate drops: the first that begin at those epochs or later."""
    epochs, batch = fields.drop_epochs(config), config.train.batch_size
    steps = tuple(math.ceil(epoch * examples / batch) for epoch in epochs)
    if steps and steps[-1] >= total:
        raise UserError(
            f"optim.drops has epoch {epochs[-1]:g}, but the run of {total} steps is over after "
            f"{total * batch / examples:.4g}: name earlier ones, or train for more epochs"
        )
    return steps


def _cosine_epochs(config: ConfigDict, seen: float) -> tuple[float, float] | None:
    """Return the epochs between which a rate by the epoch falls; `seen` are those of the run."""
    if config.optim.rate_per == "step":
        return None
    return config.optim.warmup_epochs, seen if config.train.steps else config.train.epochs


def _fitting(examples: int) -> int:
    """Return a batch size for a data set: a multiple of eight devices if it is large enough."""
    return examples // 8 * 8 or max(2, examples)


def due(step: int, every: int) -> bool:
    """Is something that happens `every` so many steps (0: never) due after `step` of them?"""
    return every > 0 and step % every == 0
