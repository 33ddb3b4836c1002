"""Write the embeddings of images to a file.

    python -m simclr_jax.embed --checkpoint=runs/folder --out=photos.npz
    python -m simclr_jax.embed --checkpoint=runs/folder --data=~/more --out=more.parquet --tap=z

The same command continues where it was interrupted. `python -m simclr_jax.search` reads the file.
"""

from __future__ import annotations

from absl import flags

from simclr_jax import entry, errors, flag_kinds

FLAGS = flags.FLAGS
flags.DEFINE(flag_kinds.Path(), "checkpoint", None, "The run: WORKDIR, or WORKDIR@STEP.")
flags.DEFINE(flag_kinds.Path(), "out", None, "The file to write: NAME.npz or NAME.parquet.")
flags.DEFINE(
    flag_kinds.Path(),
    "data",
    "",
    "DIRECTORY (splits:DIRECTORY or classes:DIRECTORY where it may have either), FILE.npz, "
    "tfds:NAME or digits; the run's own data by default.",
)
flags.DEFINE(flag_kinds.Path(), "data_dir", "", "Where TFDS keeps its data sets.")
flags.DEFINE_string(
    "split",
    "",
    "Splits, with commas; by default all of --data, or of the run's own data the one to train on "
    "and the one held out.",
)
flags.DEFINE_string(
    "weights", "trained", "trained, or average: their moving average, where the run keeps one."
)
flags.DEFINE_string("tap", "h", "h, z, head1 to headL, group1 to group4, or pixels.")
flags.DEFINE(
    flag_kinds.Path(), "cache", "", 'Directory that keeps features; WORKDIR/features, or "none".'
)
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def main() -> None:
    """Embed the images of one data set."""
    for name in ("checkpoint", "out"):
        if not FLAGS[name].value:
            raise errors.UserError(f"--{name} is missing (see --help)")
    # Imported late: --help and mistakes in flags answer without waiting for JAX.
    from simclr_jax import parallel
    from simclr_jax.embedding import embed

    parallel.use_compilation_cache()
    embed.run(
        embed.Options(
            checkpoint=FLAGS.checkpoint,
            out=FLAGS.out,
            data=FLAGS.data,
            data_dir=FLAGS.data_dir,
            split=FLAGS.split,
            tap=FLAGS.tap,
            cache=FLAGS.cache,
            weights=FLAGS.weights,
        )
    )


if __name__ == "__main__":
    entry.run(main)
