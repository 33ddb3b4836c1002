"""Recordings of the official code: where they lie, how their inputs are made, how to compare.

A recording is one `.npz` file with a `spec_json`; large inputs are not stored but made by `fill`,
and large results are stored as digests: norms and random projections. The tests dispatch on what
`spec_json` says and on nothing else, so that they run unchanged on any other folder of recordings
made the same way (`SIMCLR_GOLDEN`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import os
import re
import zlib
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded
from recorded import Flags, Settings

_OWN = Path(__file__).resolve().parents[1] / "golden"
EPS32, EPS64 = float(np.finfo(np.float32).eps), float(np.finfo(np.float64).eps)
EVERYTHING = os.environ.get("SIMCLR_PARITY") == "all"
SLOW = pytest.mark.skip(reason="slow: runs under SIMCLR_PARITY=all")


def folders() -> list[Path]:
    """Return the folders of recordings: those that `SIMCLR_GOLDEN` names, else `tests/golden`.

    Several have the separator of paths between them, as in `PATH`.
    """
    named = os.environ.get("SIMCLR_GOLDEN", "").split(os.pathsep)
    return [Path(name) for name in named if name] or [_OWN]


def places() -> str:
    """Name the folders of recordings, for a message."""
    return ", ".join(map(str, folders()))


@dataclasses.dataclass(frozen=True)
class Recording:
    """One file: `spec` is its `spec_json`; arrays are read when asked for."""

    path: Path
    spec: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.name

    @functools.cached_property
    def settings(self) -> Settings:
        given = self.spec["settings"]
        return given if isinstance(given, Settings) else Settings(given)

    @property
    def flags(self) -> Flags:
        """Flags of the official program; some recordings keep them among the settings."""
        groups = [self.settings[name] for name in ("flags", "base") if name in self.settings]
        return Flags((groups or [self.settings])[0], self.spec["flavour"])

    def with_settings(self, **changes: Any) -> Recording:
        """Return a recording with other settings; what is read of it is read of this one."""
        return dataclasses.replace(self, spec=self.spec | {"settings": self.settings | changes})

    @property
    def cifar_stem(self) -> bool:
        """Tell the stem: officially that of small images, if the recording does not say."""
        if "cifar_stem" in self.settings:
            return self.settings["cifar_stem"]
        return self.flags["image_size"] <= 32

    def check_all_read(self) -> None:
        """Fail if there is a setting that neither was read so far nor merely explains."""
        unknown = recorded.unknown(self.spec["kind"], self.settings)
        assert not unknown, f"{self.name}: nothing reads the setting {'; '.join(unknown)}"

    @property
    def tf1(self) -> bool:
        return self.spec["flavour"] == "tf1"

    @property
    def variables(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and fill law of each official variable, in the official order."""
        return {name: (tuple(shape), law) for name, shape, law in self.spec.get("variables", ())}

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.path) as file:
            return {key: file[key] for key in file.files if key != "spec_json"}

    def fill(self, name: str, shape: Iterable[int], law: str) -> np.ndarray:
        return fill(name, tuple(shape), self.spec["seed"], law)

    def filled(self) -> dict[str, np.ndarray]:
        """Return the values of all variables."""
        return {name: self.fill(name, *how) for name, how in self.variables.items()}


@functools.cache
def recordings() -> tuple[Recording, ...]:
    """Return every recording in the folders, by name.

    Raises:
      FileNotFoundError: if there is none, which would make every test pass.
    """
    found = [read(path) for folder in folders() for path in sorted(folder.glob("*.npz"))]
    if not found:
        raise FileNotFoundError(f"no recordings in {places()} (SIMCLR_GOLDEN names other folders)")
    return tuple(found)


def read(path: Path) -> Recording:
    with np.load(path) as file:
        return Recording(path, json.loads(str(file["spec_json"])))


def kinds() -> collections.Counter[str]:
    """Return how many recordings there are of each kind."""
    return collections.Counter(recording.spec["kind"] for recording in recordings())


ASKED: set[Path] = set()  # recordings that some test has asked for


def cases(kind: str, wanted: Callable[[Recording], bool] = lambda _: True) -> list:
    """Return pytest parameters: the recordings of a kind, or one that is skipped.

    Raises:
      ValueError: if the kind is among those that have no tests.
    """
    if kind in recorded.NOT_YET or kind not in recorded.EXPLAINED:
        raise ValueError(f"{kind} is tested: move it from NOT_YET to EXPLAINED in recorded.py")
    chosen = [r for r in recordings() if r.spec["kind"] == kind and wanted(r)]
    ASKED.update(r.path for r in chosen)
    if not chosen:
        reason = f"no such {kind} recording in {places()}"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="none")]
    return [pytest.param(recording, id=recording.path.stem) for recording in chosen]


def untested() -> list[str]:
    """Return the recordings that no test asked for, though their kind is not said to have none."""
    kept = (r for r in recordings() if r.spec["kind"] not in recorded.NOT_YET)
    return [recording.name for recording in kept if recording.path not in ASKED]


