"""Random draws of a method: the same on any number of devices, after any restart, in any pass."""

from __future__ import annotations

import dataclasses
import zlib

import jax


@dataclasses.dataclass(frozen=True)
class Keys:
    """Makes random keys for one step.

    A draw for a row depends on the seed, the absolute position of its image in the order of all
    examples ever consumed, and what it is for; so neither devices, micro-batches nor restarts
    change it. A draw for a whole batch depends on the seed, the step, and what it is for.

    Attributes:
      seed: of the run.
      step: int32, finished updates.
      position: uint32 `[n, 2]`, of this device's rows (high word, low word); None where there are
        no rows to draw for.
    """

    seed: int
    step: jax.Array
    position: jax.Array | None = None

    def of_rows(self, purpose: str) -> jax.Array:
        """Return a key for each row, `[n]`, for `jax.vmap`."""
        assert self.position is not None, "draws of rows are made in the forward pass"
        start = root(self.seed, f"rows:{purpose}")

        def of_row(position: jax.Array) -> jax.Array:
            return jax.random.fold_in(jax.random.fold_in(start, position[0]), position[1])

        return jax.vmap(of_row)(self.position)

    def of_batch(self, purpose: str) -> jax.Array:
        """Return a key that all devices share."""
        return jax.random.fold_in(root(self.seed, f"batch:{purpose}"), self.step)


def root(seed: int, purpose: str) -> jax.Array:
    """Return the key of all draws of a run for one purpose."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
