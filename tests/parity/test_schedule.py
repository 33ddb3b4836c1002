"""Learning rates and lengths of runs against the official ones."""

from __future__ import annotations

import golden
import jax
import pytest

from simclr_jax.optim import schedules


def lengths(recording: golden.Recording) -> tuple[float, int, int]:
    """Return the peak, and the lengths of warm-up and run."""
    flags, examples = recording.flags, recording.settings["num_examples"]
    base = flags["learning_rate" if recording.tf1 else "base_learning_rate"]
    batch, epochs = flags["train_batch_size"], flags["train_epochs"]
    peak = schedules.peak_rate(base, flags["learning_rate_scaling"], batch)
    warmup = schedules.warmup_steps(flags["warmup_epochs"], examples, batch)
    total = flags["train_steps"] or schedules.total_steps(epochs, examples, batch)
    return peak, warmup, total


def check(recording, key, limit, record_parity):
    peak, warmup, total = lengths(recording)
    recorded = recording.settings if recording.tf1 else recording.arrays
    assert (warmup, total) == (recorded["warmup_steps"], recorded["total_steps"])
    steps, official = recording.arrays["steps"], recording.arrays[key]
    if total <= warmup:  # refused here, and officially without a number after the warm-up
        steps, official = steps[steps < warmup], official[steps < warmup]
        total = warmup + 1
    rates = jax.jit(jax.vmap(schedules.warmup_cosine(peak, warmup, total)))(steps)
    error = golden.error(rates, official, floor=peak)
    precision = "float64" if "float64" in key else "float32"
    record_parity("schedule", recording.name, error, limit, precision)


@pytest.mark.parametrize("recording", golden.cases("schedule"))
def test_rates_are_the_official_ones(recording, record_parity):
    noise = max(recording.spec["sensitivity"].values())
    check(recording, "learning_rate", golden.float32_tolerance(noise), record_parity)


@pytest.mark.x64
@pytest.mark.parametrize(
    "recording", golden.cases("schedule", lambda r: "learning_rate_float64" in r.arrays)
)
def test_rates_are_the_official_ones_in_float64(recording, record_parity):
    check(recording, "learning_rate_float64", 16 * golden.EPS64, record_parity)
