"""Placement `device`: whole images, looked up in memory, cross to the device."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np

from simclr_jax.data.placements import Loading, Request
from simclr_jax.data.sources.arrays import Images


def images(loading: Loading) -> Images:
    """Return the images of this placement, which are in memory."""
    source = loading.reader.source
    assert isinstance(source, Images), "placement device reads what `reader.load` has decoded"
    return source


def examples(loading: Loading, positions: np.ndarray) -> np.ndarray:
    """Return the examples at `positions`, int64 `[n]`, with readable ones for unreadable ones.

    The same as `Reader.read` decodes, int32 `[n]`.
    """
    found, bad = loading.reader.order(positions), images(loading).bad
    while bad is not None and (rows := np.flatnonzero(bad[found])).size:
        positions = positions.copy()
        positions[rows] += 1
        found[rows] = loading.reader.order(positions[rows])
    return found.astype(np.int32)


def batches(
    loading: Loading, requests: Iterator[Request]
) -> Generator[dict[str, np.ndarray], None, None]:
    """Yield `image`, uint8 `[n, h, w, c]`, `example` and, if there are labels, `label`.

    `example`, int32 `[n]`, are the numbers of the images that were taken; `label` is int32 `[n]`.
    """
    for request in requests:
        found = examples(loading, request.positions)
        taken = images(loading).take(found)
        batch = {"image": taken.pixels, "example": found}
        if taken.labels is not None:
            batch["label"] = taken.labels
        yield batch
