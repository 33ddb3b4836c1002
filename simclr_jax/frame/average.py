"""A second network whose parameters are a moving average of the trained ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from simclr_jax.train.stage import Params, Stats

Variables = dict[str, Any]  # params and batch_stats, each by part


@dataclasses.dataclass(frozen=True)
class Average:
    """Renews a moving average after each update; a gradient never reaches it.

    It has batch statistics of its own, which its own passes in train mode move. Those of a part
    through which a step makes no such pass are averaged with its parameters.

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

    def restarted(
        self, average: Variables, variables: Variables, parts: Collection[str]
    ) -> Variables:
        """Start some parts anew, with those of a network; the others stay."""
        new = self.first(variables)
        return {
            kind: {part: new[kind][part] if part in parts else old for part, old in tree.items()}
            for kind, tree in average.items()
        }

    def next(
        self, average: Variables, params: Params, passed: Stats, stats: Stats, step: jax.Array
    ) -> Variables:
        """Return the average after an update.

        Args:
          average: `params` and `batch_stats` before it.
          params: of the network, after the update.
          passed: the average's statistics, of the parts through which a pass has moved them.
          stats: those of the network, after the update.
          step: updates finished before this one.
        """
        momentum = self.momentum(step) if callable(self.momentum) else self.momentum

        def move(old: jax.Array, new: jax.Array) -> jax.Array:
            return (momentum * old + (1 - momentum) * new).astype(old.dtype)

        kept = {part: tree for part, tree in average["batch_stats"].items() if part not in passed}
        towards = {part: stats[part] for part in kept}
        return {
            "params": jax.tree.map(move, average["params"], self._own(params)),
            "batch_stats": {**passed, **jax.tree.map(move, kept, towards)},
        }

    def _own(self, tree: dict[str, Any]) -> dict[str, Any]:
        return {part: tree[part] for part in self.parts if part in tree}
