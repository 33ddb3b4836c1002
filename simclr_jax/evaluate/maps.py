"""Maps of an encoder before their mean, pooled to the few thousand numbers that probes read.

Pretext papers probe every block on its map, pooled so that all blocks have about 9000 numbers
(Zhang et al. 2016 and 2017; Goyal et al. 2019, 1905.01235, whose ResNet-50 gives squares of 12, 6,
4, 3 and 2).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

NUMBERS = 9000  # about as many are left of each map


def side(channels: int, of_map: int, numbers: int = NUMBERS) -> int:
    """Return the side of the square that a map of so many channels is pooled to.

    Args:
      channels: of the map.
      of_map: its shorter side, pixels; the answer is no larger.
      numbers: that are to be left, about.
    """
    return max(1, min(of_map, round(math.sqrt(numbers / channels))))


def pooled(maps: jax.Array, numbers: int = NUMBERS) -> jax.Array:
    """Return the means of maps `[b, h, w, c]` over a square grid, `[b, side * side * c]`.

    A cell of the grid is the mean over its area: where it ends within a pixel, that pixel counts by
    its part inside. Row by row, the channels of a cell together.
    """
    b, height, width, channels = maps.shape
    cells = side(channels, min(height, width), numbers)
    rows, columns = (
        jnp.asarray(_areas(length, cells), maps.dtype) for length in (height, width)
    )  # [cells, h], [cells, w]
    high = jax.lax.Precision.HIGHEST
    found = jnp.einsum("yh,xw,bhwc->byxc", rows, columns, maps, precision=high)
    return found.reshape(b, -1)


def _areas(length: int, cells: int) -> np.ndarray:
    """Return the share that each pixel of a line has in each cell, `[cells, length]`."""
    ends = np.arange(cells + 1) * length / cells
    pixels = np.arange(length)
    low = np.maximum(ends[:-1, None], pixels)
    high = np.minimum(ends[1:, None], pixels + 1)
    return np.maximum(high - low, 0) * cells / length
