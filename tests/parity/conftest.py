"""Collect what the parity tests measure, and end the session with a table."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import golden
import jax
import pytest

_KEY = "parity"
_LINE = "{:<18}{:<10}{:>5}{:>10}{:>11}{:>11}  {}"
_STRICT = 1e-8  # tolerances below are for float64
_measured: list[tuple[str, str, float, float]] = []  # kind, file, error, tolerance
_failed: list[str] = []


@pytest.fixture
def record_parity(record_property) -> Callable[[str, str, float, float], None]:
    """Return `record(kind, file, error, tolerance)`: enter the table, then fail above tolerance."""

    def record(kind: str, file: str, error: float, tolerance: float) -> None:
        # As a property of the test it also reaches the session from the processes of xdist.
        record_property(_KEY, (kind, file, float(error), float(tolerance)))
        assert error <= tolerance, f"{kind} {file}: error {error:.3g} above {tolerance:.3g}"

    return record


def pytest_runtest_logreport(report):
    if report.when == "call":
        _measured.extend(tuple(value) for key, value in report.user_properties if key == _KEY)
    if report.failed and "parity/" in report.nodeid:
        _failed.append(report.nodeid)


def _row(kind: str, found: int, strict: bool) -> str | None:
    """Return the line of a kind for what was recorded in float64 (`strict`) or in float32."""
    chosen = [m for m in _measured if m[0] == kind and (m[3] < _STRICT) == strict]
    if not chosen:
        return None
    # Tolerances differ between arrays: shown is the comparison closest to its own. An error of
    # NaN is within no tolerance.
    worst = max(chosen, key=lambda m: (not m[2] <= m[3], m[2] / (m[3] or 1.0)))
    passed = "yes" if all(m[2] <= m[3] for m in chosen) else "NO"
    compared, recorded = len({m[1] for m in chosen}), "float64" if strict else "float32"
    errors = f"{worst[2]:.2g}", f"{worst[3]:.2g}"
    return _LINE.format(kind, recorded, found, compared, *errors, passed)


def _table() -> Iterator[str]:
    """Yield a line per kind, then what failed and the recordings that cannot be compared yet."""
    found = collections.Counter(r.spec["kind"] for r in golden.recordings())
    yield _LINE.format("kind", "recorded", "files", "compared", "max error", "tolerance", "pass")
    for kind in sorted(found | collections.Counter(m[0] for m in _measured)):
        files = found[kind.partition(" (")[0]]  # "augment_op (host)" is compared with the same ones
        rows = [_row(kind, files, strict) for strict in (True, False)]
        none = _LINE.format(kind, "", files, 0, "", "", "").rstrip()
        yield from filter(None, rows) if any(rows) else [none]
    yield from (f"failed: {node}" for node in _failed)


def pytest_terminal_summary(terminalreporter):
    if not _measured and not _failed:
        return
    precision = "float64" if jax.config.jax_enable_x64 else "float32"
    lines = [f"parity with the official recordings, computed in {precision}", *_table()]
    terminalreporter.section("parity")
    terminalreporter.write_line("\n".join(lines))
    if target := os.environ.get("SIMCLR_PARITY_TABLE"):
        with Path(target).open("a") as file:  # the float32 and the float64 process both write
            file.write("\n".join([*lines, "", ""]))
