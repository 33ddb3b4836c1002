"""Patches of an image: where they lie, cutting them, and taking away what would give them away.

A grid of cells lies in an image, and in each cell a patch that is smaller than the cell by the
jitter. Two programs are spelt by it. google/revisiting-self-supervised divides the image into cells
without a gap (`Grid.of_cells`; `self_supervision/patch_model_preprocess.py:image_to_patches`).
cdoersch/deepcontext moves patches by up to 7 pixels either way, which is a jitter of 14, and clamps
them into the image (`Grid.spaced`; `train.py:imgloader, sample_patch`); in a grid that is drawn
here all cells lie inside it.

Where two patches would share an edge, or a lens has drawn colours apart, their place can be told
without looking at what they show. Gap and jitter are against the first, `one_colour` or gray images
against the second, and standardisation of each patch (`models/inputs.py`) against its brightness.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Where the second patch of a pair lies from the first, by the label of the pair, as
# `deepcontext/train.py:pos2lbl` numbers them: (down, right), in cells.
DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
NAMES = (
    *("above left", "above", "above right", "left", "right"),
    *("below left", "below", "below right"),
)

NOISE = 1 / 255  # width of the noise in the place of a channel: officially 1 of 255


class Pairs(NamedTuple):
    """Pairs of patches, numbered row by row, and what is asked of each pair.

    Attributes:
      patches: int64 `[m, 2]`.
      labels: int64 `[m]`, from 0 to 7.
    """

    patches: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Grid:
    """Cells of an image, and a patch in each. Sizes are (height, width), pixels.

    Attributes:
      rows: of cells.
      columns: of cells.
      patch: size of a patch.
      pitch: from one cell to the next: the size of a cell and the gap between two.
      jitter: how much smaller a patch is than its cell, either way.
    """

    rows: int
    columns: int
    patch: tuple[int, int]
    pitch: tuple[int, int]
    jitter: int = 0

    @classmethod
    def of_cells(cls, height: int, width: int, splits: int, jitter: int) -> Grid:
        """Divide an image into `splits` x `splits` cells; pixels left over are not looked at."""
        cell = (height // splits, width // splits)
        return cls(splits, splits, (cell[0] - jitter, cell[1] - jitter), cell, jitter)

    @classmethod
    def spaced(cls, height: int, width: int, start: tuple[int, int], patch: int, gap: int) -> Grid:
        """Lay as many patches, `gap` pixels apart, as fit into an image right and below `start`."""
        pitch = patch + gap
        rows, columns = (
            int((side + gap - at) / pitch) for side, at in zip((height, width), start, strict=True)
        )
        return cls(rows, columns, (patch, patch), (pitch, pitch))

    @property
    def size(self) -> tuple[int, int]:
        """Return the size of all cells together, (height, width), pixels."""
        down, right = (
            (count - 1) * pitch + patch + self.jitter
            for count, pitch, patch in zip(
                (self.rows, self.columns), self.pitch, self.patch, strict=True
            )
        )
        return down, right

    def middle(self) -> np.ndarray:
        """Return shifts that put each patch amid its cell, int64 `[rows, columns, 2]`."""
        return np.full((self.rows, self.columns, 2), self.jitter // 2)

    def corners(
        self, start: jax.Array | np.ndarray, shifts: jax.Array | np.ndarray, size: tuple[int, int]
    ) -> jax.Array:
        """Return the upper left corner of each patch, int `[rows, columns, 2]`: (top, left).

        Args:
          start: int `[2]`, the upper left corner of the first cell.
          shifts: int `[rows, columns, 2]`, of each patch from the corner of its cell.
          size: of the image; a patch that would lie outside is moved in.
        """
        cells = np.moveaxis(np.mgrid[: self.rows, : self.columns], 0, -1) * np.array(self.pitch)
        start, shifts, cells = (jnp.asarray(x, jnp.int32) for x in (start, shifts, cells))
        last = jnp.asarray(np.array(size) - np.array(self.patch), jnp.int32)
        return jnp.clip(start + cells + shifts, 0, last)

    def drawn(self, key: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Draw where the grid lies in an image and each patch in its cell; see `corners`.

        Uniformly, among all places where the grid is inside an image of `size`.

        Raises:
          ValueError: if the grid is larger than the image.
        """
        room = np.array(size, np.int32) - np.array(self.size, np.int32)
        if (room < 0).any():
            raise ValueError(f"a grid of {self.size} pixels does not fit into an image of {size}")
        of_grid, of_patches = jax.random.split(key)
        start = jax.random.randint(of_grid, (2,), 0, room + 1, jnp.int32)
        shape = (self.rows, self.columns, 2)
        shifts = jax.random.randint(of_patches, shape, 0, self.jitter + 1, jnp.int32)
        return self.corners(start, shifts, size)


