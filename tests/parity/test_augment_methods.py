"""Operations on images that methods other than SimCLR add, against recordings of official code."""

from __future__ import annotations

import golden
import jax
import numpy as np
import pytest

from simclr_jax.augment import color, geometry, on_host


@pytest.mark.parametrize("placement", ["device", "host"])
@pytest.mark.parametrize("recording", golden.cases("solarize"))
def test_solarize(recording, placement, record_parity):
    if placement == "host":
        pytest.importorskip("tensorflow")
    solarize = {"device": color.solarize, "host": on_host.solarize}[placement]
    threshold = recording.settings["threshold"]
    image, official = recording.arrays["image"], recording.arrays["out"]
    # The recording is in float64: a value that rounds onto the threshold is decided otherwise.
    certain = np.abs(image - threshold) > golden.EPS32
    assert certain.any()
    ours = np.asarray(solarize(image.astype(np.float32), threshold))
    error = np.abs(ours - official)[certain].max()
    kind = "solarize" if placement == "device" else "solarize (host)"
    record_parity(kind, recording.name, error, golden.EPS32)


@pytest.mark.parametrize("recording", golden.cases("rotation"))
def test_rotation(recording, record_parity):
    image, official = recording.arrays["image"], recording.arrays["images"]
    turns = np.asarray(jax.jit(geometry.quarter_turns)(image[None]))[0]
    ours = turns[recording.arrays["labels"]].astype(float)
    record_parity("rotation", recording.name, np.abs(ours - official).max(), 0.0)
