"""From a source to batches on the devices, one chunk ahead of the step that consumes them."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from simclr_jax import parallel
from simclr_jax.closing import Closing
from simclr_jax.data import placements
from simclr_jax.data.placements import Loading, Request, device
from simclr_jax.data.reader import Reader, ahead

Batch = dict[str, Any]


def request(step: int, batch_size: int, rows: slice = slice(None)) -> Request:
    """Return which examples this host supplies to update `step`: `rows` of the global batch."""
    start = step * batch_size
    return Request(start + np.arange(batch_size, dtype=np.int64)[rows], start)


def host_batches(
    placement: str, loading: Loading, requests: Iterator[Request]
) -> Generator[Batch, None, None]:
    """Yield the batches of `requests` as NumPy arrays.

    Each holds what the placement makes: `image` uint8 `[n, h, w, c]`; or `canvas` uint8
    `[n, side, side, c]` and `size` int32 `[n, 2]`, the height and width that each image covers of
    it; or for each group of views `crops/GROUP` uint8 or `views/GROUP` float32, both
    `[n, views, size, size, c]`. Beside it: `label` int32 `[n]`, if the source has labels;
    `position` uint32 `[n, 2]`, the absolute position of each example in the order of all examples
    ever consumed (high word, low word), which with the seed decides its augmentation; `start`
    uint32 `[n, 2]`, the position at which the global batch starts; and `example` int32 `[n]`, which
    image of the data set was taken. Where one could not be read, pixels, label and `example` are
    those of the image that stands in for it, and `position` stays that of the row.
    """
    return _host_batches(placement, _closable(loading), requests)


def _closable(loading: Loading) -> Loading:
    """Return `loading` with a reader of its own, which one stream of batches can close."""
    return dataclasses.replace(loading, reader=dataclasses.replace(loading.reader))


def _host_batches(
    placement: str, loading: Loading, requests: Iterator[Request]
) -> Generator[Batch, None, None]:
    reader, under_way = loading.reader, deque[Request]()
    made = placements.get(placement)(loading, _announced(reader, requests, under_way))

    def release_all() -> None:
        while under_way:
            reader.release(under_way.popleft().positions)

    with Closing(made.close, release_all, reader.close):
        for batch in made:
            done = under_way.popleft()
            reader.release(done.positions)
            yield batch | _places(done)


def _announced(
    reader: Reader, requests: Iterator[Request], under_way: deque[Request]
) -> Iterator[Request]:
    """Yield `requests`, each when what the one after it will read is on its way."""
    before: Request | None = None
    for one in requests:
        reader.announce(one.positions)
        under_way.append(one)
        if before is not None:
            yield before
        before = one
    if before is not None:
        yield before


def _places(of: Request) -> Batch:
    start = np.full_like(of.positions, of.start)
    return {"position": parallel.split64(of.positions), "start": parallel.split64(start)}


def chunks(
    first_step: int, total_steps: int, steps_per_call: int, borders: Sequence[int] = ()
) -> Iterator[range]:
    """Cut the steps `first_step` to `total_steps` where `steps_per_call` divides them.

    They are cut at `borders` too.
    """
    while first_step < total_steps:
        end = min(total_steps, (first_step // steps_per_call + 1) * steps_per_call)
        end = min([end, *(border for border in borders if border > first_step)])
        yield range(first_step, end)
        first_step = end


def device_batches(
    placement: str,
    loading: Loading,
    mesh: Mesh,
    *,
    batch_size: int,
    first_step: int,
    total_steps: int,
    steps_per_call: int,
    borders: Sequence[int] = (),
    resident: bool = False,
) -> Generator[tuple[range, Batch], None, None]:
    """Yield the steps of each chunk and their batches, `[steps, n, ...]` sharded on axis 1.

    A thread assembles and transfers the next chunk while this one is computed. With `resident`,
    for placement `device`, all images are kept on every device and only their numbers cross.
    """
    loading, rows = _closable(loading), parallel.local_rows(mesh, batch_size)
    requests = (request(step, batch_size, rows) for step in range(first_step, total_steps))
    if resident:
        stream, finish = _lookups(loading, requests), _gather(loading, mesh)
    else:
        stream, finish = _host_batches(placement, loading, requests), _unchanged

    def load(steps: range) -> tuple[range, Batch]:
        batches = [next(stream) for _ in steps]
        if len(batches) == 1:  # a view: a batch of 4096 photographs is gigabytes
            stacked = {name: values[None] for name, values in batches[0].items()}
        else:
            stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        return steps, finish(parallel.shard(mesh, stacked, axis=1))

    worker = ThreadPoolExecutor(1)
    # The reader is closed first: what is under way would go on for a batch.
    with Closing(loading.reader.close, worker.shutdown, stream.close):
        cut = chunks(first_step, total_steps, steps_per_call, borders)
        yield from ahead(worker, load, cut, depth=1)


def _lookups(loading: Loading, requests: Iterator[Request]) -> Generator[Batch, None, None]:
    """Yield batches without the images, whose rows are `example`."""
    labels = loading.reader.source.labels
    for one in requests:
        examples = device.examples(loading, one.positions)
        batch = {"example": examples} | _places(one)
        yield batch if labels is None else batch | {"label": labels[examples]}


def _gather(loading: Loading, mesh: Mesh) -> Callable[[Batch], Batch]:
    pixels = parallel.replicate(mesh, device.images(loading).pixels)
    sharding = NamedSharding(mesh, P(None, parallel.AXIS))
    take = jax.jit(lambda pixels, rows: pixels[rows], out_shardings=sharding)

    def gather(batch: Batch) -> Batch:
        return {"image": take(pixels, batch["example"]), **batch}

    return gather


def _unchanged(batch: Batch) -> Batch:
    return batch
