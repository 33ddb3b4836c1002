"""Recordings made by a test: the suite must judge them as it judges those of the official code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import golden
import numpy as np


def write(
    folder: Path,
    kind: str,
    settings: Mapping[str, Any],
    arrays: Mapping[str, Any],
    flavour: str = "tf1",
    **spec: Any,
) -> golden.Recording:
    """Write a recording in the format of the official ones; read it back."""
    path = folder / f"{kind}-{flavour}-made.npz"
    made = {"kind": kind, "flavour": flavour, "case": "made", "source": "a test", "seed": 3}
    made |= {"settings": settings} | spec
    np.savez(path, spec_json=np.array(json.dumps(made)), **arrays)
    return golden.read(path)


def judge(test: Callable[..., None], recording: golden.Recording, **arguments: Any) -> int:
    """Run a test of the suite on a recording as pytest does; return how much it compared.

    Raises:
      AssertionError: if something differs, or a setting is not known.
    """
    compared = 0

    def record(kind: str, file: str, error: float, tolerance: float, recorded: str = "") -> None:
        nonlocal compared
        compared += 1
        assert error <= tolerance, f"{kind} {file}: error {error:.3g} above {tolerance:.3g}"

    recording.settings.seen.clear()
    test(recording=recording, record_parity=record, **arguments)
    recording.check_all_read()
    return compared


def digests(recording: golden.Recording, key: str, values: Mapping[str, np.ndarray]) -> dict:
    """Return a table of digests as it is stored, a row for each variable, NaN for what has none."""
    rows = []
    for name, (shape, _) in recording.variables.items():
        if name not in values:
            rows.append([np.nan] * 5)
            continue
        x = np.asarray(values[name], np.float64)
        probes = [recording.fill(f"probe{j}/{name}", shape, "normal") for j in range(4)]
        rows.append([np.linalg.norm(x), *(np.sum(probe * x) for probe in probes)])
    table = np.array(rows)
    return {f"{key}_norm": table[:, 0], f"{key}_dots": table[:, 1:]}


def slope(function: Callable[[np.ndarray], float], x: np.ndarray, by: float = 1e-5) -> np.ndarray:
    """Return the gradient of a function of float64 numbers by central differences."""
    gradient = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][place] -= by
        moved[1][place] += by
        gradient[place] = (function(moved[1]) - function(moved[0])) / (2 * by)
    return gradient
