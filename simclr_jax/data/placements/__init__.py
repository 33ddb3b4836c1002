"""Who makes the views, and of what: one file per placement.

| placement | the host | crosses to the device | the device |
|---|---|---|---|
| `device` | looks images up | uint8 images of one size | all |
| `canvas` | decodes once | uint8 images on canvases of one size, and their own sizes | all |
| `split` | decodes once, crops and resizes (OpenCV) | uint8 crops | flip, colour, blur |
| `host` | decodes once, then all (tf.data, official operations) | float32 views | nothing |

All have the same order of examples and the same draws, and say which examples they took
(`example`, int32 `[n]`). Views come in groups: those of one group have one size and stand in one
array.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from simclr_jax.augment.policy import Policy
from simclr_jax.data.canvas import Canvas
from simclr_jax.data.reader import Reader


class Request(NamedTuple):
    """Rows of one batch.

    Attributes:
      positions: int64 `[n]`, in the order of all examples ever consumed.
      start: the position at which the global batch starts.
    """

    positions: np.ndarray
    start: int


@dataclasses.dataclass(frozen=True)
class Loading:
    """What a placement needs to know.

    Attributes:
      reader: of decoded images.
      policies: for each group of views, by name, one for each view, all of one size.
      seed: of the run.
      shared_sigma: one blur width for each view of a batch, not for each image.
      threads: that decode and augment.
      canvas: of placement `canvas`.
    """

    reader: Reader
    policies: Mapping[str, tuple[Policy, ...]]
    seed: int
    shared_sigma: bool
    threads: int
    canvas: Canvas | None = None


# From requests to the arrays of their batches, in order, with work on the next one under way.
Placement = Callable[[Loading, Iterator[Request]], Generator[dict[str, np.ndarray], None, None]]


def check_libraries(name: str, jpeg_scaling: bool) -> None:
    """Raise `UserError` if a library is not installed that a placement needs.

    For whoever has something to write before the first batch is made. `jpeg_scaling` is read by
    placement `canvas`.
    """
    if name == "split":
        from simclr_jax.data.placements import split

        split.check_libraries()
    elif name == "canvas":
        from simclr_jax.data import canvas

        canvas.check_libraries(jpeg_scaling)
    elif name == "host":
        from simclr_jax.data.placements import host

        host.check_libraries()


def get(name: str) -> Placement:
    """Return a placement by name; the libraries it needs are imported now, not before."""
    if name == "device":
        from simclr_jax.data.placements import device

        return device.batches
    if name == "canvas":
        from simclr_jax.data.placements import canvas

        return canvas.batches
    if name == "split":
        from simclr_jax.data.placements import split

        return split.batches
    from simclr_jax.data.placements import host

    return host.batches
