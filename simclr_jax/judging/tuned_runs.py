"""The runs of a sweep of fine-tuning: their recipe, and the images of each.

The protocol is that of Chen et al. (2020), appendix B.8.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from simclr_jax import recipes
from simclr_jax.data import order
from simclr_jax.data.sources import Opened, Source
from simclr_jax.data.sources.together import Together
from simclr_jax.judging.datasets import Data
from simclr_jax.judging.transfer import Target

RATES = tuple(float(f"{rate:.4g}") for rate in np.logspace(-4, -1, 7))
DECAYS = (0.0, *(float(f"{decay:.4g}") for decay in np.logspace(-6, -3, 7)))
STEPS, BATCH = 20_000, 256
FIFTH = 5  # of the training images: to choose on, where a data set has no images for it
PART_OF = f"1/{FIFTH} of "


@dataclasses.dataclass(frozen=True)
class Grid:
    """What is tried, and how long each run is.

    Attributes:
      rates: peak learning rates.
      decays: weight decays, each to be divided by the rate, as in the paper.
      steps: of every run.
      batch: images in a step; fewer where a data set has not so many.
    """

    rates: tuple[float, ...] = RATES
    decays: tuple[float, ...] = DECAYS
    steps: int = STEPS
    batch: int = BATCH

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Return all rates and decays."""
        return list(itertools.product(self.rates, self.decays))


PAPER = Grid()


def both(data: Data) -> Together:
    """Return the images to learn from and those to choose on, which the final run learns from."""
    assert data.choose is not None
    splits = data.splits["fit"], data.splits["choose"].removeprefix(PART_OF)
    return Together((data.fit, data.choose), splits=splits)


def divided(data: Data, seed: int) -> Data:
    """Return data with images to choose on: of those to learn from, if there are no other."""
    if data.choose is not None:
        return data
    count = len(data.fit)
    rows = order.examples(seed, np.arange(count), count)
    held = max(1, count // FIFTH)
    splits = data.splits | {"choose": f"{PART_OF}{data.splits['fit']}"}
    fit, chosen = (data.fit.take(np.sort(part)) for part in (rows[held:], rows[:held]))
    return dataclasses.replace(data, fit=fit, choose=chosen, splits=splits)


def opener(train: Source, test: Source) -> Callable[..., Opened]:
    """Return what gives a run these images, whatever its recipe names."""

    def open_all(*_: Any, **__: Any) -> Opened:
        return Opened(train, test, train)

    return open_all


def recipe(
    run: str,
    there: ConfigDict,
    target: Target,
    grid: Grid,
    seed: int,
    max_bad_fraction: float | None,
    rate: float,
    decay: float,
    final: bool,
) -> ConfigDict:
    """Return the recipe of a run.

    Args:
      run: that is fine-tuned, `WORKDIR@STEP`, and its recipe.
      there: its recipe.
      target, grid, seed, max_bad_fraction: see `Sweep` and `transfer.run`.
      rate, decay: of the grid.
      final: whether it is the run that is scored on test images.
    """
    data = target.data
    images = len(both(data)) if final else len(data.fit)
    devices = jax.device_count()
    batch = min(grid.batch, images - images % devices)
    c = recipes.base()
    c.stage, c.seed = "finetune", seed
    recipes.inherit_all(c)
    recipes.usual_crop_and_flip(c)  # not those that the run was trained by, which may be none
    c.init.run, c.init.parts = run, "encoder"
    with c.unlocked():
        c.data.update(target.recipe.to_dict() if target.recipe is not None else {})
        c.data.image_size = there.data.image_size
        c.data.white_level = there.data.white_level
        usual = recipes.base().data  # of the data of a run, how it reads them is not for others
        c.data.order, c.data.resident = usual.order, usual.resident
    if max_bad_fraction is not None:
        c.data.max_bad_fraction = max_bad_fraction
    # Images of these data sets have many sizes, and there may be more than fit in memory.
    if there.augment.placement == "device":
        c.augment.placement = "split" if there.augment.grid == "opencv" else "canvas"
    c.bn.momentum = max(1 - 10 / (images / batch), 0.9)
    c.optim.name, c.optim.base_lr, c.optim.lr_scaling = "sgd", rate, "none"
    c.optim.momentum, c.optim.nesterov = 0.9, True
    c.optim.weight_decay, c.optim.warmup_epochs = decay / rate, 0.0
    c.train.batch_size, c.train.steps, c.train.dtype = batch, grid.steps, there.train.dtype
    c.eval.probe, c.eval.knn = False, False
    c.eval.every_epochs = 2.0 * grid.steps * batch / images  # at the end alone
    c.log.every_steps = max(1, min(100, grid.steps // 10))
    c.checkpoint.every_steps, c.checkpoint.keep = 1000, 1
    return c
