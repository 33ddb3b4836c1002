"""The first and the last thing a run says."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any, TypedDict

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import documents, files, parallel, processes, tables
from simclr_jax.evaluate import chance
from simclr_jax.train import manifest, progress, stored
from simclr_jax.train.manifest import Damaged
from simclr_jax.train.stage import Stage, TrainState
from simclr_jax.train.timetable import Timetable
from simclr_jax.train.workdir import Workdir

DEVICES = "devices.json"
LONG_WARM_UP = 1 / 4  # of a run; published ones take 1 to 10 %

# What train.deterministic comes to, by whether the devices are GPUs.
_REPEATING = {
    True: ", by kernels that repeat to the bit",
    False: ", which repeats to the bit without train.deterministic",
}


class Devices(TypedDict):
    """The content of `DEVICES`: on which devices the run works, such as "8 x TPU v5"."""

    devices: str


def announce(
    workdir: Workdir,
    config: ConfigDict,
    timetable: Timetable,
    stage: Stage,
    mesh: Mesh,
    about: list[str],
) -> None:
    """Say what is about to happen, in the numbers that decide the result.

    Raises:
      UserError: if `DEVICES` cannot be written.
    """
    say, o = workdir.console.say, config.optim
    views = stage.views_per_image * timetable.batch_size
    params = jax.eval_shape(stage.init).params
    kind = mesh.devices.flat[0].device_kind
    warmup, planned = timetable.warmup_steps, timetable.planned_steps
    devices = f"{mesh.size} x {kind}"
    if processes.rank() == 0:
        with files.explaining(workdir.path / DEVICES):
            documents.write(workdir.path / DEVICES, {"devices": devices})
    rising = f"learning-rate warm-up until step {warmup}" if warmup else "no warm-up"
    say(f"run       {workdir.path}")
    for line in about:
        say(line)
    repeating = _REPEATING[parallel.on_gpus(mesh)] if config.train.deterministic else ""
    say(f"devices   {devices}, computing in {config.train.dtype}{repeating}")
    say(
        f"batch     {timetable.batch_size} images ({views} views), "
        f"{timetable.batch_size // mesh.size} images a device"
    )
    say(
        f"length    {timetable.total_steps} steps = {timetable.epochs:.1f} epochs of "
        f"{timetable.examples} images; {rising}"
    )
    if warmup > LONG_WARM_UP * planned:
        shorter = planned * timetable.batch_size / timetable.examples / 10
        say(
            f"note      the learning rate rises in {warmup / planned:.0%} of the run:"
            f" --config.optim.warmup_epochs={shorter:.3g} is a tenth of it"
        )
    say(f"optimiser {o.name}, peak rate {timetable.peak_rate:g}, weight decay {o.weight_decay:g}")
    say(tables.parameters(params))
    say(f"views     {workdir.path / 'views.png'} shows what augmentation does: look at it")


def conclude(
    workdir: Workdir,
    timetable: Timetable,
    stage: Stage,
    state: TrainState,
    more: Mapping[str, Any],
) -> None:
    """Say what was learned, beside what needs no learning, and where everything is.

    `more` is kept with the scores beside what the stage says of them.
    """
    say = workdir.console.say
    results = workdir.console.during(
        "judging what was learned", functools.partial(stage.compare, state)
    )
    if processes.rank() > 0:
        return
    path = workdir.path / "results" / "summary.json"
    if results:
        path.parent.mkdir(exist_ok=True)
        protocol = {"step": timetable.total_steps, **stage.protocol(), **more}
        about = {"protocol": protocol, "scores": results, "minutes": progress.minutes(workdir.path)}
        documents.write(path, about | _scored(workdir.path, timetable.total_steps))
        say("")
        say(tables.scores(results))
        workdir.loggers.table("scores", timetable.total_steps, *tables.cells(results))
        say("in brackets: 95 % bootstrap interval over the held-out images")
        for sentence in chance.not_above(results):
            say(f"note      {sentence}")
    say("")
    pictures = ("views.png", "reconstructions.png")
    names = ("config.json", "metrics.jsonl", "tensorboard", *pictures, "log.txt")
    found = [name for name in names if (workdir.path / name).exists()]
    workdir.loggers.finish()
    say(f"checkpoint {os.fspath(workdir.path / 'checkpoints')}/{timetable.total_steps}")
    say(f"also in {workdir.path}: {', '.join([*found, *(['results'] if results else [])])}")


def _scored(workdir: epath.Path, step: int) -> dict[str, Any]:
    """Say of which weights the scores are, so that they are not taken for those of another run."""
    try:
        weights = manifest.identity(workdir / stored.CHECKPOINTS / str(step), step)
    except Damaged:
        return {}
    return {"checkpoint": {"step": step, "weights": weights}}
