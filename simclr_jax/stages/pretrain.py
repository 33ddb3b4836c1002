"""Pretraining: two views of each image, one encoder, NT-Xent (SimCLR, section 2)."""

from __future__ import annotations

import functools
import signal
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import files, parallel, validation
from simclr_jax.data import sources
from simclr_jax.data.sources import Source
from simclr_jax.losses.nt_xent import nt_xent
from simclr_jax.stages import build, summary, views
from simclr_jax.stages.adapt import adapt
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.monitor import Monitor
from simclr_jax.stages.warm_start import load_parts
from simclr_jax.train import loop
from simclr_jax.train import plan as plans
from simclr_jax.train.plan import Plan
from simclr_jax.train.profile import Profiler
from simclr_jax.train.stage import Batch, Metrics, Outputs, Params, Stage, Stats, TrainState
from simclr_jax.train.workdir import open_workdir, recipe_before

# Launch scripts start a run again on EX_TEMPFAIL; a person who pressed Ctrl-C does not want that.
EXIT_CODES: dict[int, int] = {signal.SIGTERM: 75, signal.SIGINT: 130}

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


def run(config: ConfigDict, workdir: str, resume: str = "auto", profile_steps: str = "") -> int:
    """Pretrain by a recipe, then say what was learned.

    Args:
      config: a recipe.
      workdir: directory of the run.
      resume: see `train.workdir.open_workdir`.
      profile_steps: `a:b` writes a trace of these steps to `workdir/profile`.

    Returns:
      0 when the run is complete; 75 (ask me again) when SIGTERM stopped it, 130 when Ctrl-C did.

    Raises:
      UserError: for whatever a user can put right.
    """
    mesh = parallel.make_mesh()
    workdir = files.expand_home(workdir)
    validation.validate(config, mesh.size)
    kept, before = epath.Path(workdir) / "index", recipe_before(workdir)
    train, test = sources.open_splits(config.data, kept if before else None)
    config, chosen = adapt(config, train, test, before)
    validation.validate(config, mesh.size)
    build.check_images(config, train, test)
    plan = plans.make(config, len(train))

    record = config.to_dict() | {"images": [train.fingerprint(), test.fingerprint()]}
    keep, keep_period = config.checkpoint.keep, config.checkpoint.keep_period
    profiler = Profiler(profile_steps, epath.Path(workdir) / "profile", plan.total_steps)
    with open_workdir(workdir, record, resume, keep=keep, keep_period=keep_period) as opened:
        if opened.fresh:
            sources.remember(train, kept)
        inputs = Inputs(config, train, test, opened)
        stage = make_stage(config, plan, inputs, mesh)
        start = [f"start     from {config.init.parts} of {config.init.run}"] * opened.fresh
        about = [*_about(train, test), *chosen, *(start if config.init.run else [])]
        summary.announce(opened, config, plan, stage, mesh, about)
        views.draw(config, inputs, opened)
        result = loop.train(stage, plan, mesh, opened, profiler)
        if result.stopped_by:
            return EXIT_CODES[result.stopped_by]
        summary.conclude(opened, plan, stage, result.state)
    return 0


def _about(train: Source, test: Source) -> list[str]:
    """Say what a user should know about the images before waiting for a run."""
    labels = f"{train.classes} classes" if train.classes else "no labels"
    counts = f"images    {len(train)} to learn from, {len(test)} held out, {labels}"
    notes = dict.fromkeys((*sources.notes(train), *sources.notes(test)))
    return [counts, *(f"note      {note}" for note in notes)]


