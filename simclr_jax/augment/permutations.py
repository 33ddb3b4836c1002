"""Which permutations a jigsaw puzzle may be shuffled by: few of all, as far apart as can be.

Noroozi and Favaro (2016, arXiv 1603.09246, algorithm 1) take one, then again and again that whose
mean Hamming distance to all taken so far is largest; bbrattoli/JigsawPuzzlePytorch
`select_permutations.py` does the same. Many are equally far, so which of them comes first decides,
and rounding too: distances are shares of the tiles, and their means are taken in float64, row after
row. In the order in which older versions of MATLAB list permutations, and beginning with number
`NOROOZI`, the first hundred are the hundred that the authors published
(MehdiNoroozi/JigsawPuzzleSolver `permutations_100_max.bin`).
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

ORDERS = ("lexicographic", "matlab")
NOROOZI = 46080  # the number of the authors' first permutation of 9 tiles, in the order "matlab"
MOST_TILES = 9  # of which all permutations are listed: 362880


@functools.cache
def far_apart(tiles: int, count: int, first: int = 0, order: str = "lexicographic") -> np.ndarray:
    """Return `count` permutations of so many tiles by the greedy law, int8 `[count, tiles]`.

    Row k has at place p the tile that lies there, from 0 on.

    Args:
      tiles: at most `MOST_TILES`.
      count: at most the factorial of `tiles`.
      first: the number of the permutation that is taken first.
      order: in which permutations are numbered, and of equally far ones the first is taken: one of
        `ORDERS`.

    Raises:
      ValueError: if there are not so many.
    """
    if not (1 <= tiles <= MOST_TILES and 1 <= count <= math.factorial(tiles)):
        raise ValueError(f"there are no {count} permutations of {tiles} tiles to choose from")
    every = _lexicographic(tiles) if order == "lexicographic" else _matlab(tiles)
    columns = np.ascontiguousarray(every.T)  # of one byte each: a comparison reads them once
    distances, chosen, number = np.zeros(len(every)), [], first
    for taken in range(1, count + 1):
        chosen.append(number)
        pairs = zip(columns, every[number], strict=True)
        apart = sum((column != tile).astype(np.uint8) for column, tile in pairs)
        distances += apart / tiles
        distances[number] = -np.inf
        number = int(np.argmax(distances / taken))
    found = every[chosen]
    found.setflags(write=False)  # it is kept for the next call
    return found


def _lexicographic(tiles: int) -> np.ndarray:
    return np.array(list(itertools.permutations(range(tiles))), np.int8)


def _matlab(tiles: int) -> np.ndarray:
    """Return all permutations as MATLAB's `perms` listed them, made of those of one tile less.

    The last tile first and then those; and for each tile before it, from the highest down, that
    tile first and then those with the last in its place.
    """
    if tiles == 1:
        return np.zeros((1, 1), np.int8)
    fewer, last = _matlab(tiles - 1), tiles - 1
    blocks = []
    for tile in range(last, -1, -1):
        rest = np.where(fewer == tile, np.int8(last), fewer)
        blocks.append(np.hstack([np.full((len(rest), 1), tile, np.int8), rest]))
    return np.vstack(blocks)
