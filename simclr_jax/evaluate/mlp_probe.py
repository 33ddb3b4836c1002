"""The non-linear probe: a classifier with two hidden layers, for what a linear one cannot read.

RotNet's on CIFAR-10 (gidariss/FeatureLearningRotNet, `NonLinearClassifier.py`, kind `MultLayer`,
and its config): each hidden layer is dense without bias, batch normalisation, ReLU; 20 units a
class, at most 2048. SGD, Nesterov momentum 0.9, decay of all parameters, batches of 128, a rate
that falls to a fifth after 40, 80 and 90 % of 50 epochs; theirs goes on at its last rate for 50
more. They fix rate and decay at 0.1 and 0.0005; here both are chosen without the scored images.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simclr_jax.errors import UserError
from simclr_jax.evaluate import linear_probe, logistic, sgd_probe
from simclr_jax.evaluate.linear_probe import Splits

RATES, DECAYS = (0.01, 0.1), (0.0005, 0.005)
EPOCHS, BATCH = 50.0, 128
DROPS, FALL = (0.4, 0.8, 0.9), 0.2  # parts of a run after which the rate is multiplied by FALL
UNITS, MOST_UNITS = 20, 2048  # of a hidden layer, for each class and in all
MOMENTUM = 0.9
BLOCK = 4096  # rows that are centred, or answered, at the same time
KEPT, EPSILON = 0.9, 1e-5  # of moving statistics; both as in PyTorch


class Hidden(NamedTuple):
    """A hidden layer: dense without bias, then normalisation, then ReLU."""

    kernel: jax.Array  # [d, units]
    scale: jax.Array  # [units], as is the bias
    bias: jax.Array


class Layers(NamedTuple):
    """Everything that learns."""

    first: Hidden
    second: Hidden
    last: logistic.Weights  # [units, classes], [classes]


class Moments(NamedTuple):
    """What a hidden layer is normalised by where nothing is learned, `[units]` each."""

    mean: jax.Array
    variance: jax.Array


class Probe(NamedTuple):
    """A trained classifier of features as they were given, and how it was chosen."""

    layers: Layers
    moments: tuple[Moments, Moments]
    rate: float
    decay: float
    scores: dict[tuple[float, float], float]  # of each rate and decay, on the examples that chose


def units(classes: int) -> int:
    """Return the width of the hidden layers, if nobody gives another."""
    return min(UNITS * classes, MOST_UNITS)


def fit(
    features: Any,
    labels: Any,
    classes: int,
    splits: Splits,
    score: Callable[[np.ndarray, np.ndarray], float],
    rates: Sequence[float] = RATES,
    decays: Sequence[float] = DECAYS,
    *,
    epochs: float = EPOCHS,
    hidden: int | None = None,
    seed: int = 0,
) -> Probe:
    """Train on some examples, choose rate and decay on others, train again on all.

    Features are centred and divided by one number, as `linear_probe.fit` does. All pairs of a rate
    and a decay are trained side by side from the same values and on the same batches. Of equally
    good ones that with the stronger decay is chosen, then with the lower rate. Of the features
    there is no second copy: batches of them, and blocks of `BLOCK` rows, are centred as they are
    used.

    Args:
      features, labels, classes, splits, score: see `linear_probe.fit`.
      rates, decays: to choose among; of one pair nothing is chosen.
      epochs: of each training.
      hidden: units of a hidden layer; None: see `units`.
      seed: of first values and orders, 0 to 2**32 - 1.

    Raises:
      UserError: if no examples are left to train on, features are not finite, or all rates are too
        high.
    """
    if not all(len(fitting) for fitting, _ in splits):
        raise UserError("no labelled examples are left to fit on: label more")
    features, labels = np.asarray(features), np.asarray(labels)
    if not all(np.isfinite(block).all() for block in blocks(features)):
        raise UserError("features are not all finite: look at the encoder that made them")
    origin, unit = linear_probe.moments(features)
    width = hidden or units(classes)

    def centred(x: np.ndarray) -> np.ndarray:
        return (x - origin) / unit

    def train(rows: np.ndarray, pairs: Sequence[tuple[float, float]]):
        size = min(BATCH, len(rows))
        steps = max(1, round(epochs * len(rows) / size))
        order = sgd_probe.shuffled(rows, labels[rows], size, steps, seed)
        batches = ((centred(features[some]), of_rows) for some, of_rows in order)
        start = first_layers(features.shape[1], width, classes, seed)
        return _train(batches, start, pairs, steps)

    pairs = sorted(itertools.product(rates, decays), key=lambda pair: (-pair[1], pair[0]))
    found: dict[tuple[float, float], list[float]] = {pair: [] for pair in pairs}
    for fitting, choosing in splits if len(pairs) > 1 else ():
        tried = train(fitting, pairs)
        for i, pair in enumerate(pairs):
            held_out = (centred(features[rows]) for rows in blocks(choosing))
            layers, moments = jax.tree.map(operator.itemgetter(i), tried)
            outputs = answers(layers, moments, held_out)
            # One that has left all numbers is worse than any.
            finite = np.isfinite(outputs).all()
            found[pair].append(score(outputs, labels[choosing]) if finite else -np.inf)
    scores = {pair: float(np.mean(each)) for pair, each in found.items() if each}
    best = max(pairs, key=lambda pair: scores.get(pair, 0.0))  # the first of equals
    layers, moments = jax.tree.map(lambda x: x[0], train(np.arange(len(labels)), [best]))
    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(layers)):
        raise UserError(
            f"the classifier's numbers are not finite at the rate {best[0]:g}: lower --mlp_rates"
        )
    first = layers.first._replace(kernel=layers.first.kernel / unit)
    mean = moments[0].mean + origin @ first.kernel
    moments = (moments[0]._replace(mean=mean), moments[1])
    return Probe(layers._replace(first=first), moments, *best, scores)


@jax.jit
def outputs(layers: Layers, moments: tuple[Moments, Moments], features: Any) -> jax.Array:
    """Return the logits `[m, classes]` of features `[m, d]`, normalised by moving statistics."""
    x = features
    for layer, of_layer in zip((layers.first, layers.second), moments, strict=True):
        x = _normalised(_dense(x, layer.kernel), of_layer, layer)
    return logistic.logits(layers.last, x)


def answers(
    layers: Layers, moments: tuple[Moments, Moments], features: Iterable[np.ndarray]
) -> np.ndarray:
    """Return `outputs` on the host, `[m, classes]`, of `blocks` of features one after another."""
    return np.concatenate([np.asarray(outputs(layers, moments, block)) for block in features])


def blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield `BLOCK` rows of `[m, ...]` after another: hidden layers take more than features do."""
    return (rows[start : start + BLOCK] for start in range(0, max(1, len(rows)), BLOCK))


