"""The soft nearest neighbour loss: a neighbour drawn by distance is of one's class (1902.01889)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from simclr_jax.errors import choose
from simclr_jax.losses import batch, candidates, distances, tiles
from simclr_jax.unlabelled import NO_LABEL

EPSILON = 1e-5  # cleverhans' STABILITY_EPS


def soft_nearest_neighbour(
    views: Sequence[jax.Array],
    labels: jax.Array | None = None,
    *,
    temperature: float | jax.Array,
    distance: str = "squared-L2",
    epsilon: float = EPSILON,
    normalize: bool = False,
    axis_name: str | None = None,
    at_once: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return this device's share of the soft nearest neighbour loss (eq. 1).

    A row i draws a neighbour j with probability p_ij = f_ij / (epsilon + sum_k f_ik), where
    f = exp(-distance / temperature) over all other rows; the loss is the mean of
    -log(epsilon + sum of p_ij over rows j of i's class).

    Source: cleverhans 3.1 `loss.py: SNNLCrossEntropy.SNNL`, with its two epsilons, which the paper
    has not. A row that has nobody of its class costs -log(epsilon) and is moved by nothing; the
    official code subtracts a row's neighbourship with itself as 1, and keeps what rounding left of
    it. The official programs add -10 times this loss at hidden layers, that is they maximise it.

    Embeddings that are all equal cost the mean of -log(share of the other rows that are of one's
    class), about the logarithm of the number of classes where these are as large.

    Args:
      views: `[n, d]` each, of the same images; one or several; computed in float32, or float64 if
        they are.
      labels: int `[n]`, `NO_LABEL` (-1) for none: such an image takes no part. None: every image is
        a class of its own, whose members are its views.
      temperature: divides the distances.
      distance: one of `distances.DISTANCES`; "angular" is 1 - cosine.
      epsilon: see above.
      normalize: scale rows to length 1 first.
      axis_name: mesh axis over which the global batch is spread; None if this is all of it.
      at_once: images whose views are compared with all at a time (`tiles.by_rows`).

    Returns:
      loss: scalar; the sum over devices is the mean over all rows that have a label, 0 if none has.
      metrics: shares in the same sense: `neighbour_accuracy`, how often the nearest of all other
        rows is of the row's class.

    Raises:
      UserError: if the distance is not known.
    """
    numbers = {"temperature": temperature, "epsilon": epsilon}
    measured = _measured(views, labels, distance, normalize, axis_name, at_once)
    losses, found, counted = measured(_losses, numbers)
    rows = jnp.maximum(batch.total(jnp.sum(counted), axis_name), 1)
    return jnp.sum(losses) / rows, {"neighbour_accuracy": jnp.sum(found) / rows}


def descended(
    views: Sequence[jax.Array],
    labels: jax.Array | None = None,
    *,
    temperature: float,
    t: float | jax.Array = 1.0,
    rate: float = 0.1,
    distance: str = "squared-L2",
    epsilon: float = EPSILON,
    normalize: bool = False,
    axis_name: str | None = None,
    at_once: int | None = None,
) -> jax.Array:
    """Return t after one step of gradient descent on the loss at `temperature / t`.

    The loss that is trained is then that at `temperature` divided by what is returned, which is the
    same on all devices and carries no gradient.
    Source: cleverhans 3.1 `loss.py: SNNLCrossEntropy.optimized_temp_SNNL`, where t begins at 1 and
    is kept from one batch to the next.

    Args:
      t: of the batch before.
      rate: of the step.
      views, labels, temperature, ...: as for `soft_nearest_neighbour`.
    """
    numbers = {"temperature": temperature, "epsilon": epsilon, "t": t}
    measured = _measured(views, labels, distance, normalize, axis_name, at_once)
    slopes, counted = measured(_slopes, numbers)
    rows = jnp.maximum(batch.total(jnp.sum(counted), axis_name), 1)
    return t - rate * batch.total(jnp.sum(slopes), axis_name) / rows


def _measured(
    views: Sequence[jax.Array],
    labels: jax.Array | None,
    distance: str,
    normalize: bool,
    axis_name: str | None,
    at_once: int | None,
) -> Callable[[Callable[..., Any], dict[str, Any]], Any]:
    """Return what calls a function of distances, by tiles, with given numbers."""
    choose("distance", distance, distances.DISTANCES)
    z = batch.gather(views, normalize=normalize, axis_name=axis_name)
    anchors, others = distances.comparable(z, distance)
    label = z.row if labels is None else labels
    rows = {"row": z.row, "label": label}
    fixed = {"labels": batch.of_everyone(label, axis_name)}

    def call(function, numbers):
        function = functools.partial(function, distance)
        return tiles.by_rows(function, anchors, others, [], rows, fixed, numbers, at_once)

    return call


def _losses(
    distance: str,
    products: tiles.Similarities,
    rows: dict[str, jax.Array],
    fixed: dict[str, jax.Array],
    numbers: dict[str, float | jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return, for some images `[r]`, sums over their views: losses, right neighbours, and rows."""
    row, label, labels = rows["row"], rows["label"], fixed["labels"]
    images, views = len(labels), len(products)
    same = candidates.same_label(label, labels, views)
    known = label != NO_LABEL
    losses, found = [], []
    for view, of_view in enumerate(products):
        apart = distances.between(candidates.side_by_side(of_view), distance)  # [r, v N]
        near = -apart / numbers["temperature"]
        other = ~candidates.itself(row, view, images, views)
        near = jnp.where(other & candidates.labelled(labels, views), near, -jnp.inf)
        drawn = jnp.exp(near)
        share = jnp.sum(jnp.where(same, drawn, 0), axis=1) / (
            numbers["epsilon"] + jnp.sum(drawn, axis=1)
        )
        losses.append(jnp.where(known, -jnp.log(numbers["epsilon"] + share), 0))
        nearest = jnp.argmax(near, axis=1, keepdims=True)
        found.append(jnp.take_along_axis(same & other, nearest, axis=1)[:, 0])
    return jnp.sum(jnp.stack(losses), 0), jnp.sum(jnp.stack(found), 0), views * known


def _slopes(
    distance: str,
    products: tiles.Similarities,
    rows: dict[str, jax.Array],
    fixed: dict[str, jax.Array],
    numbers: dict[str, float | jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Return for some images `[r]` how their losses change with t, and the number of their rows."""
    t = jnp.asarray(numbers["t"], products[0][0].dtype)

    def losses(t):
        at = {"temperature": numbers["temperature"] / t, "epsilon": numbers["epsilon"]}
        total, _, counted = _losses(distance, products, rows, fixed, at)
        return total, counted

    _, slopes, counted = jax.jvp(losses, (t,), (jnp.ones_like(t),), has_aux=True)
    return slopes, counted
