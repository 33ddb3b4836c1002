"""Comparing every row with every candidate without ever holding the matrix of all pairs.

A contrastive loss of n rows and M candidates, written plainly, holds several matrices `[n, M]` from
the forward to the backward pass. Here the loss of a few rows is computed at a time, and computed
again where its gradient is needed: what is held grows with n + M. The same function serves both
ways, so that there is one definition of a loss, however many rows are taken at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tree = Any

TILE = 2**23  # bytes of one matrix [rows, M]: a loss has a few of them in flight
WHOLE = 2**25  # bytes of the matrix [n, M] up to which all rows are taken at once


def rows_at_once(rows: int, candidates: int, dtype: Any) -> int:
    """Return how many of `rows` to compare with `candidates` at a time: all where that is little.

    Below `WHOLE` bytes the plain form needs one pass less over the pairs; above it the tiles are
    faster as well as smaller (docs/performance.md).
    """
    row = candidates * jnp.dtype(dtype).itemsize
    return rows if rows * row <= WHOLE else max(1, min(rows, TILE // row))


def by_rows(
    function: Callable[[Tree, Tree, Tree], Tree],
    rows: Tree,
    shared: Tree,
    fixed: Tree,
    at_once: int,
) -> Tree:
    """Return `function(rows, shared, fixed)`, computed for `at_once` rows at a time.

    Args:
      function: from `rows`, `shared` and `fixed` to arrays `[rows, ...]`, of which each row depends
        on its own row of `rows` alone. It must hold no collectives: devices would meet in it once
        a tile.
      rows: arrays `[n, ...]`; those of floating point carry gradient.
      shared: arrays of floating point that every row looks at, whose gradients are added up tile
        after tile, and plain numbers of Python.
      fixed: arrays that every row looks at and that carry no gradient.
      at_once: rows in a tile, at least 1; n of them or more is the plain form.

    Returns:
      What `function` returns. It can be differentiated in reverse mode, with respect to `rows` and
      `shared`; with tiles nothing else that `function` reads carries gradient.
    """
    leaves, structure = jax.tree.flatten(rows)
    if at_once >= len(leaves[0]):
        return function(rows, shared, fixed)
    moving = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    seen, seen_structure = jax.tree.flatten(shared)
    # A number of Python stays one: as an array it would be an argument with a gradient of its own.
    numbers = {i: leaf for i, leaf in enumerate(seen) if isinstance(leaf, int | float)}

    def of_tile(floats: list, shared: list, others: list, fixed: Tree) -> Tree:
        sorts, arrays = (iter(floats), iter(others)), iter(shared)
        whole = [next(sorts[0] if is_float else sorts[1]) for is_float in moving]
        looked_at = [numbers[i] if i in numbers else next(arrays) for i in range(len(seen))]
        return function(
            jax.tree.unflatten(structure, whole),
            jax.tree.unflatten(seen_structure, looked_at),
            fixed,
        )

    @jax.custom_vjp
    def tiled(floats: list, shared: list, others: list, fixed: Tree) -> Tree:
        def tile(rows):
            return of_tile(rows[0], shared, rows[1], fixed)

        return _joined(*_over_tiles(tile, (floats, others), at_once))

    def forward(*given):
        return tiled(*given), given

    def backward(given, cotangents):
        floats, shared, others, fixed = given

        def tile(added, rows):
            floats, others, cotangents = rows
            _, pull = jax.vjp(lambda f, s: of_tile(f, s, others, fixed), floats, shared)
            d_floats, d_shared = pull(cotangents)
            return jax.tree.map(jnp.add, added, d_shared), d_floats

        tiles, rest = _cut((floats, others, cotangents), at_once)
        added = jax.tree.map(jnp.zeros_like, shared)
        added, d_floats = lax.scan(tile, added, tiles)
        added, d_rest = tile(added, rest) if rest is not None else (added, None)
        return _joined(d_floats, d_rest), added, None, None

    tiled.defvjp(forward, backward)
    floats = [leaf for leaf, is_float in zip(leaves, moving, strict=True) if is_float]
    others = [leaf for leaf, is_float in zip(leaves, moving, strict=True) if not is_float]
    return tiled(floats, [leaf for i, leaf in enumerate(seen) if i not in numbers], others, fixed)


def _cut(rows: Tree, at_once: int) -> tuple[Tree, Tree | None]:
    """Return rows as tiles `[tiles, at_once, ...]`, and those that fill none, if there are any."""
    n = len(jax.tree.leaves(rows)[0])
    tiles = n // at_once
    whole = jax.tree.map(lambda x: x[: tiles * at_once].reshape(tiles, at_once, *x.shape[1:]), rows)
    rest = jax.tree.map(lambda x: x[tiles * at_once :], rows) if n % at_once else None
    return whole, rest


def _over_tiles(function: Callable[[Tree], Tree], rows: Tree, at_once: int) -> tuple[Tree, Tree]:
    tiles, rest = _cut(rows, at_once)
    return lax.map(function, tiles), None if rest is None else function(rest)


def _joined(tiles: Tree, rest: Tree | None) -> Tree:
    """Return the rows `[n, ...]` of tiles `[tiles, at_once, ...]` and of the rest."""
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tiles)
    if rest is None:
        return rows
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), rows, rest)