def _dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)


def _normalised(x: jax.Array, moments: Moments, layer: Hidden) -> jax.Array:
    scaled = (x - moments.mean) * jax.lax.rsqrt(moments.variance + EPSILON)
    return jax.nn.relu(scaled * layer.scale + layer.bias)


def _train(
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    start: Layers,
    pairs: Sequence[tuple[float, float]],
    steps: int,
) -> tuple[Layers, tuple[Moments, Moments]]:
    """Train one classifier for each rate and decay; what is returned has an axis for them first."""
    width = start.first.kernel.shape[1]
    still = Moments(jnp.zeros(width), jnp.ones(width))
    state = (start, (still, still), _OPTIMIZER.init(start))
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(pairs), *x.shape)), state)
    rates, decays = (jnp.asarray(some, jnp.float32) for some in zip(*pairs, strict=True))
    for step, (x, of_rows) in enumerate(batches):
        fallen = FALL ** sum(step >= part * steps for part in DROPS)
        state = _step(state, x, of_rows, rates * fallen, decays)
    return state[0], state[1]


def first_layers(dim: int, width: int, classes: int, seed: int) -> Layers:
    """Return the classifier before training; kernels have variance 2 / outputs, as RotNet's."""
    keys = jax.random.split(jax.random.key(seed), 3)

    def kernel(key: jax.Array, rows: int, columns: int) -> jax.Array:
        return jax.random.normal(key, (rows, columns), jnp.float32) * (2 / columns) ** 0.5

    def hidden(key: jax.Array, rows: int) -> Hidden:
        return Hidden(kernel(key, rows, width), jnp.ones(width), jnp.zeros(width))

    last = logistic.Weights(kernel(keys[2], width, classes), jnp.zeros(classes))
    return Layers(hidden(keys[0], dim), hidden(keys[1], width), last)


_OPTIMIZER = optax.trace(decay=MOMENTUM, nesterov=True)


@functools.partial(jax.jit, donate_argnums=0)
def _step(state: Any, features, labels, rates: jax.Array, decays: jax.Array):
    def loss(layers: Layers):
        x, seen = features, []
        for layer in (layers.first, layers.second):
            x = _dense(x, layer.kernel)
            seen.append(Moments(jnp.mean(x, axis=0), jnp.var(x, axis=0)))
            x = _normalised(x, seen[-1], layer)
        return jnp.mean(logistic.cross_entropies(layers.last, x, labels)), tuple(seen)

    def of_pair(state: Any, rate: jax.Array, decay: jax.Array):
        layers, moments, momentum = state
        gradients, seen = jax.grad(loss, has_aux=True)(layers)
        gradients = jax.tree.map(lambda g, w: g + decay * w, gradients, layers)
        updates, momentum = _OPTIMIZER.update(gradients, momentum)
        layers = jax.tree.map(lambda w, u: w - rate * u, layers, updates)
        moments = jax.tree.map(lambda old, new: KEPT * old + (1 - KEPT) * new, moments, seen)
        return layers, moments, momentum

    return jax.vmap(of_pair)(state, rates, decays)
