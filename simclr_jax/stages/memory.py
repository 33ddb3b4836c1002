"""The momentum memory of SimCLRv2: negatives from earlier batches (arXiv 2006.10029, section 2).

A second network, a moving average of the trained one, embeds one view of every image; its
embeddings of the last `memory.size` images are negatives beside those of the batch (as in MoCo, He
et al. 2019). The official code does not have it; what the paper leaves open is decided here: second
views are kept, the average normalises by statistics of the batch, an empty place is no negative,
and neither is an image its own, which it would be whenever the memory spans the end of an epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.losses.nt_xent import l2_normalize
from simclr_jax.parallel import AXIS
from simclr_jax.train.stage import Extra, Outputs, Params, Stats

EMPTY = -1  # in place of the number of an image

# From parameters, statistics and images to the layers of the head, `[n, d]` each, the projection
# being the last, and moved statistics.
Project = Callable[[Params, Stats, jax.Array], tuple[list[jax.Array], Stats]]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Keeps embeddings, oldest first, and the network that makes them.

    In the state's `extra`: `average`, parameters and statistics of the parts that embed; `queue`,
    embeddings `z` `[size, d]` and `example` int32 `[size]`, the image that each is of.

    Attributes:
      size: embeddings kept.
      momentum: share of the average that an update keeps.
      parts: of the network that embed.
      normalize: whether embeddings are compared by cosine.
    """

    size: int
    momentum: float
    parts: tuple[str, ...]
    normalize: bool

    def first(self, params: Params, batch_stats: Stats, z: jax.Array) -> Extra:
        """Start with the network as it is and an empty queue of rows like those of `z`."""
        queue = {
            "z": jnp.zeros((self.size, z.shape[-1]), z.dtype),
            "example": jnp.full(self.size, EMPTY, jnp.int32),
        }
        return self.averaging({"queue": queue}, params, batch_stats)

    def averaging(self, extra: Extra, params: Params, batch_stats: Stats) -> Extra:
        """Start the average anew, with the network as it is; the queue stays."""
        start = {"params": self._embedding(params), "batch_stats": self._embedding(batch_stats)}
        return extra | {"average": jax.tree.map(jnp.copy, start)}  # no buffer is donated twice

    def embed(
        self, project: Project, extra: Extra, images: jax.Array, example: jax.Array
    ) -> Outputs:
        """Return what one batch, `[n, h, w, c]` on this device, adds to the memory."""
        average = extra["average"]
        hiddens, batch_stats = project(average["params"], average["batch_stats"], images)
        z = hiddens[-1]
        z = l2_normalize(z) if self.normalize else z
        return {"kept": {"z": z, "example": example}, "average_stats": batch_stats}

    def negatives(self, extra: Extra, outputs: Outputs) -> tuple[jax.Array, jax.Array]:
        """Return the embeddings `[size, d]` and which are negatives of each image `[n, size]`."""
        queue, own = extra["queue"], outputs["kept"]["example"]
        negative = (queue["example"] != EMPTY) & (queue["example"] != own[:, None])
        return queue["z"], negative

    def after_update(self, extra: Extra, params: Params, outputs: Outputs) -> Extra:
        """Move the average, and put the batch's embeddings in place of the oldest."""

        def push(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.concatenate([old, _gather(new)])[-self.size :]

        average = jax.tree.map(
            lambda old, new: self.momentum * old + (1 - self.momentum) * new,
            extra["average"]["params"],
            self._embedding(params),
        )
        return {
            "average": {"params": average, "batch_stats": outputs["average_stats"]},
            "queue": jax.tree.map(push, extra["queue"], outputs["kept"]),
        }

    def _embedding(self, tree: dict[str, Any]) -> dict[str, Any]:
        return {part: tree[part] for part in self.parts if part in tree}


def _gather(rows: jax.Array) -> jax.Array:
    """Return the rows `[N, ...]` of all devices, in a way that says that they agree on them."""
    n, devices = rows.shape[0], lax.axis_size(AXIS)
    everyone = jnp.zeros((devices * n, *rows.shape[1:]), rows.dtype)
    everyone = lax.pcast(everyone, AXIS, to="varying")
    own = lax.dynamic_update_slice_in_dim(everyone, rows, lax.axis_index(AXIS) * n, 0)
    return lax.psum(own, AXIS)
