"""False negative cancellation: other images that look alike are not pushed apart (2011.11765).

As google-research/fnc runs it (`model.py`, `objective.py`). Two views and any number of support
views, of one size, pass through the network together; all of them are anchors, and together they
find an image's false negatives among the candidates (`losses/false_negatives.py`). Without a memory
the candidates are the views of the batch. With one they are what a moving average of the network
makes of them, and its keys of earlier batches.

The official memory holds `fnc.memory` keys and is written before the loss reads it, so that its
newest rows are the keys of the batch itself. Here those come from the pass that made them, and the
state holds the older ones alone. It begins with rows of zeros, which are negatives of similarity 0
there and here; an image's own older keys are candidates like others. The average moves after the
update. Support views need no memory, nor a memory support views.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from simclr_jax import recipes
from simclr_jax.declaration import Chart, Declaration, Field, Unread
from simclr_jax.errors import UserError
from simclr_jax.frame.average import Average
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Averages, Net, by_view, project
from simclr_jax.frame.queue import Queue
from simclr_jax.losses.false_negatives import CANCEL, false_negative_cancellation
from simclr_jax.losses.unit import l2_normalize
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs, Update

SUPPORT = "support"
MOMENTUM = 0.999
FOUND = "Other views that an image takes for false negatives, at most fnc.top_k."


def recipe(config: ConfigDict) -> None:
    """Set support views and optimiser of the paper and its program."""
    support(config, 8)
    config.optim.base_lr, config.optim.lr_scaling = 0.1, "sqrt"


def support(config: ConfigDict, number: int) -> None:
    """Set how many support views of an image there are, made as its first view."""
    with config.unlocked():
        if SUPPORT in config.augment.views:
            del config.augment.views[SUPPORT]
        if number:
            view = recipes.copied(config.augment.views.first)
            view.group, view.copies = SUPPORT, number
            config.augment.views[SUPPORT] = view


def chance(config: ConfigDict) -> float | None:
    """Return the loss of embeddings that are all equal, once the memory, if any, is full of them.

    Not known of inner products, whose lengths the threshold would be compared with.
    """
    return float(chance_at(config, np.array([math.inf]))[0]) if config.loss.normalize else None


def chance_at(config: ConfigDict, steps: np.ndarray) -> np.ndarray:
    """Return the loss of embeddings that are all equal, after so many steps, `[n]`.

    Rows of zeros, which the memory begins with, are at right angles to them. False negatives are
    found among the others, and among zeros where the threshold is below 0.
    """
    c, own = config.fnc, view_count(config) - 1
    older = Queue(_older(config)).pushed((own + 1) * config.train.batch_size, steps)
    equal = _others(config) + older
    zeros = _older(config) - older
    found = np.minimum(c.top_k, equal) if c.threshold < 1 else 0 * equal
    found_zeros = np.minimum(c.top_k - found, zeros) if c.threshold < 0 else 0 * zeros
    if c.cancel == "elimination":
        return 2 * np.log(own + equal - found + (zeros - found_zeros) * _apart(config))
    nearer = (own + found) / (own + found + found_zeros)  # share of the positives
    left = (1 - nearer) / config.loss.temperature
    return 2 * (np.log(own + equal + zeros * _apart(config)) + left)


def floor(config: ConfigDict) -> float:
    """Return the loss of views that equal those of their image, and its false negatives if any.

    All other candidates are at right angles, where a threshold of 0 or more finds none.
    """
    c, own = config.fnc, view_count(config) - 1
    others = _others(config) + _older(config)
    found = min(c.top_k, others) if c.threshold < 0 else 0
    positives = own + (found if c.cancel == "attraction" else 0)
    return 2 * math.log(positives + (others - found) * _apart(config))


def view_count(config: ConfigDict) -> int:
    """Return how many views of an image there are, the support views among them."""
    return sum(view.copies for view in config.augment.views.values())


def _others(config: ConfigDict) -> int:
    """Return how many candidates of a batch are of other images."""
    return view_count(config) * (config.train.batch_size - 1)


def _older(config: ConfigDict) -> int:
    """Return how many keys of earlier batches are candidates."""
    return max(0, config.fnc.memory - view_count(config) * config.train.batch_size)


def _apart(config: ConfigDict) -> float:
    """Return what a negative at right angles weighs beside one that is equal."""
    return math.exp(-1 / config.loss.temperature)


def unread(config: ConfigDict) -> dict[str, Unread]:
    """Return what only a memory reads, where there is none."""
    without = Unread("fnc without a memory", "--config.fnc.memory=65536")
    return {} if config.fnc.memory else {"fnc.momentum": without}


def check(config: ConfigDict) -> None:
    """Raise `UserError` if views cannot pass together, or a memory not hold a batch's keys."""
    sides = {view.size or config.data.image_size for view in config.augment.views.values()}
    if len(sides - {None}) > 1:
        raise UserError(
            f"augment.views has views of {', '.join(map(str, sorted(sides - {None})))} pixels, but "
            "fnc passes support views through the network together with the others: give all one "
            "size"
        )
    c, batch, many = config.fnc, config.train.batch_size, view_count(config)
    if c.memory and batch is not None and c.memory < many * batch:
        raise UserError(
            f"fnc.memory is {c.memory}, less than the keys of one batch, {many} views of {batch} "
            f"images: set 0, or {many * batch} or more"
        )


