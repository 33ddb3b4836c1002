"""Placement `canvas`: threads decode each image once, whole; the device cuts and colours all views.

What crosses to the device is of one size whatever the images are: bytes on a square canvas, and how
much of it each image covers (`data/canvas.py`). Boxes are drawn and cut on the device, by the law
and the resize grid of placement `device`, which this is for photographs.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np

from simclr_jax.data import canvas
from simclr_jax.data.placements import Loading, Request, filling
from simclr_jax.data.placements.filling import Job


def batches(
    loading: Loading, requests: Iterator[Request]
) -> Generator[dict[str, np.ndarray], None, None]:
    """Yield `canvas`, uint8 `[n, side, side, c]`, `size`, `example` and, if any, `label`.

    `size`, int32 `[n, 2]`, are height and width of each image on its canvas, which is black beyond
    it; `example`, int32 `[n]`, the numbers of the images that were taken; `label` is int32 `[n]`.
    """
    source, on = loading.reader.source, loading.canvas
    assert on is not None, "placement canvas needs one"
    canvas.check_libraries(on.jpeg_scaling)  # before the first image that needs them

    def fill(job: Job) -> None:
        made = job.made
        labels, made["example"][:] = on.lay(
            loading.reader, job.request.positions, made["canvas"], made["size"]
        )
        if "label" in made:
            made["label"][:] = labels

    pixels = {"canvas": (on.side, on.side, source.channels)}
    numbers: dict[str, tuple[int, ...]] = {"size": (2,), "example": ()}
    if source.classes:
        numbers["label"] = ()
    yield from filling.batches(loading, requests, pixels, numbers, fill)
