"""A second network whose parameters are a moving average of the trained ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from simclr_jax.train.stage import Params, Stats

Variables = dict[str, Any]  # params and batch_stats, each by part


@dataclasses.dataclass(frozen=True)
class Average:
    """Renews a moving average after each update; a gradient never reaches it.

    It has batch statistics of its own, which its own forward passes move (`Net.over`). Where a step
    makes no such pass they are averaged with the parameters.

    Attributes:
      parts: of the network that are averaged.
      momentum: share of the old average that an update keeps, or a function from the number of
        updates finished before this one, int32, to it.
      other_start: start from other random values than the network (as BYOL), not from a copy.
    """

    parts: tuple[str, ...]
    momentum: float | Callable[[jax.Array], jax.Array]
    other_start: bool = False

    def first(self, variables: Variables) -> Variables:
        """Start with a copy of a network; no buffer is donated twice."""
        return {kind: jax.tree.map(jnp.copy, self._own(tree)) for kind, tree in variables.items()}

    def next(
        self, average: Variables, params: Params, own_stats: Stats, stats: Stats, step: jax.Array
    ) -> Variables:
        """Return the average after an update.

        Args:
          average: `params` and `batch_stats` before it.
          params: of the network, after the update.
          own_stats: the average's statistics, as its own passes moved them; empty if it made none.
          stats: those of the network, after the update.
          step: updates finished before this one.
        """
        momentum = self.momentum(step) if callable(self.momentum) else self.momentum

        def move(old: jax.Array, new: jax.Array) -> jax.Array:
            return (momentum * old + (1 - momentum) * new).astype(old.dtype)

        moved = jax.tree.map(move, average["params"], self._own(params))
        if not own_stats:
            own_stats = jax.tree.map(move, average["batch_stats"], self._own(stats))
        return {"params": moved, "batch_stats": average["batch_stats"] | own_stats}

    def _own(self, tree: dict[str, Any]) -> dict[str, Any]:
        return {part: tree[part] for part in self.parts if part in tree}