DECLARATION = Declaration(
    title="FNC",
    views={"views": (2, 2), SUPPORT: (0, None)},
    recipe=recipe,
    reads=("head", "loss.temperature", "loss.normalize"),
    unread=unread,
    check=check,
    fields={
        "cancel": Field(
            CANCEL[0], "what becomes of false negatives", " or ".join(CANCEL), CANCEL.__contains__
        ),
        "top_k": Field(10, "most false negatives of an image", "1 or more", lambda x: x > 0),
        "threshold": Field(0.7, "of their similarity", "a finite number", math.isfinite),
        "memory": Field(
            65536,
            "keys among which they are, of this batch and earlier ones | 0: of this batch, "
            "without an average",
            "0 or more",
            lambda x: x >= 0,
        ),
        "momentum": Field(MOMENTUM, "of the network of keys", "in [0, 1)", lambda x: 0 <= x < 1),
    },
    chance=chance,
    chance_at=chance_at,
    floor=floor,
    charts=(Chart("False negatives", {"false_negatives": "found by an image"}, False, FOUND),),
)


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build FNC."""
    c, normalize, older = config.fnc, config.loss.normalize, _older(config)
    queue, average = Queue(older), Average(("encoder", "head"), c.momentum)

    def together(views: Views) -> jax.Array:
        return jnp.concatenate([views[name] for name in ("views", SUPPORT) if name in views], 1)

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        taps = project(net, together(views))  # [n, 2 + S, d] each
        return {"taps": taps, "z": taps[-1]}

    def watch(averages: Averages, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        made = project(averages["average"], together(views))[-1]
        return {"keys": l2_normalize(made) if normalize else made}  # [n, 2 + S, dim]

    def loss(
        outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        value, metrics = false_negative_cancellation(
            by_view(outputs["z"]),  # [n, dim] each
            temperature=config.loss.temperature,
            top_k=c.top_k,
            threshold=c.threshold,
            cancel=c.cancel,
            normalize=normalize,
            keys=by_view(outputs["keys"]) if c.memory else None,
            memory=extra["queue"] if older else None,
            axis_name=axis_name,
        )
        return value, metrics

    def first(outputs: Outputs, key: jax.Array) -> Extra:
        return {"queue": queue.empty(outputs["keys"][:, 0])}

    def next_extra(extra: Extra, update: Update) -> Extra:
        rows = extra["queue"]
        for view in reversed(by_view(update.outputs["keys"])):  # officially last ones leave first
            rows = queue.push(rows, view)
        return {"queue": rows}

    fnc = Method(
        forward=forward,
        loss=loss,
        formats={
            "loss": "loss {:.3f} (mean {loss_mean:.3f})",
            "false_negatives": "false negatives {:.1f}",
        },
    )
    if not c.memory:
        return fnc
    fnc = dataclasses.replace(fnc, averages={"average": average}, watch=watch)
    return dataclasses.replace(fnc, first=first, next=next_extra) if older else fnc
