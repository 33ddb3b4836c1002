"""Which images stand on a map of embeddings, and which of them are shown as pictures."""

from __future__ import annotations

import numpy as np

from simclr_jax.data import order
from simclr_jax.data.sources import Source
from simclr_jax.judging.feature_bank import Features

MOST = 1000  # images: where fewer are held out, training images join them
CELLS = 11  # of the map along a side, at most one picture in each


def joined(held: Features, bank: Features) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return what a map is drawn of: held-out images, then some of the bank.

    Returns:
      Features `[m, d]`; labels `[m]`, or `[m, classes]`, or None if there are none; and the rows of
      the bank, always the same, that are the last of these.
    """
    count = min(max(0, MOST - len(held)), len(bank))
    rows = np.sort(order.examples(0, np.arange(count), len(bank))) if count else np.zeros(0, int)
    x = np.concatenate([held.x, bank.x[rows]])
    if held.labels is None or bank.labels is None:
        return x, None, rows
    return x, np.concatenate([held.labels, bank.labels[rows]]), rows


def spread(points: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """Return the rows of `points` `[m, 2]` nearest to the middle of each cell of a grid over them.

    No two are nearer to each other than most of a cell, so that pictures of them hardly overlap.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    side = max(float((high - low).max()), 1e-12) / cells
    places = (points - low) / side
    cell = np.minimum(places.astype(int), cells - 1)
    off = np.abs(places - cell - 0.5).max(axis=1)
    rows: list[int] = []
    taken: set[tuple[int, int]] = set()
    for row in np.argsort(off, kind="stable").tolist():
        here = (int(cell[row, 0]), int(cell[row, 1]))
        near = any(np.abs(places[row] - places[other]).max() < 0.9 for other in rows)
        if here not in taken and not near:
            taken.add(here)
            rows.append(row)
    return np.array(sorted(rows), int)


def pictures(
    points: np.ndarray,
    held: Features,
    bank: Features,
    rows: np.ndarray,
    sources: tuple[Source, Source],
) -> list[tuple[int, np.ndarray]]:
    """Return the places on the map of some images, and their pixels uint8 `[h, w, c]`.

    Args:
      points: `[m, 2]`, of the images that `joined` has put together.
      held, bank, rows: see `joined`.
      sources: of held-out images, and of those of the bank.
    """
    found = []
    for place in spread(points).tolist():
        if place < len(held):
            source, example = sources[0], held.examples[place]
        else:
            source, example = sources[1], bank.examples[rows[place - len(held)]]
        found.append((place, source.example(int(example))[0]))
    return found
