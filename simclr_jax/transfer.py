"""Evaluate a pretrained encoder on other data sets, as SimCLR's transfer experiments did.

    python -m simclr_jax.transfer --checkpoint=runs/imagenet --data_dir=~/tensorflow_datasets
    python -m simclr_jax.transfer --checkpoint=runs/imagenet --sets=cifar10,dtd
    python -m simclr_jax.transfer --checkpoint=runs/imagenet --data=photos,tfds:stl10

Linear evaluation on the 12 data sets of the paper that are there: L-BFGS, the penalty chosen on
validation images, no augmentation. TFDS prepares ten of them; Birdsnap and FGVC Aircraft are
directories, DATA_DIR/birdsnap and DATA_DIR/aircraft, with train|val|test/CLASS/*.jpg. Results go to
RUN/results/transfer-NAME.json. Fine-tuning, the other half of the protocol, is a later stage.
"""

from __future__ import annotations

from absl import flags

from simclr_jax import errors, flag_kinds

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


def main() -> None:
    """Evaluate one checkpoint on all data sets asked for."""
    if not FLAGS.checkpoint:
        raise errors.UserError("--checkpoint is missing: give the workdir of a run")
    # Imported late: --help and mistakes in flags answer without waiting for JAX.
    from simclr_jax import parallel
    from simclr_jax.judging import transfer
    from simclr_jax.judging.transfer_sets import NAMES

    parallel.use_compilation_cache()
    sets = ([] if FLAGS.data else NAMES) if FLAGS.sets is None else FLAGS.sets
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


if __name__ == "__main__":
    errors.run(main)
