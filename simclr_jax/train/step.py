"""The sharded train step."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from simclr_jax.parallel import AXIS, compiler_options
from simclr_jax.train.gradients import at_once, in_parts
from simclr_jax.train.stage import (
    Batch,
    Extra,
    Metrics,
    Params,
    Stage,
    TrainState,
    Update,
    joined,
)

Step = Callable[..., tuple[TrainState, Metrics]]


def make_step(stage: Stage, mesh: Mesh) -> Step:
    """Compile a function that takes a chunk of training steps.

    Every device runs the code below on its own rows of the global batch. What devices exchange is
    written where it happens, as an explicit collective:

    * statistics of batch normalisation, in `stage.forward` and `stage.watch`;
    * embeddings and a few counts, in `stage.objective`;
    * gradients and metrics, once, here;
    * rows that a stage keeps beside its network, such as a queue's, in `stage.after_update`.

    Args:
      stage: what is trained.
      mesh: the 1-D mesh; the result does not depend on how many devices it has.

    Returns:
      A function from a state, replicated and *donated* (its buffers are reused), batches
      `[steps, N, ...]` sharded on axis 1, and `stage.frozen` if there is any, replicated, to the
      state after `steps` updates and metrics `[steps]`: those of `stage.objective`, the rate `lr`,
      and the lengths (L2) of gradient, parameters before the update, and update.
    """

    passes = functools.partial(in_parts, unroll=_on_cpus(mesh)) if stage.parts > 1 else at_once

    def step(frozen: Extra, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # Marked as differing between devices, parameters get gradients that are this device's own:
        # nothing is summed behind our back, and the one sum below is the only one.
        params = jax.tree.map(lambda p: lax.pcast(p, AXIS, to="varying"), state.params)
        extra = joined(state.extra, frozen)
        batch = batch | {"row": _rows(batch)}
        found = passes(stage, params, state, extra, batch)
        gradients, metrics = lax.psum((_sent(found.gradients, stage), found.metrics), AXIS)
        gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, params)

        updates, opt_state = stage.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        own = {
            "lr": stage.learning_rate(state.step),
            "gradient_norm": optax.global_norm(gradients),
            "parameter_norm": optax.global_norm(state.params),
            # Apart: measured as it is made, the update would be written out and read to be added.
            "update_norm": optax.global_norm(lax.optimization_barrier(updates)),
        }
        update = Update(params, found.batch_stats, found.watched, found.outputs, state.step)
        kept = stage.after_update(state.extra, update)
        state = TrainState(state.step + 1, params, found.batch_stats, opt_state, kept)
        return state, joined(metrics, own)

    def chunk(state: TrainState, batches: Batch, frozen: Extra) -> tuple[TrainState, Metrics]:
        # XLA keeps a loop of one step a loop (see `_on_cpus`).
        if jax.tree.leaves(batches)[0].shape[0] == 1:
            state, metrics = step(frozen, state, jax.tree.map(lambda x: x[0], batches))
            return state, jax.tree.map(lambda x: x[None], metrics)
        return lax.scan(functools.partial(step, frozen), state, batches)

    sharded = jax.shard_map(
        chunk, mesh=mesh, in_specs=(P(), P(None, AXIS), P()), out_specs=(P(), P()), check_vma=True
    )

    def steps(state: TrainState, batches: Batch, frozen: Extra | None = None):
        return sharded(state, batches, frozen or {})

    options = compiler_options(mesh, stage.deterministic)
    return jax.jit(steps, donate_argnums=0, compiler_options=options)


def _sent(gradients: Params, stage: Stage) -> Params:
    """Return gradients as they go from device to device: rounded, if asked and if any go."""
    if stage.reduce_dtype != "bfloat16" or lax.axis_size(AXIS) == 1:
        return gradients
    return jax.tree.map(lambda g: g.astype(jnp.bfloat16), gradients)


def _on_cpus(mesh: Mesh) -> bool:
    """Tell whether the devices of a mesh are there and are CPUs, slow at convolutions in loops."""
    return isinstance(mesh, Mesh) and mesh.devices.flat[0].platform == "cpu"


def _rows(batch: Batch) -> jax.Array:
    """Return the places of this device's images in the global batch, int32 `[n]`."""
    n = jax.tree.leaves(batch)[0].shape[0]
    return lax.axis_index(AXIS) * n + jnp.arange(n, dtype=jnp.int32)
