"""What an encoder is shown of an image, against recordings of official code."""

from __future__ import annotations

import golden
import jax
import jax.numpy as jnp
import pytest

from simclr_jax.models.inputs import INPUTS


@pytest.mark.x64
@pytest.mark.parametrize("recording", golden.cases("rgb2lab"))
def test_lightness(recording, record_parity):
    official = recording.arrays["lab"][..., :1] / 100
    ours = jax.jit(INPUTS["lightness"])(jnp.asarray(recording.arrays["image"]))
    record_parity("rgb2lab", recording.name, golden.error(ours, official), 1e-12, "float64")
