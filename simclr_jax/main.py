"""Train by a recipe, or on a folder of images.

    python -m simclr_jax.main --config=configs/digits.py
    python -m simclr_jax.main --config=configs/digits.py --workdir=runs/try \\
        --config.train.epochs=20 --config.loss.temperature=0.2
    python -m simclr_jax.main --workdir=runs/digits --extend_to=200
    python -m simclr_jax.main --data=photographs

Without a recipe --data chooses one by its kind: configs/folder.py, configs/memory.py for FILE.npz.
The same command continues a run that was interrupted; --extend_to trains a finished one on. On
several hosts each runs it with --distributed; launch/ has scripts for that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from simclr_jax import entry, errors, flag_kinds, given_data, segments

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", None, "Recipe: a file such as configs/digits.py, or the name of one that comes along."
)
flags.DEFINE(
    flag_kinds.Path(),
    "data",
    "",
    "Images to train on: DIRECTORY (splits:DIRECTORY or classes:DIRECTORY where it may have "
    "either), FILE.npz, tfds:NAME or digits; the recipe's by default.",
)
flags.DEFINE(flag_kinds.Path(), "workdir", None, "Where the run lives; runs/RECIPE by default.")
flags.DEFINE_string(
    "resume", "auto", "auto: continue what is in the workdir; never: refuse; must: insist."
)
flags.DEFINE_string(
    "extend_to",
    "",
    "Train a finished run on: EPOCHS of the whole run, such as 200, or its steps, 5000steps.",
)
flags.DEFINE(
    flag_kinds.Number(above=0),
    "extend_lr",
    None,
    "Base rate of what is added; by default that of the run.",
)
flags.DEFINE(
    flag_kinds.Number(least=0),
    "extend_warmup",
    None,
    "Epochs in which its rate rises; by default as in the run, a tenth of what is added at most.",
)
flags.DEFINE_string("profile_steps", "", "a:b writes a trace of these steps to WORKDIR/profile.")
flags.DEFINE(
    flag_kinds.Whole(1, 1024),
    "cpu_devices",
    None,
    "How many devices the CPU counts as, where nothing else computes; by encoder and batch, or as "
    "the run began, by default.",
)
flags.DEFINE_boolean("distributed", False, "Be one of several processes of the same run.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no cluster tells.")
flags.DEFINE(
    flag_kinds.Whole(1, 10**6),
    "processes",
    None,
    "How many processes there are, where no cluster tells.",
)
flags.DEFINE(
    flag_kinds.Whole(0, 10**6),
    "process",
    None,
    "Which of them this is, from 0, where no cluster tells.",
)
flags.DEFINE(
    flag_kinds.Whole(1, 10**6),
    "heartbeat_secs",
    60,
    "Silence after which a process counts as dead.",
)
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def arguments(argv: list[str]) -> list[str]:
    """Return what is parsed: with the recipe for the images of --data, where none is named.

    Raises:
      UserError: if these images have no recipe of their own.
    """
    data = entry.argument(argv, "data")
    if not data or entry.argument(argv, "config"):
        return argv
    try:
        recipe = given_data.recipe(flag_kinds.at_home(data))
    except ValueError:  # the flag says it itself
        return argv
    return [argv[0], f"--config={recipe}", *argv[1:]]


def main() -> int:
    """Run the stage that the recipe names; return the exit code."""
    extension = asked_for()
    if FLAGS.config is None and not extension:
        raise errors.UserError("no recipe: give --config=configs/digits.py, say, or --data=FOLDER")
    if FLAGS.data:
        given = config_flags.get_override_values(FLAGS["config"])
        given_data.put(FLAGS.config, FLAGS.data, given)
    # Imported late: --help and mistakes in flags answer without waiting for JAX.
    from simclr_jax import cpu_devices, parallel, processes
    from simclr_jax.pipeline import run as pipeline
    from simclr_jax.pipeline.recipe import STAGE
    from simclr_jax.stages import extend, run

    parallel.use_compilation_cache()
    workdir = FLAGS.workdir or f"runs/{Path(entry.recipe_path()).stem}"
    config = extend.recipe_of(workdir) if FLAGS.config is None else FLAGS.config
    several = config.get("stage") == STAGE
    if several and extension:
        raise errors.UserError(
            "--extend_to extends one run, and the recipe is a pipeline of several: copy the "
            f"directory of one, such as {workdir}/{config.order[0]}, and give --workdir=COPY alone"
        )
    start: Any = pipeline.run if several else run.run
    before = (pipeline.begun if several else run.begun)(config, workdir)
    cpu_devices.use(cpu_devices.choose(config, FLAGS.cpu_devices, before, FLAGS.distributed))
    more = {"extension": extension} if extension else {}
    with processes.joined(
        FLAGS.distributed, FLAGS.coordinator, FLAGS.processes, FLAGS.process, FLAGS.heartbeat_secs
    ):
        return start(config, workdir, FLAGS.resume, FLAGS.profile_steps, **more)


def asked_for() -> segments.Extension | None:
    """Return by what a finished run is to be extended, if it is.

    Raises:
      UserError: for a length that is none, or flags that say nothing without one.
    """
    if FLAGS.extend_to:
        if FLAGS.config is None and not FLAGS.workdir:
            raise errors.UserError("--extend_to needs the run: give --workdir=RUN")
        segments.length(FLAGS.extend_to)
        return segments.Extension(FLAGS.extend_to, FLAGS.extend_lr, FLAGS.extend_warmup)
    for flag in ("extend_lr", "extend_warmup"):
        if FLAGS[flag].value is not None:
            raise errors.UserError(f"--{flag} is of a run that is extended: give --extend_to too")
    return None


if __name__ == "__main__":
    entry.run(main)
