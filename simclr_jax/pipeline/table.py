"""The table of a pipeline: accuracies by row and column, what they cost, what differs."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import tables
from simclr_jax.errors import UserError
from simclr_jax.evaluate import chance
from simclr_jax.reporting import record
from simclr_jax.train import progress, saved

STANDARD_ERRORS = 2  # within so many of 0 a mean difference is not separable from it
ROUGH = 3  # up to so many draws a standard deviation is a rough one


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run took.

    Attributes:
      parameters: of its encoder; None without a checkpoint.
      images_per_second: of training alone, the median over the log without its first line, whose
        clock starts late; None of a run too short to tell.
      minutes: from the first to the last line of log.txt, over all sessions: everything counts. The
        end of the run has sealed them; of one too old for that the log tells, None if it does not.
    """

    parameters: int | None
    images_per_second: float | None
    minutes: float | None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One accuracy in a cell.

    Attributes:
      name: of the run or probe.
      draw: of labels.
      accuracy: top-1, in [0, 1].
      level: that of always guessing the commonest class; None of a run too old to know it.
      cost: of the run; None of a probe.
    """

    row: str
    column: str
    name: str
    draw: int
    accuracy: float
    cost: Cost | None
    level: float | None = None


def cost(workdir: epath.PathLike, say: Callable[[str], object] = lambda line: None) -> Cost:
    """Read what a run took from its files; say what of them is damaged."""
    path, parameters = epath.Path(workdir), None
    try:
        leaves = saved.describe(str(path)).leaves
    except UserError as error:
        say(f"the size of the encoder of {path.name} is not known: {error}")
    else:
        encoder = [leaf.shape for name, leaf in leaves.items() if name.startswith("params/encoder")]
        parameters = sum(math.prod(shape) for shape in encoder)
    found = record.read(str(path))
    for sentence in found.damaged:
        say(f"{path.name}: {sentence}")
    minutes = (found.summary or {}).get("minutes")
    if minutes is None and (minutes := progress.minutes(path)) is None:
        say(f"the minutes that {path.name} took are not known: its {progress.LOG} does not tell")
    speed = found.curves.get("images_per_second")
    if found.gaps:
        speed = None
        say(f"the images a second of {path.name} are not known: its metrics have gaps")
    later = speed.values[1:] if speed else np.array([])
    return Cost(
        parameters=parameters,
        images_per_second=float(np.median(later)) if len(later) else None,
        minutes=minutes,
    )


def summarise(
    entries: Sequence[Entry], pairs: Sequence[tuple[str, str]], others: dict[str, Cost]
) -> dict[str, Any]:
    """Return what the table says, for JSON.

    Args:
      entries: of all cells.
      pairs: rows whose difference is asked for, the first minus the second.
      others: runs that stand in no row, such as pretraining, by name.
    """
    rows = dict.fromkeys(entry.row for entry in entries)
    columns = dict.fromkeys(entry.column for entry in entries)
    of = {row: [entry for entry in entries if entry.row == row] for row in rows}
    runs = {entry.name: entry.cost for entry in entries if entry.cost} | others
    return {
        "columns": [*columns],
        "level": _levels(entries),
        "rows": [{"row": row, "cells": _cells(of[row]), **_costs(of[row])} for row in rows],
        "differences": [
            {"row": a, "minus": b, "cells": _differences(of[a], of[b])} for a, b in pairs
        ],
        "other runs": {name: dataclasses.asdict(cost) for name, cost in others.items()},
        "minutes": sum(cost.minutes for cost in runs.values() if cost.minutes is not None),
        "runs": len(runs),
    }


def _cells(entries: Sequence[Entry]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for column in dict.fromkeys(entry.column for entry in entries):
        here = [entry for entry in entries if entry.column == column]
        each = [{"name": e.name, "draw": e.draw, "accuracy": e.accuracy} for e in here]
        cells[column] = {**_spread([e.accuracy for e in here]), "entries": each}
    return cells


def _levels(entries: Sequence[Entry]) -> dict[str, float]:
    """Return, for each column, what guessing the commonest class gives, as far as that is known."""
    found: dict[str, list[float]] = {}
    for entry in entries:
        if entry.level is not None:
            found.setdefault(entry.column, []).append(entry.level)
    return {column: statistics.fmean(values) for column, values in found.items()}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation over draws (None of one) and how many."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "n": len(values)}


def _costs(entries: Sequence[Entry]) -> dict[str, Any]:
    costs = [entry.cost for entry in entries if entry.cost]
    minutes = [cost.minutes for cost in costs if cost.minutes is not None]
    return {
        "parameters": sorted({c.parameters for c in costs if c.parameters is not None}),
        "images_per_second": _median([c.images_per_second for c in costs]),
        "minutes": statistics.fmean(minutes) if minutes else None,
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _differences(a: Sequence[Entry], b: Sequence[Entry]) -> dict[str, Any]:
    """Return, for each column, mean and spread of the differences between same draws."""
    cells: dict[str, Any] = {}
    for column in dict.fromkeys(entry.column for entry in a):
        there = {e.draw: e.accuracy for e in b if e.column == column}
        here = {e.draw: e.accuracy for e in a if e.column == column and e.draw in there}
        if not here:
            continue
        found = _spread([here[draw] - there[draw] for draw in here])
        error = None if found["std"] is None else found["std"] / math.sqrt(found["n"])
        separable = None if error is None else abs(found["mean"]) > STANDARD_ERRORS * error
        cells[column] = {**found, "separable": separable}
    return cells


def lines(summary: dict[str, Any]) -> list[str]:
    """Show a summary: accuracies and costs, differences, and what the signs mean."""
    columns = summary["columns"]
    header = ("accuracy, %", *columns, "encoder", "images/s", "minutes a run")
    rows = [
        (
            row["row"],
            *_row(row["cells"], columns, _cell),
            "/".join(f"{count:,}" for count in row["parameters"]) or "-",
            _number(row["images_per_second"], "{:.0f}"),
            _number(row["minutes"], "{:.1f}"),
        )
        for row in summary["rows"]
    ]
    if level := summary["level"]:
        cells = (f"{100 * level[c]:.1f}" if c in level else "-" for c in columns)
        rows.append((chance.COMMONEST, *cells, "-", "-", "-"))
    for name, took in summary["other runs"].items():
        speed = _number(took["images_per_second"], "{:.0f}")
        size = _number(took["parameters"], "{:,}")
        minutes = _number(took["minutes"], "{:.1f}")
        rows.append((name, *"-" * len(columns), size, speed, minutes))
    found = ["", tables.table(header, rows)]
    if summary["differences"]:
        header = ("paired differences, points", *columns)
        rows = [
            (f"{d['row']} - {d['minus']}", *_row(d["cells"], columns, _difference))
            for d in summary["differences"]
        ]
        found += ["", tables.table(header, rows)]
    return [*found, "", *_by_chance(summary), *_legend(summary)]


def _by_chance(summary: dict[str, Any]) -> list[str]:
    """Return a note for each cell that is not above what guessing gives."""
    level = summary["level"]
    return [
        "note      " + chance.sentence(f"{row['row']}, {column}", cell["mean"], level[column])
        for row in summary["rows"]
        for column, cell in row["cells"].items()
        if column in level and cell["mean"] <= level[column]
    ]


def _legend(summary: dict[str, Any]) -> list[str]:
    draws = {cell["n"] for row in summary["rows"] for cell in row["cells"].values()}
    told = [
        "mean ± standard deviation over draws of labels (how many); encoder: its parameters; "
        f"all {summary['runs']} runs: {summary['minutes']:.1f} minutes"
    ]
    if summary["differences"]:
        told.append(
            "differences are between same draws; ns: not separable, the mean is within "
            f"{STANDARD_ERRORS} standard errors of 0"
        )
        if min(draws) == 1:
            told.append("a single draw has no spread: what it shows may be chance")
        elif min(draws) <= ROUGH:
            told.append(f"with {min(draws)} draws the spread, and so what is separable, is rough")
    return told


def _row(
    cells: dict[str, Any], columns: Sequence[str], show: Callable[[dict[str, Any]], str]
) -> list[str]:
    return [show(cells[column]) if column in cells else "-" for column in columns]


def _cell(cell: dict[str, Any]) -> str:
    spread = "" if cell["std"] is None else f" ± {100 * cell['std']:.1f}"
    return f"{100 * cell['mean']:.1f}{spread} ({cell['n']})"


def _difference(cell: dict[str, Any]) -> str:
    spread = "" if cell["std"] is None else f" ± {100 * cell['std']:.1f}"
    return f"{100 * cell['mean']:+.1f}{spread}{' ns' if cell['separable'] is False else ''}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
