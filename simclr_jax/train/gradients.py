"""The gradient of a batch: of all its images at once, or exactly that from one part after another.

What a batch takes in memory is what its forward pass keeps for the backward pass. In parts, the
network is passed through once for the outputs of all images, of which the loss of the whole batch
is taken; then once more, part by part, to pull the gradient of the loss back to the parameters. So
each image is contrasted with the whole batch, as it is not where gradients of small batches are
averaged (GradCache, arXiv 2101.06983). Statistics of batch normalisation are those of groups of
images that one part holds, which `bn.groups` makes the same groups without parts.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.parallel import AXIS
from simclr_jax.train.stage import (
    Batch,
    Extra,
    Metrics,
    Outputs,
    Params,
    Stage,
    Stats,
    TrainState,
    joined,
)


class Pass(NamedTuple):
    """What all passes of a step over a batch leave on a device.

    Attributes:
      gradients: of this device's share of the loss, like the parameters.
      metrics: shares.
      batch_stats: after the passes that are differentiated.
      watched: the statistics that `Stage.watch` returned.
      outputs: of all passes, this device's rows.
    """

    gradients: Params
    metrics: Metrics
    batch_stats: Stats
    watched: Any
    outputs: Outputs


def at_once(stage: Stage, params: Params, state: TrainState, extra: Extra, batch: Batch) -> Pass:
    """Pass all images of a device through the network at once.

    Args:
      stage: what is trained.
      params: those of the state, as this device's own.
      state: before the update.
      extra: that of the state and what is frozen.
      batch: this device's images, `[n, ...]`, with `row`.
    """
    seen, watched = stage.watch(extra, batch, state.step)

    def loss_fn(params: Params):
        made, batch_stats = stage.forward(params, state.batch_stats, extra, batch, state.step)
        outputs = joined(made, seen)
        loss, metrics = stage.objective(outputs, extra, state.step, AXIS)
        return loss, (batch_stats, metrics, outputs)

    gradients, (batch_stats, metrics, outputs) = jax.grad(loss_fn, has_aux=True)(params)
    return Pass(gradients, metrics, batch_stats, watched, outputs)


def in_parts(
    stage: Stage,
    params: Params,
    state: TrainState,
    extra: Extra,
    batch: Batch,
    unroll: bool = False,
) -> Pass:
    """Pass `stage.parts` parts of a device's images through the network, one after the other.

    Part k has the images whose place in the global batch is k modulo `stage.parts`. Takes and
    returns what `at_once` does, and equals it up to rounding. The first pass and the second see the
    same statistics and make the same draws; averages of statistics are the mean over parts, each of
    which starts from those before the step.

    Args:
      stage, params, state, extra, batch: as in `at_once`; a device's images are a multiple of
        `stage.parts`.
      unroll: write the parts out one by one, where loops are slow.

    Raises:
      ValueError: if outputs of the network are not arrays with a row for each image.
    """
    parts = _cut(batch | {"row": batch["row"] // stage.parts}, stage.parts)

    def forward(params: Params, part: Batch) -> tuple[Outputs, Stats]:
        return stage.forward(params, state.batch_stats, extra, part, state.step)

    def look(_: None, part: Batch):
        return None, (forward(params, part), stage.watch(extra, part, state.step))

    _, ((made, stats), (seen, watched)) = lax.scan(look, None, parts, unroll=unroll)
    rows = len(batch["row"])
    made, seen = _whole(made, rows), _whole(seen, rows)
    batch_stats, watched = jax.tree.map(lambda x: jnp.mean(x, 0), (stats, watched))

    leaves, structure = jax.tree.flatten(made)
    floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    outputs = joined(made, seen)

    def loss_fn(moving: list[jax.Array]):
        mixed = list(leaves)
        for i, leaf in zip(floats, moving, strict=True):
            mixed[i] = leaf
        all_outputs = joined(jax.tree.unflatten(structure, mixed), seen)
        return stage.objective(all_outputs, extra, state.step, AXIS)

    slopes, metrics = jax.grad(loss_fn, has_aux=True)([leaves[i] for i in floats])

    def pull(total: Params, given: tuple[Batch, list[jax.Array]]):
        part, slopes = given

        def again(params: Params) -> list[jax.Array]:
            made = jax.tree.leaves(forward(params, part)[0])
            return [made[i] for i in floats]

        (gradients,) = jax.vjp(again, params)[1](slopes)
        return jax.tree.map(jnp.add, total, gradients), None

    nothing = jax.tree.map(jnp.zeros_like, params)
    gradients, _ = lax.scan(pull, nothing, (parts, _cut(slopes, stage.parts)), unroll=unroll)
    return Pass(gradients, metrics, batch_stats, watched, outputs)


def _cut(rows: Any, parts: int) -> Any:
    """Return arrays `[parts, n / parts, ...]` of `[n, ...]`: row i is in part i modulo `parts`."""
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(len(x) // parts, parts, *x.shape[1:]), 0, 1), rows
    )


def _whole(parts: Any, rows: int) -> Any:
    """Return arrays `[rows, ...]` of what `_cut` makes of them."""

    def whole(path: Any, x: jax.Array) -> jax.Array:
        if x.shape[0] * math.prod(x.shape[1:2]) != rows or x.ndim < 2:
            raise ValueError(
                f"the output {jax.tree_util.keystr(path)} of a part is {x.shape[1:]}: to join it "
                f"with those of other parts it must have a row for each of {rows // len(x)} images"
            )
        return jnp.swapaxes(x, 0, 1).reshape(rows, *x.shape[2:])

    return jax.tree_util.tree_map_with_path(whole, parts)
