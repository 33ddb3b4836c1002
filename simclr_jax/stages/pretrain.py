"""Pretraining: two views of each image, one encoder, NT-Xent (SimCLR, section 2)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import parallel
from simclr_jax.frame import modules
from simclr_jax.losses.cross_entropy import cross_entropy
from simclr_jax.losses.nt_xent import nt_xent
from simclr_jax.stages import build, views
from simclr_jax.stages.encoder import embedder
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.monitor import Monitor
from simclr_jax.stages.warm_start import load_parts
from simclr_jax.train.stage import (
    Batch,
    Extra,
    Metrics,
    Outputs,
    Params,
    Stage,
    Stats,
    TrainState,
    nothing_more,
)
from simclr_jax.train.timetable import Timetable

FORMATS = {
    "loss": "loss {:.4f}",
    "contrast_accuracy": "partner found {:.1%}",
    "train_probe_accuracy": "train probe {:.1%}",
    "lr": "lr {:.3g}",
    "knn_accuracy": "kNN {:.1%}",
    "probe_accuracy": "probe {:.1%}",
    "alignment_z": "alignment {:.3f}",
    "uniformity_z": "uniformity {:.2f}",
    "effective_rank_h": "rank of h {:.1f}",
    "effective_rank_z": "of z {:.1f}",
}


def make_stage(config: ConfigDict, timetable: Timetable, inputs: Inputs, mesh: Mesh) -> Stage:
    """Build the pretraining stage of a recipe.

    Args:
      config: a validated recipe.
      timetable: the run in numbers.
      inputs: images to learn from, whose labels, if any, train the online probe and nothing else;
        and held-out images for the evaluations during the run.
      mesh: the devices.
    """
    encoder, head = modules.encoder(config), modules.projection_head(config)
    probe = modules.classifier(config, inputs.train.classes) if config.eval.probe else None
    optimizer, schedule = build.optimizer(config, timetable)
    memory = build.memory(config)
    make_views = views.view_maker(config)

    @jax.jit
    def first_state() -> TrainState:
        on_top = ("probe", config.eval.probe_tap, inputs.train.classes) if probe else None
        made = build.first_parts(config, inputs.train.channels, on_top)
        params, stats = made["params"], made["batch_stats"]
        state = TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))
        if memory:
            side = config.data.image_size
            images = jnp.zeros((1, side, side, inputs.train.channels))
            z = embedder(config, ("z",))(made, images)["z"]
            state = state._replace(extra=memory.first(params, stats, z))
        return state

    def project(params: Params, batch_stats: Stats, images: jax.Array):
        """Return h and every layer of the head, `[rows, d]` each, and moved statistics."""
        ends, encoder_stats = build.in_training(encoder, "encoder", params, batch_stats, images)
        hiddens, head_stats = build.in_training(head, "head", params, batch_stats, ends["h"])
        return hiddens, encoder_stats | head_stats

    def embed(
        params: Params, batch_stats: Stats, extra: Extra, batch: Batch
    ) -> tuple[Outputs, Stats]:
        pair = make_views(batch)  # [2, n, h, w, c]
        images = pair.reshape(-1, *pair.shape[2:])  # [2n, h, w, c]: both views in one forward
        hiddens, batch_stats = project(params, batch_stats, images)
        outputs: Outputs = {"z": hiddens[-1]}  # [2n, dim]
        if probe:
            # The probe watches, it does not teach.
            tapped = lax.stop_gradient(hiddens[config.eval.probe_tap])  # [2n, d]
            outputs["logits"] = probe.apply({"params": params["probe"]}, tapped)  # [2n, classes]
            outputs["label"] = jnp.concatenate([batch["label"], batch["label"]])  # [2n]
        if memory:
            outputs |= memory.embed(project, extra, pair[1], batch["example"])
        return outputs, batch_stats

    def objective(outputs: Outputs, extra: Extra, axis_name: str) -> tuple[jax.Array, Metrics]:
        z1, z2 = jnp.split(outputs["z"], 2)  # [n, dim] each
        loss, metrics = nt_xent(
            z1,
            z2,
            temperature=config.loss.temperature,
            scale=config.loss.scale,
            normalize=config.loss.normalize,
            memory=memory.negatives(extra, outputs) if memory else None,
            axis_name=axis_name,
        )
        metrics["loss"] = loss
        if probe:
            logits, label = outputs["logits"], outputs["label"]
            probe_loss, accuracy = cross_entropy(logits, label, axis_name=axis_name)
            metrics |= {"probe_loss": probe_loss, "train_probe_accuracy": accuracy}
            loss = loss + probe_loss
        return loss, metrics

    def init() -> TrainState:
        return parallel.replicate(mesh, first_state())

    def warm_start(state: TrainState) -> TrainState:
        state = load_parts(config.init, state, tap=config.eval.probe_tap)
        if not memory:
            return state
        extra = memory.averaging(state.extra, state.params, state.batch_stats)
        return state._replace(extra=extra)

    monitor = Monitor(config, probe, inputs, mesh)
    return Stage(
        init=init,
        warm_start=warm_start,
        embed=embed,
        objective=objective,
        optimizer=optimizer,
        learning_rate=schedule,
        batches=functools.partial(inputs.batches, mesh, timetable),
        evaluate=monitor.evaluate,
        compare=lambda state: monitor.compare(state, untrained=init()),
        protocol=monitor.protocol,
        formats=FORMATS,
        after_update=memory.after_update if memory else nothing_more,
    )
