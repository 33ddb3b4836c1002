"""Evaluate a pretrained encoder on other data sets, as SimCLR's transfer experiments did.

    python -m simclr_jax.transfer --checkpoint=runs/imagenet --data_dir=~/tensorflow_datasets
    python -m simclr_jax.transfer --checkpoint=runs/imagenet --sets=cifar10,dtd
    python -m simclr_jax.transfer --checkpoint=runs/imagenet --data=photos,tfds:stl10
    python -m simclr_jax.transfer --checkpoint=runs/imagenet --protocol=finetune

The 12 data sets of the paper, as many as are there. --protocol=linear: L-BFGS on frozen features,
the penalty chosen on validation images, no augmentation. --protocol=finetune: the whole network,
7 x 8 runs of 20 000 steps for each data set, then one of the best rate and decay on training and
validation images; the same command continues where it was stopped.

TFDS prepares ten of the sets; Birdsnap and FGVC Aircraft are directories, DATA_DIR/birdsnap and
DATA_DIR/aircraft, with train|val|test/CLASS/*.jpg. Results go to RUN/results/transfer-NAME.json and
transfer-finetune-NAME.json.
"""

from __future__ import annotations

from absl import flags

from simclr_jax import entry, errors, flag_kinds

FLAGS = flags.FLAGS
flags.DEFINE(flag_kinds.Path(), "checkpoint", "", "The run: WORKDIR, or WORKDIR@STEP.")
flags.DEFINE_string(
    "weights", "trained", "trained, or average: their moving average, where the run keeps one."
)
flags.DEFINE(
    flag_kinds.Path(), "data_dir", "", "Where the data sets lie; by default where TFDS keeps them."
)
flags.DEFINE_list(
    "sets",
    None,
    "food101, cifar10, cifar100, birdsnap, sun397, cars196, aircraft, voc2007, dtd, pets, "
    "caltech101, flowers102; all that are there by default, none with --data.",
)
flags.DEFINE_enum("protocol", "linear", ["linear", "finetune"], "What learns on each data set.")
flags.DEFINE(
    flag_kinds.Path(), "workdir", "", "Where the runs of finetune lie; by default RUN/transfer."
)
flags.DEFINE_list("finetune_rates", None, "7 from 0.0001 to 0.1 by default, evenly in logarithm.")
flags.DEFINE_list(
    "finetune_decays", None, "Divided by the rate; 0 and 7 from 1e-6 to 1e-3 by default."
)
flags.DEFINE(flag_kinds.Whole(1), "finetune_steps", None, "Of each run, 20000 by default.")
flags.DEFINE(flag_kinds.Whole(1), "finetune_batch_size", None, "256 by default.")
flags.DEFINE(flag_kinds.Paths(), "data", [], "Further data sets: DIRECTORY, FILE.npz or tfds:NAME.")
flags.DEFINE(
    flag_kinds.Whole(0, 2**32 - 1),
    "seed",
    0,
    "Of intervals, and of validation images where a set has none.",
)
flags.DEFINE(
    flag_kinds.Path(),
    "cache",
    "",
    "Where features are kept; RUN/features by default, none: nowhere.",
)
flags.DEFINE(
    flag_kinds.Number(least=0, most=1),
    "max_bad_fraction",
    None,
    "Of unreadable images; the recipe's by default.",
)
flags.DEFINE_boolean("seen", False, "Score also images that may have been trained on.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


OF_FINETUNE = ("workdir", *(f"finetune_{of}" for of in ("rates", "decays", "steps", "batch_size")))


def main() -> int:
    """Evaluate one checkpoint on all data sets asked for."""
    if not FLAGS.checkpoint:
        raise errors.UserError("--checkpoint is missing: give the workdir of a run")
    tunes = FLAGS.protocol == "finetune"
    for name in OF_FINETUNE if not tunes else ("cache", "weights"):
        if FLAGS[name].present:
            other = "linear" if tunes else "finetune"
            raise errors.UserError(f"--{name} is of --protocol={other}: leave one of them out")
    # Imported late: --help and mistakes in flags answer without waiting for JAX.
    from simclr_jax import parallel
    from simclr_jax.judging import transfer, transfer_finetune, tuned_runs
    from simclr_jax.judging.transfer_sets import NAMES

    parallel.use_compilation_cache()
    sets = ([] if FLAGS.data else NAMES) if FLAGS.sets is None else FLAGS.sets
    if tunes:
        return transfer_finetune.run(
            FLAGS.checkpoint,
            FLAGS.data_dir,
            sets=sets,
            others=FLAGS.data,
            grid=tuned_runs.Grid(
                _numbers("finetune_rates", tuned_runs.RATES),
                _numbers("finetune_decays", tuned_runs.DECAYS, zero=True),
                FLAGS.finetune_steps or tuned_runs.STEPS,
                FLAGS.finetune_batch_size or tuned_runs.BATCH,
            ),
            place=FLAGS.workdir,
            seed=FLAGS.seed,
            max_bad_fraction=FLAGS.max_bad_fraction,
            seen=FLAGS.seen,
        )
    transfer.run(
        FLAGS.checkpoint,
        FLAGS.data_dir,
        sets=sets,
        others=FLAGS.data,
        cache=FLAGS.cache,
        seed=FLAGS.seed,
        max_bad_fraction=FLAGS.max_bad_fraction,
        seen=FLAGS.seen,
        weights=FLAGS.weights,
    )
    return 0


def _numbers(flag: str, usual: tuple[float, ...], zero: bool = False) -> tuple[float, ...]:
    """Return the numbers of a list, each once and rising, or the usual ones.

    They are above 0, or with `zero` not below.
    """
    given = FLAGS[flag].value
    if given is None:
        return usual
    found = [errors.number(f"--{flag}", text) for text in given]
    if not found:
        raise errors.UserError(f"--{flag} is empty: give numbers with commas between them")
    least = min(found)
    if least < 0 or (least == 0 and not zero):
        limit = "0 or more" if zero else "above 0"
        raise errors.UserError(f"--{flag} has {least:g}: give numbers {limit}")
    return tuple(sorted({*found}))


if __name__ == "__main__":
    entry.run(main)
