"""Turn weights into a run: of google-research/simclr, a PyTorch ResNet, or a model folder.

    python -m simclr_jax.convert --source=pretrained/r50_1x_sk0 --workdir=runs/r50_1x_sk0
    python -m simclr_jax.convert --source=finetuned_10pct/r50_1x_sk0 --workdir=runs/tuned --tap=1
    python -m simclr_jax.convert --source=moco_v2_800ep_pretrain.pth.tar --workdir=runs/moco
    python -m simclr_jax.convert --source=hf://ORGANISATION/NAME --workdir=runs/theirs

Reads checkpoints of TensorFlow 1 and 2 and SavedModels, what torch.save writes, safetensors, and
what export --format=huggingface writes; see docs/checkpoints.md.
"""

from __future__ import annotations

from absl import flags

from simclr_jax import entry, errors, flag_kinds

FLAGS = flags.FLAGS
flags.DEFINE(
    flag_kinds.Path(),
    "source",
    None,
    "model.ckpt-N, ckpt-N, their directory, a SavedModel; .pth, .pt, .ckpt, .bin, .safetensors; "
    "or a model folder.",
)
flags.DEFINE(flag_kinds.Path(), "workdir", None, "Where the run will live.")
flags.DEFINE_string("dataset", None, "TFDS data set it was trained on, or none.")
flags.DEFINE(flag_kinds.Whole(1, 2**16), "image_size", None, "Side of its images, in pixels.")
flags.DEFINE(
    flag_kinds.Whole(0, 100), "tap", None, "Layer of the head that its classifier reads; 0 is h."
)
flags.DEFINE_string(
    "prefix",
    None,
    "PyTorch: what the names of the wanted encoder begin with, if there are several.",
)
flags.DEFINE_string(
    "input", None, "PyTorch: what the encoder is shown: normalised (usual), rgb, standardised."
)
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def main() -> None:
    """Convert one checkpoint."""
    for name in ("source", "workdir"):
        if not FLAGS[name].value:
            raise errors.UserError(f"--{name} is missing (see --help)")
    # Imported late: --help and mistakes in flags answer without waiting for JAX.
    from simclr_jax.interop import convert

    options = convert.Options(FLAGS.dataset, FLAGS.image_size, FLAGS.tap, FLAGS.prefix, FLAGS.input)
    convert.run(FLAGS.source, FLAGS.workdir, options)


if __name__ == "__main__":
    entry.run(main)
