"""Operations on images that methods other than SimCLR add, against recordings of official code.

A recording says by its `kind` what was run. The folders are those that `SIMCLR_GOLDEN` names, with
the separator of paths between them, else `../shared/golden_methods` beside the checkout.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import golden
import jax
import numpy as np
import pytest

from simclr_jax.augment import color, geometry, on_host

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "golden_methods"


def folders() -> list[Path]:
    named = os.environ.get("SIMCLR_GOLDEN", "").split(os.pathsep)
    return [*[Path(name) for name in named if name], BESIDE]


@functools.cache
def every() -> tuple[golden.Recording, ...]:
    found = []
    for path in (path for folder in folders() for path in sorted(folder.glob("*.npz"))):
        with np.load(path) as file:
            found.append(golden.Recording(path, json.loads(str(file["spec_json"]))))
    return tuple(found)


def recordings(kind: str) -> list:
    """Return pytest parameters: all recordings of a kind, or one that is skipped."""
    found = {recording.name: recording for recording in every() if recording.spec["kind"] == kind}
    if not found:
        reason = f"no {kind} recording in {', '.join(map(str, folders()))}"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="none")]
    return [pytest.param(recording, id=recording.path.stem) for recording in found.values()]


@pytest.mark.parametrize("placement", ["device", "host"])
@pytest.mark.parametrize("recording", recordings("solarize"))
def test_solarize(recording, placement, record_parity):
    if placement == "host":
        pytest.importorskip("tensorflow")
    solarize = {"device": color.solarize, "host": on_host.solarize}[placement]
    threshold = recording.settings["threshold"]
    image, official = recording.arrays["image"], recording.arrays["out"]
    # The recording is in float64: a value that rounds onto the threshold is decided otherwise.
    certain = np.abs(image - threshold) > golden.EPS32
    assert certain.any() and (official != image).any() and (official == image).any()
    ours = np.asarray(solarize(image.astype(np.float32), threshold))
    error = np.abs(ours - official)[certain].max()
    kind = "solarize" if placement == "device" else "solarize (host)"
    record_parity(kind, recording.name, error, golden.EPS32)


@pytest.mark.parametrize("recording", recordings("rotation"))
def test_rotation(recording, record_parity):
    image, official = recording.arrays["image"], recording.arrays["images"]
    turns = np.asarray(jax.jit(geometry.quarter_turns)(image[None]))[0]
    ours = turns[recording.arrays["labels"]].astype(float)
    record_parity("rotation", recording.name, np.abs(ours - official).max(), 0.0)