def only(parameters: list, names: Container[str]) -> list:
    """Return the parameters, all but these recordings skipped unless `SIMCLR_PARITY=all`."""
    return [
        p
        if EVERYTHING or p.values[0] is None or p.values[0].name in names
        else pytest.param(*p.values, marks=SLOW, id=p.id)
        for p in parameters
    ]


def deep_ones_slow(parameters: list) -> list:
    """Return the parameters, those of encoders of 50 layers or more marked `slow`."""
    return [
        pytest.param(*p.values, marks=[*p.marks, pytest.mark.slow], id=p.id)
        if p.values[0] is not None and p.values[0].flags["resnet_depth"] >= 50
        else p
        for p in parameters
    ]


def fill(name: str, shape: tuple[int, ...], seed: int, law: str) -> np.ndarray:
    """Make an input by the frozen rule of the recordings: float32, a function of name and seed."""
    stream = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode()) & 0x7FFFFFFF)
    if law == "uniform":
        return stream.uniform(0.0, 1.0, size=shape).astype(np.float32)
    x = stream.standard_normal(size=shape)
    if law == "kernel":
        x = x * np.sqrt(2.0 / max(1, int(np.prod(shape[:-1]))))
    elif law == "gamma":
        x = 1.0 + 0.1 * x
    elif law in ("beta", "bias", "moving_mean"):
        x = 0.1 * x
    elif law == "moving_variance":
        x = np.exp(0.2 * x)
    elif law != "normal":
        raise ValueError(law)
    return x.astype(np.float32)


def formula(text: str) -> tuple[str, tuple[int, ...], str]:
    """Read name, shape and law out of a formula such as `fill('images', (2,8,8,3), seed, 'x')`."""
    found = re.search(r"fill\('([^']+)', \(([\d, ]+)\),(?: seed,)? '(\w+)'\)", text)
    if not found:
        raise ValueError(f"no formula that makes numbers: {text}")
    name, shape, law = found.groups()
    return name, tuple(int(n) for n in shape.split(",")), law


def error(got: Any, want: np.ndarray, floor: float = 0.0) -> float:
    """Return the largest difference relative to the largest entry of `want` (at least `floor`)."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    scale = max(float(np.max(np.abs(want), initial=0.0)), floor)
    return float(np.max(np.abs(got - want), initial=0.0)) / (scale or 1.0)


def float32_tolerance(sensitivity: float, roundings: int = 16) -> float:
    """Return what two correct float32 programs may differ by, relative to the largest entry.

    `sensitivity` is how far the recorded program moved when its sums were reordered or made in
    float64: one sample of its noise. 8 samples cover the noise of both programs; some roundings
    cover a sensitivity that happened to come out as 0.
    """
    return max(8 * sensitivity, roundings * EPS32)


@dataclasses.dataclass
class Digests:
    """Norms `[v]` and random projections `[v, 4]` of v arrays."""

    norm: np.ndarray
    dots: np.ndarray

    @classmethod
    def stored(cls, recording: Recording, key: str) -> Digests:
        """Read `{key}_norm` and `{key}_dots`; a row of NaN, no gradient, is a gradient of zero."""
        norm, dots = recording.arrays[f"{key}_norm"], recording.arrays[f"{key}_dots"]
        return cls(np.nan_to_num(norm, nan=0.0), np.nan_to_num(dots, nan=0.0))

    def error(self, want: Digests) -> float:
        """Return the largest difference relative to the norm of the same array.

        A projection on a standard normal probe has about the size of the norm, so a relative error
        of the array shows up as itself in each of the four. Norms below 1e-9 of the largest one
        count as that: they are rounding noise.
        """
        scale = np.maximum(want.norm, 1e-9 * np.max(want.norm, initial=0.0))
        scale[scale == 0] = 1.0
        projected = np.max(np.abs(self.dots - want.dots), axis=1)
        difference = np.maximum(np.abs(self.norm - want.norm), projected)
        return float(np.max(difference / scale, initial=0.0))


def digest(recording: Recording, names: Iterable[str], *sets: Mapping[str, Any]) -> list[Digests]:
    """Digest several sets of arrays with the same names, making each probe once.

    A name that a set lacks counts as zero there.
    """
    rows: list[list] = [[] for _ in sets]
    for name in names:
        shape = next(np.shape(values[name]) for values in sets if name in values)
        probes = np.stack(
            [recording.fill(f"probe{j}/{name}", shape, "normal").ravel() for j in range(4)]
        ).astype(np.float64)
        for row, values in zip(rows, sets, strict=True):
            x = np.asarray(values.get(name, np.zeros(shape)), np.float64).ravel()
            row.append([np.linalg.norm(x), *(probes @ x)])
    tables = [np.array(row).reshape(-1, 5) for row in rows]
    return [Digests(table[:, 0], table[:, 1:]) for table in tables]
