"""Pretraining by a method: its network and loss, a probe that watches, a monitor.

What a method is stands in `frame/method.py`; each is a file of `methods/`, and `config.method`
names it.
"""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import declaration, parallel
from simclr_jax.data.decode import BadImage
from simclr_jax.data.sources import Source
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.frame.method import Method, Setting, nothing_seen
from simclr_jax.optim import schedules
from simclr_jax.stages import build
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.monitor import Monitor
from simclr_jax.stages.pretrained_network import PretrainedNetwork, check_like
from simclr_jax.stages.warm_start import load_parts, parts_of
from simclr_jax.train.stage import (
    Stage,
    TrainState,
    nothing_watched,
)
from simclr_jax.train.timetable import Timetable
from simclr_jax.unlabelled import counted

FORMATS = {
    "train_probe_accuracy": "train probe {:.1%}",
    "lr": "lr {:.3g}",
    "knn_accuracy": "kNN {:.1%}",
    "probe_accuracy": "probe {:.1%}",
    "alignment_z": "alignment of z {:.3f}",
    "uniformity_z": "uniformity of z {:.2f}",
    "effective_rank_h": "effective rank of h {:.1f}",
    "effective_rank_z": "effective rank of z {:.1f}",
}


def make_stage(config: ConfigDict, timetable: Timetable, inputs: Inputs, mesh: Mesh) -> Stage:
    """Build the pretraining stage of a recipe.

    Args:
      config: a validated recipe.
      timetable: the run in numbers.
      inputs: images to learn from, whose labels, if any, train the online probe and, if the method
        says so, the encoder; and held-out images for the evaluations during the run.
      mesh: the devices.
    """
    schedule = build.schedule(timetable)
    method = make_method(config, timetable, inputs.train)
    said, network = declaration.find(config.method), PretrainedNetwork(config, method, inputs)

    def learns(path: tuple[str, ...]) -> bool:
        assert method.learns is not None
        return path[0] == "probe" or method.learns(path)

    optimizer = build.optimizer(
        config,
        schedule,
        learns=learns if method.learns else None,
        rates=method.rates,
        roles=said.roles,
    )

    @jax.jit
    def first_state() -> TrainState:
        variables, extra = network.first()
        params, step = variables["params"], jnp.zeros((), jnp.int32)
        opt_state = optimizer.init(params)
        return TrainState(step, params, variables["batch_stats"], opt_state, extra)

    def init() -> TrainState:
        return parallel.replicate(mesh, first_state())

    def warm_start(state: TrainState) -> TrainState:
        tap, parts = config.eval.probe_tap, parts_of(config.init, said.parts)
        loaded = load_parts(config.init, state, tap=tap, others=said.parts)
        averages = {
            name: average.restarted(state.extra[name], loaded.variables, parts)
            for name, average in (method.averages.items() if parts else ())
        }
        return loaded._replace(extra=state.extra | averages)

    probe = modules.classifier(config, inputs.train.classes) if config.eval.probe else None
    monitor = Monitor(config, probe, inputs, mesh)

    def before_epoch(state: TrainState, epoch: int) -> TrainState:
        assert method.before_epoch is not None  # or this is not called

        def encode(average: str, tap: str) -> tuple[np.ndarray, np.ndarray]:
            variables = state.extra[average] if average else state.variables
            return monitor.training_features(variables, tap)

        made = method.before_epoch(state.extra, epoch, encode)
        check_like(made, state.extra, f"the hook before epoch {epoch}")
        return state._replace(extra=state.extra | parallel.replicate(mesh, made))

    return Stage(
        init=init,
        warm_start=warm_start,
        forward=network.forward,
        objective=network.objective,
        optimizer=optimizer,
        learning_rate=schedule,
        batches=functools.partial(inputs.batches, mesh, timetable),
        like=functools.partial(inputs.describe, mesh, timetable.batch_size),
        evaluate=monitor.evaluate,
        compare=lambda state: monitor.compare(state, untrained=init()),
        protocol=monitor.protocol,
        formats={**method.formats, **FORMATS},
        watch=nothing_watched if method.watch is nothing_seen else network.watch,
        after_update=network.after_update,
        look=network.look,
        show=network.show,
        paint=network.paint if method.paint else None,
        views_per_image=network.views_per_image,
        parts=config.train.accumulate,
        reduce_dtype=config.train.reduce_dtype,
        deterministic=config.train.deterministic,
        before_epoch=before_epoch if method.before_epoch else None,
    )


def check(config: ConfigDict, timetable: Timetable, train: Source) -> None:
    """Check what a method asks of the run.

    Raises:
      UserError: if it learns from labels and there are none, or wants to be called before every
        epoch and a call of the device takes longer than one.
    """
    if declaration.find(config.method).labels:
        if not train.classes or not len(counted(train.labels)):
            raise UserError(
                f"the images have no labels, from which method {config.method} learns: give a data "
                "set that has, and data.labels=True"
            )
        if train.multi_label:
            raise UserError(
                f"images may have several labels, method {config.method} is made for one each: "
                "give a data set of such labels"
            )
    images = timetable.steps_per_call * timetable.batch_size
    method = make_method(config, timetable, train)
    if method.before_epoch and images > timetable.examples:
        most = max(1, timetable.examples // timetable.batch_size)
        raise UserError(
            f"train.steps_per_call is {timetable.steps_per_call}, longer than an epoch, and method "
            f"{config.method} has work before each: set --config.train.steps_per_call={most}"
        )


SAMPLE = 32  # training images that a method may look at before a run


def check_sample(config: ConfigDict, train: Source) -> None:
    """Check that a method can learn from images such as some of these.

    Raises:
      UserError: if it cannot.
    """
    look_at = declaration.find(config.method).check_sample
    if look_at is None:
        return
    sample = []
    for example in np.unique(np.linspace(0, len(train) - 1, SAMPLE).astype(int)):
        with contextlib.suppress(BadImage):  # of which a run says more
            sample.append(train.example(int(example))[0])
    if sample:
        look_at(config, sample)


def make_method(config: ConfigDict, timetable: Timetable, train: Source) -> Method:
    """Build the method that a recipe names."""
    setting = Setting(
        examples=timetable.examples,
        classes=train.classes,
        channels=train.channels,
        batch_size=timetable.batch_size,
        total_steps=timetable.total_steps,
        peak_rate=timetable.peak_rate,
        rate=build.schedule(timetable),
        done=schedules.share_done([*timetable.borders, timetable.total_steps]),
        peak=build.peak(timetable),
    )
    return declaration.module(config.method).make(config, setting)
