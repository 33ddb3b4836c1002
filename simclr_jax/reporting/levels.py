"""What the loss of a run is to be held against: that of who has learned nothing, or everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.declaration import Declaration
from simclr_jax.reporting.curves import Curve

WINDOW = 64  # steps between two lines of metrics of which the chance is looked at


def chances(
    config: Mapping[str, Any],
    recipe: ConfigDict | None,
    method: Declaration | None,
    loss: Curve | None,
    examples: int = 0,
) -> np.ndarray | None:
    """Return the loss of an encoder that has learned nothing for each line of metrics, `[n]`.

    A line has the mean over the steps since the line before. Stages with labels write their chance
    into `config.json`, for their labels decide it.

    Args:
      config: `config.json`.
      recipe: that in it, None where it cannot be used.
      method: of pretraining, None of other stages.
      loss: as it was logged.
      examples: training images, 0 where that is not known.
    """
    if loss is None or not len(loss.steps):
        return None
    value: Any = config.get("chance")
    if method is not None and recipe is not None:
        if method.of_images and not examples:
            return None
        more = (examples,) if method.of_images else ()
        value = method.chance(recipe, *more)
        if method.chance_at is not None and value is not None:
            ends = np.concatenate([[0.0], loss.steps])
            begins = np.minimum(ends[:-1], np.maximum(ends[1:] - 1, 0))
            share = (np.arange(WINDOW) + 0.5) / WINDOW
            steps = np.floor(begins[:, None] + (ends[1:] - begins)[:, None] * share)
            found = method.chance_at(recipe, steps.reshape(-1), *more)
            return found.reshape(steps.shape).mean(axis=1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        return None
    return np.full(len(loss.steps), float(value))


def floor(
    config: Mapping[str, Any],
    recipe: ConfigDict | None,
    method: Declaration | None,
    examples: int = 0,
) -> float | None:
    """Return the loss of who has learned all, None where that is not known; see `chances`."""
    if method is not None:
        if recipe is None or (method.of_images and not examples):
            return None
        return method.floor(recipe, *((examples,) if method.of_images else ()))
    # A student can come no nearer to its teacher than the teacher is sure, which is not known here.
    return None if config.get("stage") == "distill" else 0.0
