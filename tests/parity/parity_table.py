"""Collect what the parity tests measure, and end the session with a table.

A pytest plugin: with pytest-xdist the workers measure and the controller, which collects no tests,
writes the table from their reports.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import golden
import jax
import pytest
import recorded

_KEY = "parity"
_BY_KIND = "{:<18}{:<10}{:>5}{:>10}{:>11}{:>11}  {}"
_BY_FILE = "{:<54}{:<10}{:>11}{:>11}  {}"


class Measured(NamedTuple):
    """One comparison; `recorded` is the precision of the recording, "float32" or "float64"."""

    kind: str
    file: str
    error: float
    tolerance: float
    recorded: str

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # NaN is within no tolerance


_measured: list[Measured] = []
_failed: list[str] = []
_skipped: list[tuple[str, str]] = []  # node, reason


@pytest.fixture
def record_parity(record_property) -> Callable[..., None]:
    """Return `record(kind, file, error, tolerance, recorded="float32")`.

    It enters a comparison into the table, and fails above tolerance.
    """

    def record(
        kind: str, file: str, error: float, tolerance: float, recorded: str = "float32"
    ) -> None:
        # As a property of the test it also reaches the session from the processes of xdist.
        record_property(_KEY, (kind, file, float(error), float(tolerance), recorded))
        assert error <= tolerance, f"{kind} {file}: error {error:.3g} above {tolerance:.3g}"

    return record


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Fail a test that compares a recording but does not read every setting of it."""
    recording = pyfuncitem.funcargs.get("recording")
    compares = recording is not None and "record_parity" in pyfuncitem.funcargs
    if compares:
        recording.settings.seen.clear()  # what other tests read
    result = yield
    if compares:
        recording.check_all_read()
    return result


def pytest_runtest_logreport(report):
    if report.when == "call":
        _measured.extend(Measured(*value) for key, value in report.user_properties if key == _KEY)
    if "parity/" not in report.nodeid:
        return
    if report.failed:
        _failed.append(report.nodeid)
    if report.skipped and isinstance(report.longrepr, tuple):
        _skipped.append((report.nodeid, report.longrepr[-1].removeprefix("Skipped: ")))


def _worst(measured: list[Measured]) -> Measured:
    """Return the comparison to show for several: a failed one, an exact one, the closest call."""
    return max(
        measured,
        key=lambda m: (not m.passed, m.recorded == "float64", m.error / (m.tolerance or 1.0)),
    )


def _verdict(measured: list[Measured]) -> tuple[str, str, str]:
    worst = _worst(measured)
    passed = "yes" if all(m.passed for m in measured) else "NO"
    return f"{worst.error:.2g}", f"{worst.tolerance:.2g}", passed


def _grouped(*fields: str) -> dict[tuple[str, ...], list[Measured]]:
    groups: dict[tuple[str, ...], list[Measured]] = {}
    for m in _measured:
        groups.setdefault(tuple(getattr(m, field) for field in fields), []).append(m)
    return dict(sorted(groups.items()))


def _by_kind() -> Iterator[str]:
    """Yield a line for each kind and precision of recording that this process compared."""
    yield _BY_KIND.format("kind", "recorded", "files", "compared", "max error", "tolerance", "pass")
    for (kind, precision), measured in _grouped("kind", "recorded").items():
        compared = {m.file for m in measured}
        own = kind.partition(" (")[0]  # "augment_op (host)" is compared with the same files
        files = compared | {r.name for r in golden.recordings() if r.spec["kind"] == own}
        yield _BY_KIND.format(kind, precision, len(files), len(compared), *_verdict(measured))


def _by_file() -> Iterator[str]:
    """Yield a line per recording by kind, then those that were not compared, and why."""
    yield _BY_FILE.format("file", "recorded", "max error", "tolerance", "pass")
    by_file = _grouped("kind", "file")
    kinds = {kind for kind, _ in by_file}
    for kind in sorted(kinds):
        yield f"{kind}:"
        for (_, file), measured in ((k, v) for k, v in by_file.items() if k[0] == kind):
            yield _BY_FILE.format(f"  {file}", _worst(measured).recorded, *_verdict(measured))
    yield from (f"skipped: {node.partition('[')[2][:-1]}: {why}" for node, why in _skipped)
    tested = golden.kinds().keys() - recorded.NOT_YET - kinds
    for kind in sorted(tested):
        yield f"not in this process: {golden.kinds()[kind]} of kind {kind}"


def _not_yet() -> dict[str, int]:
    """Return the numbers of recordings, by kind, of methods that are not here."""
    return {kind: n for kind, n in sorted(golden.kinds().items()) if kind in recorded.NOT_YET}


def pytest_terminal_summary(terminalreporter, config):
    worker = hasattr(config, "workerinput")  # of xdist: the controller has all of it
    if worker or not (_measured or _failed):
        return
    precision = "float64" if jax.config.jax_enable_x64 else "float32"
    title = f"parity with the official recordings, computed in {precision}"
    failed = [f"failed: {node}" for node in _failed]
    not_yet = _not_yet()
    each = [f"of a method that is not here yet: {n} of kind {kind}" for kind, n in not_yet.items()]
    files, of = sum(not_yet.values()), len(not_yet)
    total = f"of methods that are not here yet: {files} files of {of} kinds"
    full = [title, *_by_file(), *each, *failed]
    short = [title, *_by_kind(), *([total] if not_yet else []), *failed]
    terminalreporter.section("parity")
    terminalreporter.write_line("\n".join(full if golden.EVERYTHING else short))
    if target := os.environ.get("SIMCLR_PARITY_TABLE"):
        with Path(target).open("a") as file:  # the float32 and the float64 process both write
            file.write("\n".join([*full, "", ""]))
