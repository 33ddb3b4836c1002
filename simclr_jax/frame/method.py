"""What a method of pretraining is: a value that `stages/pretrain.py` makes a stage of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from simclr_jax.frame.average import Average
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.net import Averages, Net
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs, Seen, Update

Views = Mapping[str, jax.Array]  # by the name of their group, `[n, v, h, w, c]` each

# Encodes all readable training images in inference mode: from the name of an average, or "" for
# the trained network itself, and a tap such as "h", to features `[m, d]` and the number of each
# image, int `[m]`.
Encode = Callable[[str, str], tuple[np.ndarray, np.ndarray]]


class Setting(NamedTuple):
    """What a method may know of its run beside the recipe.

    Attributes:
      examples: images to learn from.
      classes: of their labels; 0: they have none.
      channels: of an image.
      batch_size: images of a global batch.
      total_steps: of the run. More once it is extended: what changes over a run goes by `done`.
      peak_rate: of the schedule.
      rate: the schedule of the learning rate.
      done: from a step to the share that is done then, 0 to 1, of the run as it was planned or,
        once it was extended, of the segment that the step belongs to.
      peak: from a step to the peak of the rate in that segment; `peak_rate` is the first.
    """

    examples: int
    classes: int
    channels: int
    batch_size: int
    total_steps: int
    peak_rate: float
    rate: optax.Schedule
    done: optax.Schedule
    peak: optax.Schedule


def as_they_are(views: Views, keys: Keys) -> Views:
    """Look at the views that augmentation made: the `look` of most methods."""
    return views


def without_answers(views: Views, keys: Keys) -> Seen:
    """Show what the network looks at, and no answer: the `show` of most methods."""
    return Seen(views)


def nothing_seen(
    averages: Averages, views: Views, extra: Extra, batch: Batch, keys: Keys
) -> Outputs:
    """Make no pass without gradient: the `watch` of most methods."""
    return {}


def nothing(outputs: Outputs, key: jax.Array) -> Extra:
    """Keep nothing beside the network: the `first` of most methods."""
    return {}


def unchanged(extra: Extra, update: Update) -> Extra:
    """Leave what is kept as it is: the `next` of most methods."""
    return {}


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to learn from images.

    Attributes:
      forward: `(net, views, extra, batch, keys) -> outputs`: the forward passes that are
        differentiated, for one device's images. `outputs` are `[n, ...]` or trees of such, in which
        micro-batches can be joined; under `taps` the vectors that the probe may read, from h to z,
        `[n, v, d]` each, which go no further, unless `probed` names what it reads. Nothing here
        crosses devices but the statistics of batch normalisation. `batch` has `example` int32
        `[n]`, the number of each image in the data set, and for methods that declare `labels` also
        `label` int32 `[n]` (-1: none). While parameters are made `extra` is empty.
      loss: `(outputs, extra, keys, axis_name) -> (loss, metrics)`: shares whose sums over the
        devices of `axis_name` are those of the global batch. The loss is logged as `loss`.
      modules: parts of the network beside `encoder` and `head`, which are those of the recipe, as
        they are where a run is judged; none may be called `probe` or `classifier`.
      formats: how a person sees metrics on a line, such as `{"turn_accuracy": "turn {:.1%}"}`.
      look: `(views, keys) -> views`: what the network looks at, made of the augmented views, such
        as turned copies or patches. Targets that are no pictures are made in `forward`.
      show: `(views, keys) -> Seen`: what people are shown of what `look` has made, as pictures, and
        what the network is asked of each image. Called once, on arrays and with the keys of the
        first step, outside of compiled code.
      paint: `(net, views, keys) -> pictures`: of a method that answers with pictures, what was
        given, what the network makes of it, and what was wanted, under these names or others and in
        this order: `[n, h, w, c]` each, values in [0, 1]. `net` is to be run by its moving averages
        (`train=False`), `views` are held-out ones as `look` makes them. None: it has no pictures.
      probed: of a method whose network is shown nothing but pieces, damaged or shrunk copies of an
        image, the group of views that the online probe reads instead, as augmentation made them
        and, as where a run is judged, by moving averages: one more forward pass of encoder and
        head where there is a probe. "": it reads `taps`.
      averages: by name, further networks that are moving averages of this one; each lies in `extra`
        under its name.
      watch: `(averages, views, extra, batch, keys) -> outputs`: the passes that nothing is
        differentiated through, `averages["name"]` being called like `net`. They are made once where
        `forward` is made again. Their outputs stand beside those of `forward`. Here too `extra` is
        empty while parameters are made.
      first: `(outputs, key) -> extra`: what is kept beside parameters and averages, at the start.
        Only the shapes of `outputs` mean anything.
      next: `(extra, update) -> extra`: that of it which an update changes.
      before_epoch: `(extra, epoch, encode) -> extra`: called before the first chunk whose first
        image lies in a new epoch; returns that of `extra` which it replaces.
      rates: learning rates of parts that do not follow the schedule.
      learns: `path -> bool`: does the parameter at a path such as `("head", "dense1", "bias")`
        learn? The others have a gradient, and stay. None: all learn.
    """

    forward: Callable[[Net, Views, Extra, Batch, Keys], Outputs]
    loss: Callable[[Outputs, Extra, Keys, str], tuple[jax.Array, Metrics]]
    modules: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    formats: Mapping[str, str] = dataclasses.field(default_factory=dict)
    look: Callable[[Views, Keys], Views] = as_they_are
    show: Callable[[Views, Keys], Seen] = without_answers
    paint: Callable[[Net, Views, Keys], Mapping[str, jax.Array]] | None = None
    probed: str = ""
    averages: Mapping[str, Average] = dataclasses.field(default_factory=dict)
    watch: Callable[[Averages, Views, Extra, Batch, Keys], Outputs] = nothing_seen
    first: Callable[[Outputs, jax.Array], Extra] = nothing
    next: Callable[[Extra, Update], Extra] = unchanged
    before_epoch: Callable[[Extra, int, Encode], dict[str, Any]] | None = None
    rates: Mapping[str, optax.Schedule] = dataclasses.field(default_factory=dict)
    learns: Callable[[tuple[str, ...]], bool] | None = None
