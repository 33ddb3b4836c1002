"""From a source to batches on the devices, one chunk ahead of the step that consumes them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jax.sharding import Mesh

from simclr_jax import parallel
from simclr_jax.data import order
from simclr_jax.data.sources import Images

Batch = dict[str, Any]


def host_batch(
    source: Images, seed: int, step: int, batch_size: int, rows: slice = slice(None)
) -> Batch:
    """Assemble this host's rows of the batch that update `step` consumes.

    Returns:
      `image` uint8 `[n, h, w, c]`; `position` uint32 `[n, 2]`, the absolute position of each
      example in the order of all examples ever consumed (high word, low word), which with the seed
      decides its augmentation; `start` uint32 `[n, 2]`, the position at which the global batch
      starts; and, if the source has labels, `label` int32 `[n]`.
    """
    start = step * batch_size
    positions = (start + np.arange(batch_size, dtype=np.int64))[rows]
    taken = source.take(order.examples(seed, positions, len(source)))
    batch = {
        "image": taken.pixels,
        "position": parallel.split64(positions),
        "start": parallel.split64(np.full_like(positions, start)),
    }
    if taken.labels is not None:
        batch["label"] = taken.labels
    return batch


def chunks(first_step: int, total_steps: int, steps_per_call: int) -> Iterator[range]:
    """Cut the steps `first_step` to `total_steps` where `steps_per_call` divides them."""
    while first_step < total_steps:
        end = min(total_steps, (first_step // steps_per_call + 1) * steps_per_call)
        yield range(first_step, end)
        first_step = end


def device_batches(
    source: Images,
    mesh: Mesh,
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    total_steps: int,
    steps_per_call: int,
) -> Iterator[tuple[range, Batch]]:
    """Yield the steps of each chunk and their batches, `[steps, n, ...]` sharded on axis 1.

    A thread assembles and transfers the next chunk while this one is computed.
    """
    rows = parallel.local_rows(mesh, batch_size)

    def load(steps: range) -> Batch:
        batches = [host_batch(source, seed, step, batch_size, rows) for step in steps]
        stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        return parallel.shard(mesh, stacked, axis=1)

    with ThreadPoolExecutor(1) as worker:
        ahead = None
        for steps in chunks(first_step, total_steps, steps_per_call):
            current, ahead = ahead, (steps, worker.submit(load, steps))
            if current:
                yield current[0], current[1].result()
        if ahead:
            yield ahead[0], ahead[1].result()
