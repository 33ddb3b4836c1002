"""A canvas on which photographs of any sizes lie as arrays of one size; those beyond it shrink.

An image lies in the upper left corner. One that is higher or wider than the canvas is scaled down
until it fits, its aspect kept, and how many were is counted. OpenCV does so: up to a half linearly
between two pixels along each axis, which then overlooks none, beyond by averaging over areas, which
takes five times as long.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from simclr_jax import extras
from simclr_jax.data import scaling, scratch
from simclr_jax.data.reader import Reader, Rows
from simclr_jax.errors import UserError, printable

LAID = np.zeros((0, 0, 0), np.uint8)  # in the place of an image that lies on its canvas


@dataclasses.dataclass
class Canvas:
    """Reads images so that they fit.

    Attributes:
      side: of the canvas, pixels.
      jpeg_scaling: a JPEG beyond the canvas may be decoded at a part of its size, by its cosine
        transform: faster, and with other pixels than averages of the whole have.
      say: receives a line about the first image that does not fit.
      read: images that were read.
      larger: how many of them did not fit.
    """

    side: int
    jpeg_scaling: bool = False
    say: Callable[[str], object] = lambda line: None
    read: int = 0
    larger: int = 0

    def __post_init__(self):
        self._lock = threading.Lock()

    def lay(
        self, reader: Reader, positions: np.ndarray, canvases: np.ndarray, covered: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read the images at `positions`, int64 `[n]`, and lay each on its canvas.

        Each is laid there before the next is decoded, so that one is in memory.

        Args:
          reader: of decoded images.
          positions: of the images.
          canvases: uint8 `[n, side, side, c]`, written to; they are black beyond the images.
          covered: int32 `[n, 2]`, written to: height and width of each image there.

        Returns:
          Labels and numbers of the images, int32 `[n]`, as `Reader.read` has them.
        """
        sizes: list[tuple[int, int]] = []  # before they were scaled down
        part_of = scaling.to(self.side if self.jpeg_scaling else None)
        with part_of as scaled, scratch.lent() as memory:

            def put(image: np.ndarray) -> np.ndarray:
                row = len(sizes)
                sizes.append(scaled.stored or (image.shape[0], image.shape[1]))
                height, width = self.fit(image, canvases[row])
                canvases[row, :height, width:] = 0
                canvases[row, height:] = 0
                covered[row] = height, width
                memory.clear()
                return LAID

            rows = reader.read(positions, put)
        self._count(reader, rows, sizes)
        return rows.labels, rows.examples

    def fit(self, image: np.ndarray, canvas: np.ndarray) -> tuple[int, int]:
        """Write an image, uint8 `[h, w, c]`, on its canvas; return the height and width it has."""
        height, width, channels = image.shape
        to = fitting(height, width, self.side)
        laid = canvas[: to[0], : to[1]]
        if to == (height, width):
            laid[:] = image
            return to
        cv2 = opencv()
        law = cv2.INTER_LINEAR if max(height, width) <= 2 * self.side else cv2.INTER_AREA
        # Where all channels are there OpenCV writes into the canvas itself.
        into = laid if channels == 3 else None
        smaller = cv2.resize(image, to[::-1], dst=into, interpolation=law)
        if not np.may_share_memory(smaller, laid):
            laid[:] = smaller.reshape(laid.shape)  # one channel loses its axis
        return to

    def _count(self, reader: Reader, rows: Rows, sizes: list[tuple[int, int]]) -> None:
        larger = [i for i, size in enumerate(sizes) if max(size) > self.side]
        with self._lock:
            first = larger and not self.larger
            self.read += len(sizes)
            self.larger += len(larger)
        if first:
            name = reader.source.name(int(rows.examples[larger[0]]))
            height, width = sizes[larger[0]]
            self.say(
                printable(
                    f"note      {name} is {height}x{width} pixels: images beyond "
                    f"augment.canvas={self.side} are scaled down to fit"
                )
            )


def fitting(height: int, width: int, side: int) -> tuple[int, int]:
    """Return the height and width at which an image fits a canvas: its own, if it does."""
    longer = max(height, width)
    if longer <= side:
        return height, width
    return max(1, round(height * side / longer)), max(1, round(width * side / longer))


def check_libraries(jpeg_scaling: bool) -> None:
    """Raise `UserError` if a library is not installed that a canvas needs for some images."""
    opencv()
    if not jpeg_scaling:
        return
    try:
        import simplejpeg  # noqa: F401
    except ImportError as error:
        raise UserError(
            "augment.jpeg_scaling needs simplejpeg, which is not installed: "
            f"{extras.install('images')}"
        ) from error


def opencv() -> Any:
    """Return OpenCV, which uses no threads of its own.

    Raises:
      UserError: if it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            "augment.placement=canvas needs OpenCV, which is not installed: "
            f"{extras.install('images')}"
        ) from error
    cv2.setNumThreads(0)  # the threads are ours
    return cv2
