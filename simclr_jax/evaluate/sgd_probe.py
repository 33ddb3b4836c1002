"""The linear probe of the papers: stochastic gradient descent with Nesterov momentum.

SimCLR, appendix B.6: momentum 0.9, batches of 4096, rate 0.1 for every 256 images of a batch, 90
epochs, no warm-up, no regularisation; the official code lets the rate fall as a cosine to 0 and
starts from zero weights. Its CIFAR recipe has batches of 512 and 100 epochs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simclr_jax.errors import UserError
from simclr_jax.evaluate import logistic
from simclr_jax.evaluate.logistic import Weights

MOMENTUM = 0.9
RATE_IMAGES = 256  # the images of a batch for which a base rate is stated


def fit(
    batches: Iterable[tuple[Any, Any]],
    dim: int,
    classes: int,
    rates: Sequence[float],
    steps: int,
) -> Weights:
    """Train one probe for each base rate, side by side on the same batches.

    Args:
      batches: `steps` pairs of features `[b, dim]` and labels `[b]` or `[b, classes]` (as in
        `logistic.fit`); all have one size b.
      dim: of the features.
      classes: number of classes.
      rates: base rates; a rate begins at `rate * b / 256` and falls as a half cosine to 0.
      steps: number of batches.

    Returns:
      `kernel [rates, dim, classes]` and `bias [rates, classes]`; not numbers for a rate that was
      too high.

    Raises:
      UserError: a rate is not positive, or all were too high.
    """
    if min(rates) <= 0:
        raise UserError(f"a rate is {min(rates)}: give positive ones")
    shape = len(rates), classes
    weights = Weights(jnp.zeros((shape[0], dim, classes)), jnp.zeros(shape))
    state = _OPTIMIZER.init(weights)
    schedule = optax.cosine_decay_schedule(1.0, steps)
    largest, count = jnp.zeros(len(rates)), 0
    for count, (features, labels) in enumerate(batches, start=1):
        scale = jnp.asarray(rates) * len(features) / RATE_IMAGES * schedule(count - 1)
        weights, state, largest = _step(weights, state, largest, features, labels, scale)
    assert count == steps, f"{count} batches for {steps} steps"
    if not jnp.isfinite(largest).any():
        raise UserError(f"the probe's loss is not finite at any rate from {min(rates)}: lower them")
    return weights


def shuffled(
    features: Any, labels: Any, batch_size: int, steps: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield `steps` batches of random rows; each epoch has every row once, batches may straddle.

    Args:
      features: `[m, d]`.
      labels: `[m]` or `[m, classes]`.
      batch_size: rows in a batch.
      steps: number of batches.
      seed: 0 to 2**32 - 1.
    """
    generator = np.random.RandomState(seed)
    rows = np.zeros(0, np.int64)
    for _ in range(steps):
        while len(rows) < batch_size:
            rows = np.concatenate([rows, generator.permutation(len(features))])
        chosen, rows = rows[:batch_size], rows[batch_size:]
        yield features[chosen], labels[chosen]


_OPTIMIZER = optax.trace(decay=MOMENTUM, nesterov=True)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _step(weights: Weights, state: Any, largest: jax.Array, features, labels, rates: jax.Array):
    def loss(one: Weights) -> jax.Array:
        return jnp.mean(logistic.cross_entropies(one, features, labels))

    values, gradients = jax.vmap(jax.value_and_grad(loss))(weights)  # one for each rate
    updates, state = _OPTIMIZER.update(gradients, state)
    moved = jax.tree.map(
        lambda w, u: w - rates.reshape(-1, *[1] * (u.ndim - 1)) * u, weights, updates
    )
    # A number for each rate to look at in the end: not finite as soon as any loss has been.
    return moved, state, jnp.maximum(largest, values)
