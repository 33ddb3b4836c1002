"""What a stage must say for the loop to train it: a value, not a base class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

Params = Any  # nested dict of arrays; at the top the parts of the network: encoder, head, probe
Stats = Any  # nested dict of the moving averages of batch normalisation, by part
Batch = dict[str, jax.Array]
Outputs = dict[str, Any]  # arrays, and trees of them
Metrics = dict[str, jax.Array]
Extra = dict[str, Any]  # what forward passes and losses read and no gradient reaches


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

    @property
    def variables(self) -> dict[str, Any]:
        """Return parameters and statistics as Flax names them: `params` and `batch_stats`."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class Update(NamedTuple):
    """What is known when an update is done.

    Attributes:
      params: after it.
      batch_stats: after the forward passes.
      watched: what `Stage.watch` returned as statistics.
      outputs: of all passes, this device's rows.
      step: int32, updates finished before it.
    """

    params: Params
    batch_stats: Stats
    watched: Any
    outputs: Outputs
    step: jax.Array


class Seen(NamedTuple):
    """What people are shown of some images in `views.png`.

    Attributes:
      pictures: by the name of their group `[n, v, h, w, c]`, values in [0, 1]; a group of neither 1
        nor 3 channels is left out.
      answers: what the network is asked to find out of each image, `n` short texts such as "turned
        by 90 degrees"; empty where nothing is asked that fits a line.
    """

    pictures: Mapping[str, jax.Array]
    answers: Sequence[str] = ()


def views_alone(views: Mapping[str, jax.Array], batch: Batch) -> Seen:
    """Show what the network looks at, and no answer: the `show` of most stages."""
    return Seen(views)


def nothing_watched(extra: Extra, batch: Batch, step: jax.Array) -> tuple[Outputs, Any]:
    """Make no pass without gradient: the `watch` of most stages."""
    return {}, {}


def nothing_more(extra: Extra, update: Update) -> Extra:
    """Leave `extra` as it is: the `after_update` of most stages."""
    return extra


def joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return both in one dictionary; raise `ValueError` if a name is in both."""
    if both := one.keys() & other.keys():
        raise ValueError(f"{', '.join(sorted(both))} is there twice: rename one of them")
    return one | other


@dataclasses.dataclass(frozen=True)
class Stage:
    """One kind of training.

    Attributes:
      init: makes the first `TrainState`.
      warm_start: what a new run does to it before it starts, such as to load weights.
      forward: `(params, batch_stats, extra, batch, step) -> (outputs, batch_stats)`: the forward
        passes that are differentiated, for one device's rows of a batch. `extra` is that of the
        state and `frozen`; `batch` has `row`, int32 `[n]`, the place of each image among those that
        pass at the same time: in the global batch, or in one of its `parts`. Devices exchange
        statistics of batch normalisation here, and nothing else.
      objective: `(outputs, extra, step, axis_name) -> (loss, metrics)`: shares of loss and metrics
        whose sums over the devices of `axis_name` are those of the global batch. `outputs` are
        those of `forward` and of `watch`.
      optimizer: turns summed gradients into updates.
      learning_rate: the schedule inside `optimizer`, for the log.
      batches: `(first_step, total_steps) -> iterator` of the steps of a chunk and their batches,
        leaves `[steps, n, ...]` sharded on axis 1.
      evaluate: held-out metrics of a state, as floats.
      compare: scores of a trained state beside what they must beat, for the end of a run: for
        each thing scored and each score `accuracy` and the `low` and `high` end of its interval.
      protocol: what defines the scores of the last `compare`, to be kept beside them.
      formats: how a person sees the metrics worth a place on a line, such as
        `{"knn_accuracy": "kNN {:.1%}"}`; the files hold all of them.
      frozen: arrays beside the state that are read and never changed, such as a teacher's; they
        are no part of checkpoints.
      watch: `(extra, batch, step) -> (outputs, statistics)`: the passes that nothing is
        differentiated through, such as a moving average's. Apart from `forward`, so that they need
        not be made again where that is. The statistics go to `after_update`.
      after_update: `(extra, update) -> extra` of the state.
      look: from a batch to what the network looks at, for a picture: by the name of their group
        `[n, v, h, w, c]` each.
      show: `(views, batch) -> Seen`: what people are shown of what `look` has made; called once, on
        arrays, outside of compiled code.
      paint: `(variables, batch) -> pictures`: what the network makes of the images of a batch, see
        `Method.paint`; None: it makes no pictures.
      views_per_image: that pass through the network in a step.
      parts: of a batch that pass through the network one after the other, for want of memory; the
        result is that of all at once (`train/gradients.py`). What `forward` and `watch` return as
        outputs are then arrays `[n, ...]` throughout.
      reduce_dtype: what gradients are summed over devices in: "bfloat16", or "float32" for the
        dtype of the parameters, whatever it is.
      deterministic: whether GPUs must repeat a step to the bit.
      like: `steps -> batches`: describes those of a call of so many steps, so that the step can be
        compiled before they are there; None where nobody can tell.
      before_epoch: `(state, epoch) -> state`: called before the first chunk whose first image lies
        in a new epoch, also before the first of all; it may replace parts of `extra`.
    """

    init: Callable[[], TrainState]
    warm_start: Callable[[TrainState], TrainState]
    forward: Callable[[Params, Stats, Extra, Batch, jax.Array], tuple[Outputs, Stats]]
    objective: Callable[[Outputs, Extra, jax.Array, str], tuple[jax.Array, Metrics]]
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    batches: Callable[[int, int], Iterator[tuple[range, Batch]]]
    evaluate: Callable[[TrainState], dict[str, float]]
    compare: Callable[[TrainState], dict[str, dict[str, dict[str, float]]]]
    protocol: Callable[[], dict[str, Any]]
    formats: dict[str, str]
    look: Callable[[Batch], Mapping[str, jax.Array]]
    show: Callable[[Mapping[str, jax.Array], Batch], Seen] = views_alone
    paint: Callable[[dict[str, Any], Batch], Mapping[str, jax.Array]] | None = None
    frozen: Extra = dataclasses.field(default_factory=dict)
    watch: Callable[[Extra, Batch, jax.Array], tuple[Outputs, Any]] = nothing_watched
    after_update: Callable[[Extra, Update], Extra] = nothing_more
    views_per_image: int = 1
    parts: int = 1
    reduce_dtype: str = "float32"
    deterministic: bool = False
    like: Callable[[int], Mapping[str, jax.ShapeDtypeStruct]] | None = None
    before_epoch: Callable[[TrainState, int], TrainState] | None = None
