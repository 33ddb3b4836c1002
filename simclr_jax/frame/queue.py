"""The last rows of earlier batches, kept as negatives or neighbours.

What the memory of SimCLRv2 and the queue of MoCo share is here: a moving average of the network
embeds one view of each image, its rows replace the oldest ones after the loss has looked at these,
and there is room for a batch at least. They differ in how the queue starts (without rows; with
random ones) and in what a row is (with the number of its image; without). FNC keeps every view of
an image, in turn, and what is left of a batch where there is room for less.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax import parallel
from simclr_jax.errors import UserError
from simclr_jax.frame.net import Net, project
from simclr_jax.losses.nt_xent import NO_IMAGE
from simclr_jax.losses.unit import l2_normalize


@dataclasses.dataclass(frozen=True)
class Queue:
    """Keeps rows, oldest first, the same on every device.

    Its rows are a tree of arrays `[size, ...]`. Integers are numbers of images, `NO_IMAGE` where
    there is none yet. A batch need not divide the size: the oldest rows leave one by one.

    Attributes:
      size: rows kept; of a larger batch, its last rows.
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

    def pushed(self, batch_size: int, steps: np.ndarray) -> np.ndarray:
        """Return how many of the rows batches have put there after so many steps, `[n]`."""
        return np.minimum(self.size, steps * batch_size) if self.size else np.zeros(len(steps))


def check_size(field: str, size: int, batch_size: int | None, or_else: str = "") -> None:
    """Raise `UserError` if a queue cannot hold a batch.

    Args:
      field: of the recipe, that says the size.
      size: rows.
      batch_size: of the recipe; None: not known yet.
      or_else: what else the field may be, such as "0, or ".
    """
    if batch_size is not None and size < batch_size:
        raise UserError(
            f"{field} is {size}, less than one batch: set {or_else}{batch_size} or more"
        )


def rows_of(
    net: Net, view: jax.Array, *, normalize: bool = True, group: jax.Array | None = None
) -> jax.Array:
    """Return what a queue keeps of one view `[n, 1, h, w, c]`: its projections `[n, dim]`.

    Args:
      net: that embeds, such as an average.
      view: of each image.
      normalize: scale rows to length 1.
      group: as in `Net.__call__`.
    """
    z = project(net, view, group=group)[-1][:, 0]
    return l2_normalize(z) if normalize else z
