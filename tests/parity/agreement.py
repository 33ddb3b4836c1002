"""What of a trajectory is recorded, how well, and what a correct program may differ by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import golden
import numpy as np

ROUNDINGS = 16  # about what a layer's sums lose


def stored(recording: golden.Recording, key: str) -> str:
    """Return the key of the float64 array, if there is one."""
    return f"{key}64" if {f"{key}64", f"{key}64_norm"} & set(recording.arrays) else key


def wanted(recording: golden.Recording, key: str, step: int) -> np.ndarray | golden.Digests:
    key = stored(recording, key)
    if f"{key}_norm" in recording.arrays:
        return golden.Digests.stored(recording, key)
    return recording.arrays[key] if key.startswith("eval_") else recording.arrays[key][step]


def results(recording: golden.Recording) -> set[str]:
    """Return the keys of everything recorded that the steps came to."""
    digests = {key.removesuffix("_norm") for key in recording.arrays if key.endswith("_norm")}
    tables = ("norm", "dots", "head", "err", "sensitivity")
    parts = {f"{key}_{table}" for key in digests for table in tables}
    given = {"labels", "learning_rate", "learning_rates", "init_var", "last_var_sensitivity"}
    return {key.removesuffix("64") for key in (set(recording.arrays) - parts) | digests} - given


def difference(got: Any, want: Any) -> float:
    return got.error(want) if isinstance(got, golden.Digests) else golden.error(got, want)


def exact(recording: golden.Recording, key: str) -> bool:
    """Tell whether an array is good to float64.

    TensorFlow 1 averages losses in float32, whatever the program computes in. TensorFlow 2 does so
    with metrics such as accuracies, which shows: every number is one of float32.
    """
    wide = stored(recording, key)
    if wide == key or (recording.tf1 and key in ("losses", "contrastive_losses")):
        return False
    values = recording.arrays.get(wide, np.zeros(0))  # digests are made in float64
    return not values.any() or not np.array_equal(values, values.astype(np.float32))


def noise(recording: golden.Recording, key: str, step: int) -> float:
    """Return the recorded relative difference between the official float32 and float64 runs."""
    recorded = recording.spec["sensitivity"]
    if not recording.tf1:
        return recorded[key]
    if key.endswith("_var"):
        by_step = recorded.get("var_max_per_step")
        return by_step[step] if by_step else recorded["last_var"]
    if key.endswith("losses"):
        return np.broadcast_to(recorded["losses"], recording.settings["steps"])[step]
    return recorded["momentum_max" if key == "momentum" else key]


def tolerance(recording: golden.Recording, key: str, step: int, rounding: float) -> float:
    """Return what the official program and a correct one may differ by, relatively.

    A gradient without weight decay, a mean loss or another momentum are wrong by 1e-4 to 1. Steps
    multiply the differences that rounding made before, in some networks by hundreds each:
    `rounding` is what they came to here from initial values off by `ROUNDINGS` of the recorded
    precision. In float64, however large that is, it excuses no more than what the official program
    measured of itself in float32. In float32 it is another sample of the noise: in the recorded one
    no ReLU need have changed sides.
    """
    recorded = noise(recording, key, step)
    if stored(recording, key) == key:
        return golden.float32_tolerance(max(recorded, rounding))
    least = 1e-10 if exact(recording, key) else 4 * golden.EPS32
    return max(least, 8 * min(rounding, recorded))


def compare(
    recording: golden.Recording,
    run: Callable[..., Iterator[dict[str, Any]]],
    record: Callable[..., None],
) -> None:
    """Enter every recorded result of every step into the table; fail above tolerance.

    What rounding does here is measured, by a second run, only for what differs by more than it may
    without that.
    """
    in_float64 = any("64" in key for key in recording.arrays)
    blur = ROUNDINGS * (golden.EPS64 if in_float64 else golden.EPS32)
    off: list[dict[str, Any]] = []
    compared = set()
    for step, found in enumerate(run()):
        for key, value in found.items():
            error = difference(value, wanted(recording, key, step))
            limit = tolerance(recording, key, step, 0.0)
            if error > limit:
                off = off or list(run(blur))
                limit = tolerance(recording, key, step, difference(off[step][key], value))
            precision = "float64" if exact(recording, key) else "float32"
            record(recording.spec["kind"], recording.name, error, limit, precision)
        compared |= set(found)
    assert compared == results(recording)
