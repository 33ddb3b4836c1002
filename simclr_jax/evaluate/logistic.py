"""Logistic regression on features: the linear probe with a unique answer.

Multinomial where an example has one label; where it may have several, each class against the
rest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simclr_jax.errors import UserError

_SEARCH_STEPS = 20  # evaluations of the loss per L-BFGS step at most; optax's default


class Weights(NamedTuple):
    """A linear classifier: `features @ kernel + bias` are the logits."""

    kernel: jax.Array  # [d, C]
    bias: jax.Array  # [C]


def fit(
    features: Any,
    labels: Any,
    classes: int,
    l2: float,
    *,
    tolerance: float = 1e-6,
    max_steps: int = 1000,
    start: Weights | None = None,
    sample_weights: Any = None,
) -> Weights:
    """Minimise mean cross-entropy + `l2 / 2 * ||kernel||^2`; the bias is not penalised.

    With several labels an example, the cross-entropies of its classes are summed.

    Full-batch L-BFGS with a zoom line search, on the device, until the Euclidean norm of the
    gradient is at most `tolerance`, `max_steps` are done, or the line search finds no lower
    loss: at small `l2` the rounding of float32 ends the descent. `gradient_norm` tells how far
    it came. With unit weights it is scikit-learn's LogisticRegression at `C = 1 / (l2 * M)`.
    Give it features of mean 0 and about unit size. Compiled once per shape and dtype: `l2`,
    `tolerance`, `max_steps` and `sample_weights` may change freely.

    Args:
        features: `[M, d]`.
        labels: integers `[M]` from 0 to `classes - 1`, or `[M, classes]` of 1 (has it), 0 (has
            not) and -1 (ignored); rows of weight 0 may hold anything.
        classes: number of classes.
        l2: penalty, at least 0.
        tolerance: on the gradient norm of the mean loss.
        max_steps: L-BFGS steps at most.
        start: where to start, such as the solution at a neighbouring `l2`; zeros by default.
        sample_weights: `[M]`, at least 0; the mean is over their sum. Ones by default.

    Raises:
        UserError: a number, a label, or a length does not fit, or a feature is not finite.
    """
    features, labels = jnp.asarray(features), np.asarray(labels)
    weights = _sample_weights(sample_weights, len(features))
    _check(len(features), labels, classes, l2, weights)
    if not jnp.isfinite(features).all():
        raise UserError("features are not all finite: look at the encoder that made them")
    labels = _unused_as_zero(labels, weights)
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    if start is None:
        start = Weights(jnp.zeros((features.shape[1], classes)), jnp.zeros(classes))
    start = jax.tree.map(lambda x: jnp.asarray(x, dtype), start)
    return _minimise(start, features, labels, float(l2), weights, tolerance, max_steps)


def gradient_norm(
    weights: Weights, features: Any, labels: Any, l2: float, sample_weights: Any = None
) -> float:
    """Return the norm that `fit` brings to its tolerance; larger where it had to stop before."""
    each = _sample_weights(sample_weights, len(features))
    labels = _unused_as_zero(np.asarray(labels), each)
    gradient = _gradient(weights, jnp.asarray(features), labels, float(l2), each)
    return float(optax.global_norm(gradient))


@jax.jit
def logits(weights: Weights, features: Any) -> jax.Array:
    """Return the logits `[M, C]` of features `[M, d]`, in the dtype of the weights or wider."""
    return _product(jnp.asarray(features), weights.kernel) + weights.bias


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    # Full precision: the line search compares losses that differ in the last digits.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def _product(features: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return `features @ kernel`, `[M, d]` and `[d, C]`, with a gradient that is fast on CPUs."""
    return _matmul(features, kernel)


def _product_forward(features: jax.Array, kernel: jax.Array):
    return _matmul(features, kernel), (features, kernel)


