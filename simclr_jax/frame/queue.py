"""The last rows of earlier batches, kept as negatives or neighbours."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from simclr_jax import parallel
from simclr_jax.losses.nt_xent import NO_IMAGE


@dataclasses.dataclass(frozen=True)
class Queue:
    """Keeps rows, oldest first, the same on every device.

    Its rows are a tree of arrays `[size, ...]`. Integers are numbers of images, `NO_IMAGE` where
    there is none yet.

    Attributes:
      size: rows kept, at least those of a batch.
    """

    size: int

    def empty(self, rows: Any) -> Any:
        """Start with no rows, of the kind of `rows` `[n, ...]`."""

        def start(row: jax.Array) -> jax.Array:
            number = jnp.issubdtype(row.dtype, jnp.integer)
            return jnp.full((self.size, *row.shape[1:]), NO_IMAGE if number else 0, row.dtype)

        return jax.tree.map(start, rows)

    def random(self, rows: jax.Array, key: jax.Array) -> jax.Array:
        """Start with random directions `[size, d]`, of the kind of `rows` `[n, d]` (as MoCo)."""
        drawn = jax.random.normal(key, (self.size, rows.shape[-1]), rows.dtype)
        return drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)

    def push(self, queue: Any, rows: Any) -> Any:
        """Put the rows `[n, ...]` of all devices in place of the oldest."""

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.concatenate([old, parallel.everyone(new)])[-self.size :]

        return jax.tree.map(put, queue, rows)
