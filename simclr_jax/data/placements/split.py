"""Placement `split`: threads decode each image once and cut all its views; the device colours them.

OpenCV resizes: bicubic with a = -0.75 at half-pixel positions, no antialiasing, rounded to uint8.
That is its own law, near the official one but not it, so nothing here claims golden parity.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from simclr_jax.augment.resize import center_box
from simclr_jax.data.placements import Loading, Request, blocks
from simclr_jax.data.reader import ahead
from simclr_jax.errors import UserError


def batches(loading: Loading, requests: Iterator[Request]) -> Iterator[dict[str, np.ndarray]]:
    """Yield `crops`, uint8 `[n, views, size, size, c]`, and `label`, int32 `[n]`, if any."""
    read, resize = blocks.reader(loading), resizer()
    source, size = loading.reader.source, loading.policies[0].size

    def cut(block: Request) -> tuple[np.ndarray, np.ndarray]:
        rows, draws = read(block)
        shape = (len(rows.images), len(draws), size, size, source.channels)
        crops = np.empty(shape, np.uint8)
        for i, image in enumerate(rows.images):
            for view, drawn in enumerate(draws):
                crops[i, view] = resize(image, drawn.box[i], size)
        return crops, rows.labels

    requests, again = itertools.tee(requests)
    with ThreadPoolExecutor(loading.threads) as pool:
        done = ahead(pool, cut, blocks.split(requests), depth=2 * loading.threads)
        for request in again:
            count = -(-len(request.positions) // blocks.BLOCK)
            crops, labels = zip(*itertools.islice(done, count), strict=True)
            batch = {"crops": np.concatenate(crops)}
            if source.classes:
                batch["label"] = np.concatenate(labels)
            yield batch


def resizer() -> Any:
    """Return `resize(image, box, size)`: cut `box` (y, x, height, width) and make it a square.

    `image` is uint8 `[h, w, c]`, the result uint8 `[size, size, c]`; equal sizes are left alone.

    Raises:
      UserError: if OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            "augment.placement=split needs OpenCV, which is not installed: "
            "pip install 'simclr-jax[images]'"
        ) from error
    cv2.setNumThreads(0)  # the threads are ours

    def resize(image: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
        y, x, height, width = (int(side) for side in box)
        crop = image[y : y + height, x : x + width]
        if (height, width) == (size, size):
            return crop
        resized = cv2.resize(crop, (size, size), interpolation=cv2.INTER_CUBIC)
        return resized.reshape(size, size, image.shape[-1])  # one channel loses its axis

    return resize


def eval_preparer(size: int) -> Any:
    """Return the function that makes the evaluation view of an image, as `center_crop` does.

    From uint8 `[h, w, c]` to uint8 `[size, size, c]`, resized by OpenCV.
    """
    resize = resizer()

    def prepare(image: np.ndarray, proportion: float) -> np.ndarray:
        height, width = image.shape[:2]
        return resize(image, np.array(center_box(height, width, size, proportion)), size)

    return prepare
