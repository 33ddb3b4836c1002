"""Tables for the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

Scores = dict[str, dict[str, dict[str, float]]]  # of each thing scored, by the name of the score

WIDTH = 80  # of a terminal, or of a mail, whatever the one is that prints
GAP = 2  # between two columns
LEAST = 6  # letters to which a column of words may be narrowed


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """Align columns, the first `text` of them to the left and the others to the right.

    No line is longer than `WIDTH`. Where there is no room, titles and long words are broken into
    lines, and columns that are still too many follow below, beside the words of their rows again.

    Args:
      header: titles of the columns.
      rows: cells, as many in each row.
      text: columns of words, which say what a row is about.
    """
    lines = [header, *rows]
    if sum(_widths(lines)) + GAP * (len(header) - 1) <= WIDTH:
        return _aligned([[[cell] for cell in row] for row in lines], text)
    least = _widths([[_longest_word(title) for title in header], *rows])
    numbers = [min(WIDTH // 2, width) for width in least[text:]]
    beside = sorted(numbers)[-2:]  # at least so many of them beside the words
    room = max(WIDTH - GAP * len(beside) - sum(beside), WIDTH // 2)
    limits = [*_narrowed(least[:text], room - GAP * (text - 1)), *numbers]
    broken = [
        [_broken(cell, limit) for cell, limit in zip(row, limits, strict=True)] for row in lines
    ]
    widths = [max(len(part) for row in broken for part in row[i]) for i in range(len(header))]
    return "\n\n".join(
        _aligned([[row[i] for i in columns] for row in broken], text)
        for columns in _blocks(widths, text)
    )


def common(
    header: Sequence[str], rows: Sequence[Sequence[str]], text: int
) -> tuple[str, list[str], list[list[str]], int]:
    """Take columns of words that are the same in all rows out of a table.

    Args:
      header, rows, text: see `table`.

    Returns:
      A line that says what is the same, "" for nothing; the header and the rows without it; and how
      many columns of words are left, one at least.
    """
    same = [i for i in range(text) if len({row[i] for row in rows}) == 1]
    if len(same) == text:
        same.pop(0)
    said = ", ".join(f"{header[i]} {rows[0][i]}" for i in same if rows[0][i])
    left = [i for i in range(len(header)) if i not in same]
    return (
        said,
        [header[i] for i in left],
        [[row[i] for i in left] for row in rows],
        text - len(same),
    )


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(row[i]) for row in lines) for i in range(len(lines[0]))]


def _longest_word(title: str) -> str:
    return max(title.split(), key=len, default="")


def _narrowed(widths: Sequence[int], room: int) -> list[int]:
    """Narrow the widest columns until all fit into `room`, none of them below `LEAST`."""
    found = list(widths)
    while sum(found) > room and max(found) > LEAST:
        found[found.index(max(found))] -= 1
    return found


def _broken(cell: str, width: int) -> list[str]:
    """Break a cell into lines at its spaces, and what is longer after marks of punctuation."""
    lines = [""]
    for word in re.findall(r"\S+|\s+", cell):
        pieces = [word] if len(word) <= width else re.findall(r"[^/\-_,]*[/\-_,]?", word)
        for piece in pieces:
            if len(lines[-1] + piece.rstrip()) > width and lines[-1]:
                lines.append("")
            while len(piece.rstrip()) > width:
                lines[-1], piece = piece[:width], piece[width:]
                lines.append("")
            lines[-1] += piece
    return [line.strip() for line in lines]


def _blocks(widths: Sequence[int], text: int) -> list[list[int]]:
    """Divide columns into as many as fit beside each other, those of words being in all."""
    words = list(range(text))
    used = sum(widths[:text]) + GAP * (text - 1)
    blocks, room = [list(words)], WIDTH - used
    for i in range(text, len(widths)):
        if widths[i] + GAP > room and len(blocks[-1]) > text:
            blocks.append(list(words))
            room = WIDTH - used
        blocks[-1].append(i)
        room -= widths[i] + GAP
    return blocks


def _aligned(rows: Sequence[Sequence[Sequence[str]]], text: int) -> str:
    """Align cells that have lines: titles end, and rows begin, on the same line."""
    widths = [max(len(part) for row in rows for part in row[i]) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        height = max(map(len, row))
        cells = [
            [*[""] * (height - len(cell)), *cell] if number == 0 else [*cell, *[""] * height]
            for cell in row
        ]
        for at in range(height):
            parts = [
                cell[at].ljust(width) if i < text else cell[at].rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            lines.append((" " * GAP).join(parts).rstrip())
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
