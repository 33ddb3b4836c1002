"""SimCLR: each view of an image must find the other among all views (arXiv 2002.05709, section 2).

With `memory.size` also the memory of SimCLRv2 (arXiv 2006.10029, section 2): a second network, a
moving average of the trained one, embeds the second view of every image; its embeddings of the last
`memory.size` images are negatives beside those of the batch (as in MoCo, He et al. 2019). The
official code does not have it; what the paper leaves open is decided here: second views are kept,
the average normalises by statistics of the batch, an empty place is no negative, and neither is an
image its own, which it would be whenever the memory spans the end of an epoch.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from ml_collections import ConfigDict

from simclr_jax.declaration import TWO_AND_LOCAL, Chart, Declaration, Unread
from simclr_jax.frame import local_crops
from simclr_jax.frame.average import Average
from simclr_jax.frame.keys import Keys
from simclr_jax.frame.method import Method, Setting, Views
from simclr_jax.frame.net import Averages, Net, by_view, project
from simclr_jax.frame.queue import Queue, check_size, rows_of
from simclr_jax.losses.nt_xent import nt_xent
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs, Update

FOUND = "How often the other view of an image is nearer than all other images of the batch."


def chance(config: ConfigDict) -> float:
    """Return the loss of embeddings that are all equal, once the memory, if any, is full."""
    return float(chance_at(config, np.array([math.inf]))[0])


def chance_at(config: ConfigDict, steps: np.ndarray) -> np.ndarray:
    """Return the loss of embeddings that are all equal: the log of the number of candidates.

    The memory begins empty and fills by a batch in a step. That an image is no negative of itself
    is left out: it takes one in so many of the memory as there are training images.

    Args:
      config: a whole recipe.
      steps: finished steps, `[n]`.
    """
    return _scale(config) * np.log(_candidates(config, steps))


def floor(config: ConfigDict) -> float:
    """Return the loss of two views that are equal, and at right angles to all other candidates.

    At a high temperature that is not far below chance. Inner products know no such limit.
    """
    if not config.loss.normalize:
        return 0.0
    others = float(_candidates(config, np.array([math.inf]))[0]) - 1
    return _scale(config) * math.log1p(others * math.exp(-1 / config.loss.temperature))


def _scale(config: ConfigDict) -> int:
    return 2 if config.loss.scale == "sum" else 1


def _candidates(config: ConfigDict, steps: np.ndarray) -> np.ndarray:
    """Return among how many embeddings a view looks for its partner."""
    batch = config.train.batch_size
    return 2 * batch - 1 + Queue(config.memory.size).pushed(batch, steps)


def unread(config: ConfigDict) -> dict[str, Unread]:
    """Return what only a memory reads, where there is none."""
    without = Unread("SimCLR without a memory", "--config.memory.size=65536")
    return {} if config.memory.size else {"memory.momentum": without}


def check(config: ConfigDict) -> None:
    """Raise `UserError` if the memory cannot hold a batch."""
    if config.memory.size:
        check_size("memory.size", config.memory.size, config.train.batch_size, or_else="0, or ")


DECLARATION = Declaration(
    title="SimCLR",
    views=TWO_AND_LOCAL,
    reads=("loss", "memory", "head"),
    unread=unread,
    check=check,
    chance=chance,
    chance_at=chance_at,
    floor=floor,
    charts=(Chart("Partner found", {"contrast_accuracy": "partner found"}, True, FOUND),),
)


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build SimCLR."""
    c, size = config.loss, config.memory.size
    shown = "loss {:.3f} (mean {loss_mean:.3f})" if c.scale == "sum" else "loss {:.3f}"
    queue, average = Queue(size), Average(("encoder", "head"), config.memory.momentum)

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        taps = project(net, views["views"])  # [n, 2, d] each, both views in one forward pass
        return {"taps": taps, "z": taps[-1], **local_crops.asking(net, views)}

    def watch(averages: Averages, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        second = views["views"][:, 1:]  # [n, 1, h, w, c]
        z = rows_of(averages["average"], second, normalize=c.normalize)  # [n, dim]
        return {"kept": {"z": z, "example": batch["example"]}}

    def loss(
        outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        return nt_xent(
            *by_view(outputs["z"]),  # [n, dim] each
            temperature=c.temperature,
            scale=c.scale,
            normalize=c.normalize,
            example=outputs["kept"]["example"] if size else None,
            memory=(extra["queue"]["z"], extra["queue"]["example"]) if size else None,
            local=local_crops.of(outputs),
            axis_name=axis_name,
        )

    def first(outputs: Outputs, key: jax.Array) -> Extra:
        return {"queue": queue.empty(outputs["kept"])}

    def next_extra(extra: Extra, update: Update) -> Extra:
        return {"queue": queue.push(extra["queue"], update.outputs["kept"])}

    simclr = Method(
        forward=forward,
        loss=loss,
        formats={"loss": shown, "contrast_accuracy": "partner found {:.1%}"},
    )
    if not size:
        return simclr
    return dataclasses.replace(
        simclr, averages={"average": average}, watch=watch, first=first, next=next_extra
    )
