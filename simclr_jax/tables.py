"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

Scores = dict[str, dict[str, dict[str, float]]]  # of each thing scored, by the name of the score


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def folded(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = 80) -> str:
    """Align columns as `table` does, so that no line is longer than `width`.

    What does not fit beside the first column goes below, beside the first column again; a single
    column that does not fit is not cut.
    """
    lengths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    blocks: list[list[int]] = [[]]
    for column in range(1, len(header)):
        taken = lengths[0] + sum(2 + lengths[i] for i in blocks[-1])
        if blocks[-1] and taken + 2 + lengths[column] > width:
            blocks.append([])
        blocks[-1].append(column)
    cut = [[[row[i] for i in (0, *block)] for row in (header, *rows)] for block in blocks]
    return "\n\n".join(table(first, rest) for first, *rest in cut)


def parameters(params: dict[str, Any]) -> str:
    """Count the parameters of each part of a model, by what stands at the top of its tree."""

    def count(tree) -> int:
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

    counts = [(name, count(params[name])) for name in params]
    rows = [(name, f"{total:,}") for name, total in [*counts, ("all", count(params))]]
    return table(("parameters of", ""), rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown has it, whose cells are shown as they are."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def scores(results: Scores) -> str:
    """Show accuracies and their intervals: a row for each thing scored, a column for each score."""
    return table(*cells(results))


def cells(results: Scores) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of `scores`."""
    names = list(next(iter(results.values())))

    def percent(score: dict[str, float]) -> str:
        accuracy, low, high = (100 * score[key] for key in ("accuracy", "low", "high"))
        return f"{accuracy:.1f} ({low:.1f}-{high:.1f})"

    rows = [[thing, *(percent(found[name]) for name in names)] for thing, found in results.items()]
    return ["accuracy on held-out images, %", *names], rows