def make_stage(config: ConfigDict, plan: Plan, inputs: Inputs, mesh: Mesh) -> Stage:
    """Build the pretraining stage of a recipe.

    Args:
      config: a validated recipe.
      plan: the run in numbers.
      inputs: images to learn from, whose labels, if any, train the online probe and nothing else;
        and held-out images for the evaluations during the run.
      mesh: the devices.
    """
    encoder, head = build.encoder(config), build.projection_head(config)
    probe = build.classifier(config, inputs.train.classes) if config.eval.probe else None
    optimizer, schedule = build.optimizer(config, plan)
    make_views = views.view_maker(config)

    @jax.jit
    def first_state() -> TrainState:
        keys = build.first_keys(config.seed)
        side, channels = config.data.image_size, inputs.train.channels
        images = jnp.zeros((1, side, side, channels), config.train.dtype)
        variables: dict[str, Any] = {"encoder": encoder.init(keys[0], images, train=True)}
        h: jax.Array = encoder.apply(variables["encoder"], images, train=False)["h"]  # type: ignore
        hiddens, variables["head"] = head.init_with_output(keys[1], h, train=True)
        if probe:
            variables["probe"] = probe.init(keys[2], hiddens[config.eval.probe_tap])
        params = {name: v["params"] for name, v in variables.items() if "params" in v}
        stats = {name: v["batch_stats"] for name, v in variables.items() if "batch_stats" in v}
        return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))

    def embed(params: Params, batch_stats: Stats, batch: Batch) -> tuple[Outputs, Stats]:
        pair = make_views(batch)  # [2, n, h, w, c]
        images = pair.reshape(-1, *pair.shape[2:])  # [2n, h, w, c]: both views in one forward
        ends, encoder_stats = _apply(encoder, "encoder", params, batch_stats, images)
        hiddens, head_stats = _apply(head, "head", params, batch_stats, ends["h"])
        outputs = {"z": hiddens[-1]}  # [2n, dim]
        if probe:
            # The probe watches, it does not teach.
            tapped = lax.stop_gradient(hiddens[config.eval.probe_tap])  # [2n, d]
            outputs["logits"] = probe.apply({"params": params["probe"]}, tapped)  # [2n, classes]
            outputs["label"] = jnp.concatenate([batch["label"], batch["label"]])  # [2n]
        return outputs, encoder_stats | head_stats

    def objective(outputs: Outputs, axis_name: str) -> tuple[jax.Array, Metrics]:
        z1, z2 = jnp.split(outputs["z"], 2)  # [n, dim] each
        loss, metrics = nt_xent(
            z1,
            z2,
            temperature=config.loss.temperature,
            scale=config.loss.scale,
            normalize=config.loss.normalize,
            axis_name=axis_name,
        )
        metrics["loss"] = loss
        if probe:
            probe_loss, accuracy = _cross_entropy(outputs["logits"], outputs["label"], axis_name)
            metrics |= {"probe_loss": probe_loss, "train_probe_accuracy": accuracy}
            loss = loss + probe_loss
        return loss, metrics

    def init() -> TrainState:
        return parallel.replicate(mesh, first_state())

    monitor = Monitor(config, probe, inputs, mesh)
    return Stage(
        init=init,
        warm_start=functools.partial(load_parts, config.init, tap=config.eval.probe_tap),
        embed=embed,
        objective=objective,
        optimizer=optimizer,
        learning_rate=schedule,
        batches=functools.partial(inputs.batches, mesh, plan),
        evaluate=monitor.evaluate,
        compare=lambda state: monitor.compare(state, untrained=init()),
        protocol=monitor.protocol,
        formats=FORMATS,
    )


def _apply(module: Any, name: str, params: Params, batch_stats: Stats, x: jax.Array):
    """Apply a module in train mode; return outputs and, under its name, moved statistics."""
    variables = {"params": params.get(name, {}), "batch_stats": batch_stats.get(name, {})}
    outputs, moved = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return outputs, {name: moved["batch_stats"]} if moved else {}


def _cross_entropy(logits: jax.Array, labels: jax.Array, axis_name: str):
    """Return this device's share of mean cross entropy and accuracy, rows `[2n]`."""
    rows = len(labels) * lax.axis_size(axis_name)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(losses) / rows, jnp.sum(jnp.argmax(logits, axis=-1) == labels) / rows
