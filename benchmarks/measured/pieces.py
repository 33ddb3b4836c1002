"""Views alone and the loss alone, to be timed beside the step that they are part of.

A compiler may overlap or fuse what it sees together, so these are not exact shares of a step; they
say where it is worth looking.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from simclr_jax.parallel import AXIS
from simclr_jax.train.stage import Stage, TrainState, joined

Call = Callable[[], Any]


def views(stage: Stage, batches: dict[str, jax.Array]) -> Call:
    """Return a call that makes the views of a batch from what the placement sends.

    Args:
      stage: makes them.
      batches: `[steps, N, ...]`, of which the first is taken.
    """
    batch = {name: values[0] for name, values in batches.items()}
    look = jax.jit(stage.look)
    return lambda: look(batch)


def loss(stage: Stage, mesh: Mesh, state: TrainState, batches: dict[str, jax.Array]) -> Call:
    """Return a call that takes the objective of random outputs and its gradient by them.

    It is all that follows the network: gathers over devices, the loss with its metrics, the probe's
    loss.

    Args:
      stage: has the objective.
      mesh: the devices.
      state: of the stage.
      batches: `[steps, N, ...]`.
    """
    extra, step = joined(state.extra, stage.frozen), state.step

    def outputs(params: Any, stats: Any, batch: dict[str, jax.Array]) -> Any:
        n = len(batch["example"])
        batch = batch | {"row": jax.lax.axis_index(AXIS) * n + jnp.arange(n, dtype=jnp.int32)}
        made = stage.forward(params, stats, extra, batch, step)[0]
        return joined(made, stage.watch(extra, batch, step)[0])

    of_mesh = jax.shard_map(outputs, mesh=mesh, in_specs=(P(), P(), P(AXIS)), out_specs=P(AXIS))
    batch = {name: values[0] for name, values in batches.items()}
    shapes = jax.eval_shape(of_mesh, state.params, state.batch_stats, batch)
    sharding = NamedSharding(mesh, P(AXIS))

    def random(like: jax.ShapeDtypeStruct) -> jax.Array:
        if not jnp.issubdtype(like.dtype, jnp.inexact):
            return jax.device_put(jnp.zeros(like.shape, like.dtype), sharding)
        made = jax.random.normal(jax.random.key(0), like.shape, like.dtype)
        return jax.device_put(made, sharding)

    leaves, structure = jax.tree.flatten(jax.tree.map(random, shapes))
    floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def slopes(leaves: list[jax.Array]) -> list[jax.Array]:
        def objective(moving: list[jax.Array]) -> jax.Array:
            mixed = list(leaves)
            for i, leaf in zip(floats, moving, strict=True):
                mixed[i] = leaf
            return stage.objective(jax.tree.unflatten(structure, mixed), extra, step, AXIS)[0]

        return jax.grad(objective)([leaves[i] for i in floats])

    gradient = jax.jit(
        jax.shard_map(slopes, mesh=mesh, in_specs=P(AXIS), out_specs=P(AXIS), check_vma=True)
    )
    return lambda: gradient(leaves)
