"""What a stage must say for the loop to train it: a value, not a base class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import optax

Params = Any  # nested dict of arrays; at the top encoder, head, probe
Stats = Any  # nested dict of the moving averages of batch normalisation
Batch = dict[str, jax.Array]
Outputs = dict[str, Any]  # arrays, and trees of them
Metrics = dict[str, jax.Array]
Extra = dict[str, Any]  # what forward passes read and no gradient reaches


class TrainState(NamedTuple):
    """Everything a run must remember, replicated over the mesh; `step` counts finished updates.

    `extra` is what a stage renews after an update by other means than a gradient, such as a moving
    average of weights; most stages have nothing there.
    """

    step: jax.Array
    params: Params
    batch_stats: Stats
    opt_state: optax.OptState
    extra: Extra = {}  # noqa: RUF012 (never changed in place)


def nothing_more(extra: Extra, params: Params, outputs: Outputs) -> Extra:
    """Leave `extra` as it is: the `after_update` of most stages."""
    return extra


@dataclasses.dataclass(frozen=True)
class Stage:
    """One kind of training.

    Attributes:
      init: makes the first `TrainState`.
      warm_start: what a new run does to it before it starts, such as to load weights.
      embed: `(params, batch_stats, extra, batch) -> (outputs, batch_stats)`: all forward passes for
        one device's rows of a batch. `extra` is that of the state and `frozen`.
      objective: `(outputs, extra, axis_name) -> (loss, metrics)`: shares of loss and metrics whose
        sums over the devices of `axis_name` are those of the global batch. The one place, besides
        batch normalisation, where devices exchange anything.
      optimizer: turns summed gradients into updates.
      learning_rate: the schedule inside `optimizer`, for the log.
      batches: `(first_step, total_steps) -> iterator` of the steps of a chunk and their batches,
        leaves `[steps, n, ...]` sharded on axis 1.
      evaluate: held-out metrics of a state, as floats.
      compare: scores of a trained state beside what they must beat, for the end of a run: for
        each thing scored and each score `accuracy` and the `low` and `high` end of its interval.
      protocol: what defines those scores, to be kept beside them.
      formats: how a person sees the metrics worth a place on a line, such as
        `{"knn_accuracy": "kNN {:.1%}"}`; the files hold all of them.
      frozen: arrays beside the state that are read and never changed, such as a teacher's; they
        are no part of checkpoints.
      after_update: `(extra, params, outputs) -> extra` of the state, from the new parameters.
    """

    init: Callable[[], TrainState]
    warm_start: Callable[[TrainState], TrainState]
    embed: Callable[[Params, Stats, Extra, Batch], tuple[Outputs, Stats]]
    objective: Callable[[Outputs, Extra, str], tuple[jax.Array, Metrics]]
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    batches: Callable[[int, int], Iterator[tuple[range, Batch]]]
    evaluate: Callable[[TrainState], dict[str, float]]
    compare: Callable[[TrainState], dict[str, dict[str, dict[str, float]]]]
    protocol: dict[str, Any]
    formats: dict[str, str]
    frozen: Extra = dataclasses.field(default_factory=dict)
    after_update: Callable[[Extra, Params, Outputs], Extra] = nothing_more
