"""False negative cancellation against its official code, and a float64 reference (elimination)."""

from __future__ import annotations

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.losses.false_negatives import false_negative_cancellation

pytestmark = pytest.mark.x64


def by_view(recording, name):
    """Return a recorded array `[V n, d]`, whose rows are view-major, as `[V, n, d]` in float64."""
    settings, x = recording.settings, recording.arrays[name].astype(np.float64)
    assert settings["views"] == 2 + settings["support"], recording.name
    assert x.shape == (settings["views"] * settings["n"], settings["dim"]), recording.name
    return x.reshape(settings["views"], settings["n"], settings["dim"])


def tolerances(recording, hidden):
    """Return the largest error, in what it was recorded, and what a gradient is measured by."""
    settings = recording.settings
    # Roundings of the largest logit, which a softmax turns into relative errors.
    largest = 1 if settings.get("hidden_norm", True) else np.max(np.sum(hidden**2, -1))
    roundings = 8 * (1 + largest / settings["temperature"])
    wide = recording.arrays["loss"].dtype == np.float64
    # Terms as large as 1 / (temperature n), which cancel where all has been found.
    floor = 1e-3 / (settings["temperature"] * settings["n"])
    return (1e-12, "float64", floor) if wide else (roundings * golden.EPS32, "float32", floor)


def compare(recording, record_parity, cancel, **memory):
    """Compare value and gradient of a recording under its settings."""
    settings, arrays = recording.settings, recording.arrays
    hidden = by_view(recording, "hidden")

    @jax.jit
    @jax.value_and_grad
    def loss(hidden):
        return false_negative_cancellation(
            list(hidden),
            temperature=settings["temperature"],
            top_k=settings["top_k"],
            threshold=settings["threshold"],
            normalize=settings.get("hidden_norm", True),
            cancel=cancel,
            **memory,
        )[0]

    value, gradient = loss(hidden)
    limit, recorded, floor = tolerances(recording, hidden)
    wanted = arrays["grad_hidden" if "grad_hidden" in arrays else "grad"]
    for error in (
        golden.error(value, arrays["loss"], 1.0),
        golden.error(np.asarray(gradient).reshape(wanted.shape), wanted, floor),
    ):
        record_parity(recording.spec["kind"], recording.name, error, limit, recorded)


@pytest.mark.parametrize("recording", golden.cases("fnc_attraction"))
def test_attraction(recording, record_parity):
    assert not recording.settings.get("memory_multiplier"), recording.name
    compare(recording, record_parity, "attraction")


@pytest.mark.parametrize("recording", golden.cases("fnc_elimination"))
def test_elimination(recording, record_parity):
    compare(recording, record_parity, "elimination")


@pytest.mark.parametrize("recording", golden.cases("fnc_memory"))
def test_attraction_with_a_memory(recording, record_parity):
    """The official memory begins with the keys of the batch itself."""
    settings = recording.settings
    keys, memory = by_view(recording, "hidden_ema"), recording.arrays["memory"].astype(np.float64)
    rows = settings["memory_multiplier"] * settings["n"]
    assert memory.shape == (rows, settings["dim"]), recording.name
    now = memory[: settings["views"] * settings["n"]]
    np.testing.assert_allclose(now, keys.reshape(now.shape), atol=1e-7)
    if settings.get("hidden_norm", True):
        np.testing.assert_allclose(np.linalg.norm(keys, axis=-1), 1, atol=1e-6)
    older = jnp.asarray(memory[len(now) :])
    compare(recording, record_parity, "attraction", keys=list(keys), memory=older)
