"""Turn a checkpoint of google-research/simclr into a run.

    python -m simclr_jax.convert --source=pretrained/r50_1x_sk0 --workdir=runs/r50_1x_sk0
    python -m simclr_jax.convert --source=finetuned_10pct/r50_1x_sk0 --workdir=runs/tuned --tap=1

Reads checkpoints of TensorFlow 1 and 2 and SavedModels; see docs/checkpoints.md.
"""

from __future__ import annotations

from absl import flags

from simclr_jax import errors, flag_kinds

FLAGS = flags.FLAGS
flags.DEFINE(
    flag_kinds.Path(), "source", None, "model.ckpt-N, ckpt-N, their directory, or a SavedModel."
)
flags.DEFINE(flag_kinds.Path(), "workdir", None, "Where the run will live.")
flags.DEFINE_string("dataset", None, "TFDS data set it was trained on, or none.")
flags.DEFINE(flag_kinds.Whole(1, 2**16), "image_size", None, "Side of its images, in pixels.")
flags.DEFINE(
    flag_kinds.Whole(0, 100), "tap", None, "Layer of the head that its classifier reads; 0 is h."
)
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def main() -> None:
    """Convert one checkpoint."""
    for name in ("source", "workdir"):
        if not FLAGS[name].value:
            raise errors.UserError(f"--{name} is missing (see --help)")
    # Imported late: --help and mistakes in flags answer without waiting for JAX.
    from simclr_jax.interop import convert

    options = convert.Options(FLAGS.dataset, FLAGS.image_size, FLAGS.tap)
    convert.run(FLAGS.source, FLAGS.workdir, options)


if __name__ == "__main__":
    errors.run(main)
