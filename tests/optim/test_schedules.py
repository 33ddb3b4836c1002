"""Learning rates against the formulas of the paper."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from simclr_jax.optim import schedules


def closed_form(step, peak, warmup, total):
    if step < warmup:
        return peak * step / warmup
    share = min(step - warmup, total - warmup) / (total - warmup)
    return peak * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.x64
@pytest.mark.parametrize("warmup, total", [(10, 100), (0, 100), (1, 2), (99, 100)])
def test_every_step_of_the_closed_form(warmup, total):
    steps = np.arange(total + 10)  # beyond the end the rate stays 0
    got = jax.jit(jax.vmap(schedules.warmup_cosine(4.8, warmup, total)))(steps)
    want = [closed_form(step, 4.8, warmup, total) for step in steps]
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-14)


def test_the_first_step_of_a_warmup_has_rate_zero_and_its_last_is_below_the_peak():
    schedule = schedules.warmup_cosine(2.0, warmup=5, total=50)
    rates = [float(schedule(step)) for step in (0, 4, 5, 6)]
    assert rates[0] == 0
    assert rates[1] == pytest.approx(1.6)
    assert rates[2] == pytest.approx(2.0)
    assert rates[3] < rates[2]


def test_linear_and_square_root_scaling_meet_at_4096():
    linear = schedules.peak_rate(0.3, "linear", 4096)
    assert linear == schedules.peak_rate(0.075, "sqrt", 4096) == pytest.approx(4.8)
    assert schedules.peak_rate(0.3, "linear", 256) == 0.3
    assert schedules.peak_rate(0.3, "none", 4096) == 0.3


def test_lengths_of_the_published_runs():
    # CIFAR-10 at batch 512, and ImageNet at batch 4096 with 1 % of the labels at batch 1024.
    assert schedules.warmup_steps(10, 50_000, 512) == 976
    assert schedules.total_steps(1000, 50_000, 512) == 97_657
    assert schedules.warmup_steps(10, 1_281_167, 4096) == 3127
    assert schedules.total_steps(60, 12_811, 1024) == 751
    assert schedules.warmup_steps(0.7, 777, 64) == 8  # fractions of an epoch round down


@pytest.mark.x64
@pytest.mark.parametrize("warmup, first", [(0, 0.0), (7, 2.5)])
def test_a_rate_by_the_epoch_stays_inside_each(warmup, first):
    """Epochs of 3.4 steps; those of a warm-up have a rate for each step."""
    epoch = np.arange(60) * 5 // 17  # of which each step sees the first image
    starts = np.flatnonzero(np.diff(epoch, prepend=-1))
    assert len(starts) == epoch[-1] + 1
    schedule = schedules.warmup_cosine_by_epoch(4.8, warmup, (first, 12.0), starts)
    want = [
        closed_form(max(e, first), 4.8, first, 12.0) if k >= warmup else 4.8 * k / warmup
        for k, e in enumerate(epoch)
    ]
    got = jax.jit(jax.vmap(schedule))(np.arange(60))
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-14)
