"""Look whether training works on this machine, and say what to change.

    python -m simclr_jax.doctor
    python -m simclr_jax.doctor --data=photographs --workdir=/scratch/runs
    python -m simclr_jax.doctor --config=configs/cifar10.py

In about a minute: versions, devices, disk and memory; whether one device and all compute the same
loss, gradients and batch statistics; whether a step repeats to the bit; and whether images arrive
as fast as the devices take them. Exit code 0 if all is sound, 1 if anything is wrong.
On several hosts each runs it with --distributed.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from simclr_jax import entry, errors, flag_kinds, given_data, shipped

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", None, "Recipe whose images and step are measured; photographs are made by default."
)
flags.DEFINE(
    flag_kinds.Path(),
    "data",
    "",
    "Images to measure: DIRECTORY (splits:DIRECTORY or classes:DIRECTORY where it may have "
    "either), FILE.npz, tfds:NAME or digits.",
)
flags.DEFINE(flag_kinds.Path(), "workdir", "runs", "Where runs are to live: its disk is looked at.")
flags.DEFINE(flag_kinds.Number(above=0), "secs", 5.0, "That each of the two rates is measured.")
flags.DEFINE_boolean("distributed", False, "Be one of several processes.")
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

MADE = "folder"  # the recipe for photographs that are made


def arguments(argv: list[str]) -> list[str]:
    """Return what is parsed: with a recipe, where none is named.

    Raises:
      UserError: if the images of --data have no recipe of their own.
    """
    if entry.argument(argv, "config"):
        return argv
    data = entry.argument(argv, "data")
    try:
        recipe = given_data.recipe(flag_kinds.at_home(data)) if data else shipped.find(MADE)
    except ValueError:  # the flag says it itself
        return argv
    return [argv[0], f"--config={recipe}", *argv[1:]]


def main() -> int:
    """Check this machine; return the exit code."""
    config = FLAGS.config
    if FLAGS.data:
        given_data.put(config, FLAGS.data, config_flags.get_override_values(FLAGS["config"]))
    # Imported late: --help and mistakes in flags answer without waiting for JAX.
    from simclr_jax import parallel, processes
    from simclr_jax.checking import doctor
    from simclr_jax.pipeline.recipe import STAGE

    if config.get("stage") == STAGE:
        raise errors.UserError(
            f"recipe {entry.recipe_path()} is a pipeline of several runs: give that of one run"
        )
    parallel.use_compilation_cache()
    recipe = shipped.name_of(entry.recipe_path().rpartition("/")[2])
    images = FLAGS.data or ("" if recipe == MADE and not config.data.path else recipe)
    with processes.joined(
        FLAGS.distributed, FLAGS.coordinator, FLAGS.processes, FLAGS.process, FLAGS.heartbeat_secs
    ):
        return doctor.run(doctor.Asked(config, images, FLAGS.workdir, FLAGS.secs))


if __name__ == "__main__":
    entry.run(main)
