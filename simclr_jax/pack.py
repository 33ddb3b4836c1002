"""Shrink and store images once, so that runs read them from a few large files, without decoding.

    python -m simclr_jax.pack --config=configs/folder.py --config.data.path=~/photos --out=packed
    python -m simclr_jax.pack --config=configs/imagenet.py --out=imagenet_256 --format=jpeg
    python -m simclr_jax.pack --verify=imagenet_256

The images are those of the recipe's `data`, of any source; `--config.data.source=packed
--config.data.path=packed` has them in any recipe. The same command goes on where it was
interrupted. docs/packing.md says what is kept and what it gains.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from simclr_jax import entry, errors, flag_kinds

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Recipe, such as configs/folder.py.")
flags.DEFINE(flag_kinds.Path(), "out", None, "The directory to make.")
flags.DEFINE_enum("format", "uint8", ["uint8", "jpeg"], "Pixels, or JPEGs: smaller, and decoded.")
flags.DEFINE(
    flag_kinds.Whole(8, 2**14), "side", 256, "Pixels of the shorter side; smaller images are kept."
)
flags.DEFINE_boolean(
    "square", False, "Cut out the centre, --side by --side, as augment.placement=device needs it."
)
flags.DEFINE(flag_kinds.Whole(1, 100), "quality", None, "Of JPEGs; 92 by default.")
flags.DEFINE_list("splits", [], "With commas; all there are by default.")
flags.DEFINE(flag_kinds.Whole(1, 1024), "workers", None, "Processes; one for each core by default.")
flags.DEFINE(flag_kinds.Path(), "verify", None, "A packed store, of which to read every byte.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


MAKING = ("config", "out", "format", "side", "square", "quality", "splits", "workers")


def main() -> None:
    """Pack one data set, or verify a store."""
    if FLAGS.verify:
        others = [name for name in MAKING if FLAGS[name].present]
        if others:
            raise errors.UserError(
                f"--{others[0]} belongs to making a store, and --verify={FLAGS.verify} looks at "
                "one: give --verify alone"
            )
        from simclr_jax.data.packing import verify

        verify.verify(FLAGS.verify)
        return
    if FLAGS.config is None:
        raise errors.UserError("no recipe: give --config=configs/folder.py, say")
    if not FLAGS.out:
        raise errors.UserError("--out is missing (see --help)")
    if FLAGS.quality is not None and FLAGS.format != "jpeg":
        raise errors.UserError(f"--quality={FLAGS.quality} belongs to --format=jpeg: leave it out")
    # Imported late: --help and mistakes in flags answer without waiting for libraries.
    from simclr_jax.data.packing import run

    options = run.Options(
        out=FLAGS.out,
        kind=FLAGS.format,
        side=FLAGS.side,
        square=FLAGS.square,
        quality=FLAGS.quality or 92,
        splits=FLAGS.splits,
        workers=FLAGS.workers,
    )
    run.pack(FLAGS.config, options)


if __name__ == "__main__":
    entry.run(main)
