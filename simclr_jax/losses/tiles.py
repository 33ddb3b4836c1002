"""Comparing every row with every candidate without ever holding the matrix of all pairs.

A contrastive loss of n rows and M candidates, written plainly, holds several matrices `[n, M]` from
the forward to the backward pass. Here the similarities of a few rows are computed at a time, and
computed again where their gradient is needed: what is held grows with n + M. The same function of
similarities serves both ways, so that there is one definition of a loss, however many rows are
taken at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tree = Any
Arrays = Sequence[jax.Array]
Similarities = list[list[jax.Array]]  # by anchors, then by candidates

TILE = 2**23  # bytes of one of the anchors' similarities: a loss has a few such in flight
WHOLE = 2**25  # bytes of all similarities up to which all rows are taken at once
BLOCKS = 8  # into which candidates are divided where their gradient is added up


def rows_at_once(rows: int, candidates: int, dtype: Any) -> int:
    """Return how many of `rows` to compare with `candidates` at a time: all where that is little.

    Below `WHOLE` bytes the plain form needs one pass less over the pairs; above it the tiles are
    faster as well as smaller (docs/performance.md).
    """
    row = candidates * jnp.dtype(dtype).itemsize
    return rows if rows * row <= WHOLE else max(1, min(rows, TILE // row))


def similarities(anchors: Arrays, candidates: Arrays) -> Similarities:
    """Return the inner products `[n, M]` of each of the anchors with each of the candidates.

    In full precision: a low temperature magnifies what accelerators round away by default.
    """
    return [[_product("nd,md->nm", one, some) for some in candidates] for one in anchors]


def by_rows(
    function: Callable[[Similarities, Tree, Tree, Tree], Tree],
    anchors: Arrays,
    candidates: Arrays,
    kept: Arrays,
    rows: Tree,
    fixed: Tree,
    numbers: Tree,
    at_once: int | None = None,
) -> Tree:
    """Return `function(similarities, rows, fixed, numbers)`, by tiles of rows.

    Args:
      function: from the similarities of r rows, of which the one of anchors i with candidates j is
        `[r, M_j]`, those kept coming last, from what belongs to those rows, and from what every
        row looks at, to arrays `[r, ...]`, of which each row depends on its own row alone. It must
        hold no collectives: devices would meet in it once a tile.
      anchors: `[n, d]` each: of each row, such as of each image, what is compared, such as its
        views.
      candidates: `[M_j, d]` each, with which they are compared.
      kept: more of them, which carry no gradient, such as a queue's.
      rows: arrays of integers `[n, ...]`, such as the number of each row.
      fixed: arrays that carry no gradient, such as the numbers of kept candidates.
      numbers: such as a temperature: of Python, or arrays, which carry gradient.
      at_once: rows in a tile, at least 1; n or more is the plain form. None decides by size.

    Returns:
      What `function` returns. It can be differentiated in reverse mode, with respect to anchors,
      candidates and numbers; with tiles nothing else that `function` reads carries gradient.
    """
    anchors, candidates = list(anchors), list(candidates)
    kept = [lax.stop_gradient(some) for some in kept]
    count = len(anchors[0])
    if at_once is None:
        others = sum(map(len, [*candidates, *kept]))
        at_once = rows_at_once(count, others, anchors[0].dtype)
    if at_once >= count:
        return function(similarities(anchors, candidates + kept), rows, fixed, numbers)
    # Numbers of Python stay such: as arrays they would be arguments with gradients of their own.
    leaves, structure = jax.tree.flatten(numbers)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, int | float)}

    def of_tile(found: Similarities, rows: Tree, fixed: Tree, arrays: dict[int, jax.Array]) -> Tree:
        mixed = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        return function(found, rows, fixed, jax.tree.unflatten(structure, mixed))

    @jax.custom_vjp
    def tiled(anchors, candidates, arrays, others):
        kept, rows, fixed = others

        def tile(some: tuple[list[jax.Array], Tree]) -> Tree:
            return of_tile(similarities(some[0], candidates + kept), some[1], fixed, arrays)

        whole, rest = _cut((anchors, rows), at_once)
        return _joined(lax.map(tile, whole), None if rest is None else tile(rest))

    def forward(*given):
        return tiled(*given), given

    def backward(given, cotangents):
        anchors, candidates, arrays, (kept, rows, fixed) = given

        def tile(added, some):
            anchors, rows, cotangents = some
            found = similarities(anchors, candidates + kept)
            _, pull = jax.vjp(lambda s, a: of_tile(s, rows, fixed, a), found, arrays)
            slopes, d_arrays = pull(cotangents)
            d_anchors = [
                sum(_product("nm,md->nd", s, c) for s, c in zip(of, candidates + kept, strict=True))
                for of in slopes
            ]
            d_candidates = [
                _with(total, [of[j] for of in slopes], anchors) for j, total in enumerate(added[0])
            ]
            return (d_candidates, jax.tree.map(jnp.add, added[1], d_arrays)), d_anchors

        whole, rest = _cut((anchors, rows, cotangents), at_once)
        added = jax.tree.map(jnp.zeros_like, (candidates, arrays))
        added, d_anchors = lax.scan(tile, added, whole)
        added, d_rest = tile(added, rest) if rest is not None else (added, None)
        return _joined(d_anchors, d_rest), *added, None

    tiled.defvjp(forward, backward)
    return tiled(anchors, candidates, arrays, (kept, rows, fixed))


def _with(total: jax.Array, slopes: Arrays, anchors: Arrays) -> jax.Array:
    """Return `total` `[M, d]` with what some rows add to the gradient of candidates.

    That would be as large as they are, in memory beside the sum; so it is added to one block of
    them after another.

    Args:
      total: `[M, d]`.
      slopes: of the similarities `[r, M]` of each of the anchors with these candidates.
      anchors: `[r, d]` each.
    """

    def add(start: Any, size: int, total: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(total, start, size)
        for slope, one in zip(slopes, anchors, strict=True):
            some = lax.dynamic_slice_in_dim(slope, start, size, axis=1)
            part += _product("nm,nd->md", some, one)
        return lax.dynamic_update_slice_in_dim(total, part, start, axis=0)

    size = max(1, len(total) // BLOCKS)
    total = lax.fori_loop(0, len(total) // size, lambda i, x: add(i * size, size, x), total)
    rest = len(total) % size
    return add(len(total) - rest, rest, total) if rest else total


def _product(how: str, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.einsum(how, one, other, precision=lax.Precision.HIGHEST)


def _cut(rows: Tree, at_once: int) -> tuple[Tree, Tree | None]:
    """Return rows as tiles `[tiles, at_once, ...]`, and those that fill none, if there are any."""
    n = len(jax.tree.leaves(rows)[0])
    tiles = n // at_once
    whole = jax.tree.map(lambda x: x[: tiles * at_once].reshape(tiles, at_once, *x.shape[1:]), rows)
    rest = jax.tree.map(lambda x: x[tiles * at_once :], rows) if n % at_once else None
    return whole, rest


def _joined(tiles: Tree, rest: Tree | None) -> Tree:
    """Return the rows `[n, ...]` of tiles `[tiles, at_once, ...]` and of the rest."""
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tiles)
    if rest is None:
        return rows
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), rows, rest)
