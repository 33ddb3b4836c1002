"""Where images come from: random access to pixels by index, and labels if there are any."""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from simclr_jax.data.sources import digits, memory
from simclr_jax.data.sources.memory import Images

# Each opener takes `config.data` and a split's name and raises `UserError` for an unknown split.
OPENERS: dict[str, Callable[[ConfigDict, str], Images]] = {
    "digits": digits.open_split,
    "memory": memory.open_split,
}


def open_split(data: ConfigDict, split: str) -> Images:
    """Open one split of the source that a recipe names."""
    return OPENERS[data.source](data, split)
