"""Placement `split`: threads decode each image once and cut all its views; the device colours them.

OpenCV resizes: bicubic with a = -0.75 at half-pixel positions, rounded to uint8; area averages
where it shrinks to less than half. That is its own law, near the official one but not it, so
nothing here claims golden parity. Images much larger than a view are shrunk by a whole factor as
soon as they are decoded, and crops drawn in what is left, so that a thread holds little.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from simclr_jax import extras
from simclr_jax.data.decode import within_memory
from simclr_jax.data.placements import Loading, Request, blocks, filling
from simclr_jax.data.placements.blocks import Part
from simclr_jax.data.placements.filling import Job
from simclr_jax.errors import UserError

LARGE = (
    4  # times the largest view: the shorter side of images that are shrunk before they are cropped
)


def batches(
    loading: Loading, requests: Iterator[Request]
) -> Generator[dict[str, np.ndarray], None, None]:
    """Yield `crops/GROUP`, uint8 `[n, views, size, size, c]`, `example` and, if any, `label`.

    Both are int32 `[n]`; `example` are the numbers of the images that were taken.
    """
    source = loading.reader.source
    sizes = {group: policies[0].size for group, policies in loading.policies.items()}
    resize, shrink = resizer(), shrinker(max(sizes.values()))
    parts = blocks.parts(loading, shrink)

    def cut(part: Part, group: str, size: int, made: np.ndarray) -> None:
        for i, image in enumerate(part.rows.images):
            with within_memory(functools.partial(source.name, int(part.rows.examples[i]))):
                for view, box in enumerate(part.boxes[group][i].tolist()):
                    made[i, view] = resize(image, box, size)

    def fill(job: Job) -> None:
        first = 0
        for part in parts(job.request):
            rows = slice(first, first + len(part.rows.images))
            job.made["example"][rows] = part.rows.examples
            if "label" in job.made:
                job.made["label"][rows] = part.rows.labels
            for group, size in sizes.items():
                cut(part, group, size, job.made[f"crops/{group}"][rows])
            first = rows.stop

    pixels = {
        f"crops/{group}": (len(loading.policies[group]), size, size, source.channels)
        for group, size in sizes.items()
    }
    numbers: dict[str, tuple[int, ...]] = {"example": ()}
    if source.classes:
        numbers["label"] = ()
    yield from filling.batches(loading, requests, pixels, numbers, fill)


def resizer() -> Any:
    """Return `resize(image, box, size)`: cut `box` (y, x, height, width) and make it a square.

    `image` is uint8 `[h, w, c]`, the result uint8 `[size, size, c]`; equal sizes are left alone. A
    box is four integers.

    Raises:
      UserError: if OpenCV is not installed.
    """
    cv2 = _opencv()

    def resize(image: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
        y, x, height, width = box
        crop = image[y : y + height, x : x + width]
        if (height, width) == (size, size):
            return crop
        shrinks = min(height, width) > 2 * size
        law = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        resized = cv2.resize(crop, (size, size), interpolation=law)
        return resized.reshape(size, size, image.shape[-1])  # one channel loses its axis

    return resize


def shrinker(size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return what shrinks large images by a whole factor, to a shorter side of `4 size` or more.

    `size` is that of the largest view.
    A crop of 8 % of the area then still has more pixels than a view of `size`.
    """
    cv2 = _opencv()

    def shrink(image: np.ndarray) -> np.ndarray:
        height, width, channels = image.shape
        factor = min(height, width) // (LARGE * size)
        if factor < 2:
            return image
        to = (round(width / factor), round(height / factor))
        smaller = cv2.resize(image, to, interpolation=cv2.INTER_AREA)
        return smaller.reshape(to[1], to[0], channels)

    return shrink


def check_libraries() -> None:
    """Raise `UserError` if OpenCV is not installed."""
    _opencv()


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            "augment.placement=split needs OpenCV, which is not installed: "
            f"{extras.install('images')}"
        ) from error
    cv2.setNumThreads(0)  # the threads are ours
    return cv2
