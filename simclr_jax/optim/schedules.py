"""Learning rates: scaling with the batch, lengths of the run, warm-up and cosine decay."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax


def peak_rate(base_rate: float, scaling: str, batch_size: int) -> float:
    """Scale a base rate to a global batch (SimCLR, section 2.2 and appendix B.1).

    "linear" is base * batch / 256, "sqrt" is base * sqrt(batch); they meet at 4096 for the paper's
    0.3 and 0.075. "none" takes the base rate as it is.
    """
    factor = {"linear": batch_size / 256, "sqrt": batch_size**0.5, "none": 1.0}[scaling]
    return base_rate * factor


def warmup_steps(epochs: float, examples: int, batch_size: int) -> int:
    """Return the official length of the warm-up, which rounds down to whole batches."""
    return round(epochs * examples // batch_size)


def total_steps(epochs: float, examples: int, batch_size: int) -> int:
    """Return the official length of a run: one step more than whole batches in all the epochs."""
    return int(epochs * examples // batch_size) + 1


def warmup_cosine(peak: float, warmup: int, total: int) -> optax.Schedule:
    """Rise linearly from 0 to `peak` over `warmup` steps, then fall to 0 at `total` as a cosine.

    The first step of a warm-up has rate 0, as in the official `learning_rate_schedule`: it moves
    the batch statistics and nothing else.
    """
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, total)


def warmup_cosine_by_epoch(
    peak: float, warmup: int, epochs: tuple[float, float], starts: np.ndarray
) -> optax.Schedule:
    """Rise like `warmup_cosine`; then the rate falls as a cosine from one epoch to the next.

    In epoch e, counted from 0, it is `peak * (1 + cos(pi * e / epochs)) / 2` without a warm-up:
    facebookresearch/simsiam `main_simsiam.py: adjust_learning_rate`, and MoCo's.

    Args:
      peak: rate.
      warmup: steps, each of which has a rate of its own.
      epochs: at which the cosine begins and ends; an epoch in which it begins has the peak.
      starts: the first step of each epoch, increasing; below 0 of those before the first step.
    """
    first, last = epochs

    def rate(step: jax.Array) -> jax.Array:
        epoch = jnp.sum(jnp.asarray(step) >= jnp.asarray(starts, jnp.int32)) - 1
        share = jnp.clip((epoch - first) / max(last - first, 1e-9), 0, 1)
        fallen = peak * (1 + jnp.cos(jnp.pi * share)) / 2
        return jnp.where(step < warmup, peak * step / max(warmup, 1), fallen)

    return rate


def share_done(ends: Sequence[int]) -> optax.Schedule:
    """Return which share of its segment is done after so many steps, from 0 to 1.

    `ends` are the steps at which segments end, increasing; the first begins at step 0.
    """

    def share(step: jax.Array) -> jax.Array:
        done, start = jnp.minimum(step, ends[0]) / jnp.asarray(ends[0], float), ends[0]
        for end in ends[1:]:
            within = jnp.minimum(step - start, end - start) / jnp.asarray(end - start, float)
            done, start = jnp.where(step < start, done, within), end
        return done

    return share


def warmup_drops(
    peak: float, warmup: int, drops: Sequence[int], factor: float = 0.1
) -> optax.Schedule:
    """Rise like `warmup_cosine`; then stay, but for a factor from each step of `drops` on.

    facebookresearch/moco `main_moco.py: adjust_learning_rate` without `--cos`, and most programs of
    before. A drop inside the warm-up counts from its end on.
    """

    def rate(step: jax.Array) -> jax.Array:
        passed = jnp.sum(jnp.asarray(step) >= jnp.asarray(drops, jnp.int32))
        fallen = peak * jnp.asarray(factor, float) ** passed
        return jnp.where(step < warmup, peak * step / max(warmup, 1), fallen)

    return rate