def _product_backward(kept: tuple[jax.Array, jax.Array], g: jax.Array):
    features, kernel = kept
    # XLA's CPU backend is three to four times slower at a product whose left side is transposed, as
    # in `features.T @ g`, and makes one of whatever equals it but for the barriers.
    of_kernel = jax.lax.platform_dependent(
        features, g, cpu=_transposed_product, default=lambda x, g: _matmul(x.T, g)
    )
    return _matmul(g, kernel.T).astype(features.dtype), of_kernel.astype(kernel.dtype)


def _transposed_product(x: jax.Array, g: jax.Array) -> jax.Array:
    """Return `x.T @ g` as the transpose of `g.T @ x`, in which `g` alone is copied."""
    barrier = jax.lax.optimization_barrier
    return barrier(_matmul(barrier(g.T), x)).T


_product.defvjp(_product_forward, _product_backward)


def cross_entropies(weights: Weights, features: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the loss of each example `[M]`; `labels` as in `fit`, those ignored count nothing."""
    outputs = logits(weights, features)
    if labels.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    each = optax.sigmoid_binary_cross_entropy(outputs, labels == 1)  # [M, C]
    return jnp.sum(each, axis=1, where=labels >= 0)


def _sample_weights(given: Any, rows: int) -> np.ndarray:
    # Of one dtype, so that masks, counts and weights share a compiled program.
    return np.ones(rows) if given is None else np.asarray(given, np.float64)


def _unused_as_zero(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    used = weights > 0
    return np.where(used[:, None] if labels.ndim == 2 else used, labels, 0)


def _check(rows: int, labels: np.ndarray, classes: int, l2: float, weights: np.ndarray) -> None:
    several = labels.ndim == 2
    if labels.shape != ((rows, classes) if several else (rows,)) or weights.shape != (rows,):
        raise UserError(
            f"there are {rows} features, labels of shape {labels.shape} and sample weights of "
            f"shape {weights.shape}: give one label and one weight per feature"
        )
    if not (weights >= 0).all() or not weights.sum() > 0:
        raise UserError("the sample weights must be at least 0 and not all 0")
    used = labels[weights > 0]
    lowest, highest = (-1, 1) if several else (0, classes - 1)
    if not lowest <= used.min() <= used.max() <= highest:
        raise UserError(
            f"labels run from {used.min()} to {used.max()}: "
            f"with {classes} classes they must lie in {lowest} to {highest}"
        )
    if l2 < 0:
        raise UserError(f"l2 is {l2}: give at least 0")


def _loss(
    weights: Weights,
    features: jax.Array,
    labels: jax.Array,
    l2: jax.Array,
    sample_weights: jax.Array,
) -> jax.Array:
    losses = cross_entropies(weights, features, labels)
    share = (sample_weights / sample_weights.sum()).astype(losses.dtype)
    return jnp.sum(share * losses) + 0.5 * l2 * jnp.sum(weights.kernel**2)


_gradient = jax.jit(jax.grad(_loss))


@jax.jit
def _minimise(start: Weights, features, labels, l2, sample_weights, tolerance, max_steps):
    def loss(weights):
        return _loss(weights, features, labels, l2, sample_weights)

    search = optax.scale_by_zoom_linesearch(_SEARCH_STEPS, initial_guess_strategy="one")
    solver = optax.lbfgs(linesearch=search)

    def unfinished(carry):
        _, _, _, gradient, steps, stuck = carry
        return (optax.global_norm(gradient) > tolerance) & (steps < max_steps) & ~stuck

    def step(carry):
        weights, state, value, gradient, steps, _ = carry
        updates, state = solver.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=loss
        )
        weights = optax.apply_updates(weights, updates)
        # The line search has already evaluated the point it chose.
        value, gradient, searched = (
            optax.tree_utils.tree_get(state, name)
            for name in ("value", "grad", "num_linesearch_steps")
        )
        return weights, state, value, gradient, steps + 1, searched >= _SEARCH_STEPS

    value, gradient = jax.value_and_grad(loss)(start)
    carry = start, solver.init(start), value, gradient, 0, False
    return jax.lax.while_loop(unfinished, step, carry)[0]