def cut(image: jax.Array, corners: jax.Array, patch: tuple[int, int]) -> jax.Array:
    """Return the patches `[p, height, width, c]` of an image `[h, w, c]`, row by row.

    `corners` are int `[..., 2]`, see `Grid.corners`; `patch` is (height, width).
    """

    def at(corner: jax.Array) -> jax.Array:
        start = (*corner, jnp.zeros_like(corner[0]))
        return jax.lax.dynamic_slice(image, start, (*patch, image.shape[-1]))

    return jax.vmap(at)(corners.reshape(-1, 2))


def one_colour(key: jax.Array, patch: jax.Array) -> jax.Array:
    """Keep one channel of a patch, drawn, and put noise in the place of the others.

    Lenses draw colours apart, the farther from the middle the more: what is left of one channel
    does not tell where a patch was. The noise lies about the mean of the channel that is kept, so
    that standardisation leaves next to nothing of it (`deepcontext/train.py:prep_image`).

    Args:
      key: of the draw.
      patch: `[h, w, c]`, values in [0, 1].
    """
    which, noise = jax.random.split(key)
    kept = jax.random.randint(which, (), 0, patch.shape[-1], jnp.int32)
    level = jnp.mean(jnp.take(patch, kept, axis=-1))
    others = level + NOISE * jax.random.uniform(noise, patch.shape, jnp.float32, -0.5, 0.5)
    return jnp.where(jnp.arange(patch.shape[-1]) == kept, patch, others.astype(patch.dtype))


def neighbours(rows: int, columns: int) -> Pairs:
    """Return each pair of neighbouring patches, both ways, in the order of `deepcontext/train.py`.

    Labels say where the second patch lies from the first.
    """
    pairs, labels = [], []
    for row in range(rows):
        for column in range(columns):
            for down, right in DIRECTIONS[:4]:  # above it, or left: those that came before
                other = row + down, column + right
                if other[0] < 0 or not 0 <= other[1] < columns:
                    continue
                first, second = row * columns + column, other[0] * columns + other[1]
                pairs += [(first, second), (second, first)]
                labels += [DIRECTIONS.index((down, right)), DIRECTIONS.index((-down, -right))]
    return Pairs(np.array(pairs, int).reshape(-1, 2), np.array(labels, int))


def around() -> Pairs:
    """Return the patches around the middle of a grid of 3x3, each with the middle as its second.

    Labels number them row by row: they say where the first patch lies from the second
    (google/revisiting-self-supervised `self_supervision/patch_utils.py:generate_patch_locations`).
    """
    outer = np.array([patch for patch in range(9) if patch != 4])
    return Pairs(np.stack([outer, np.full(8, 4)], 1), np.arange(8))


def mosaic(patches: jax.Array, columns: int) -> jax.Array:
    """Lay patches `[n, p, h, w, c]` side by side, row by row, with white lines between them.

    Returns:
      One picture of each row, `[n, h', w', c]`.
    """
    n, count, _, _, channels = patches.shape
    rows = -(-count // columns)
    edged = jnp.pad(patches, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1.0)
    missing = rows * columns - count
    edged = jnp.pad(edged, ((0, 0), (0, missing), *[(0, 0)] * 3), constant_values=1.0)
    height, width = edged.shape[2:4]
    laid = edged.reshape(n, rows, columns, height, width, channels)
    laid = jnp.transpose(laid, (0, 1, 3, 2, 4, 5))  # [n, rows, h, columns, w, c]
    return laid.reshape(n, rows * height, columns * width, channels)[:, :-1, :-1]
