"""Write the encoder of a run as a file that other programs read.

    python -m simclr_jax.export --checkpoint=runs/digits --format=torch --out=digits_torch
    python -m simclr_jax.export --checkpoint=runs/photos --format=onnx --out=photos.onnx --tap=h,z

The file is run on reference images before it is there; see docs/export.md.
"""

from __future__ import annotations

from absl import flags

from simclr_jax import entry, errors, flag_kinds

FLAGS = flags.FLAGS
flags.DEFINE(flag_kinds.Path(), "checkpoint", None, "The run: WORKDIR, or WORKDIR@STEP.")
flags.DEFINE_string(
    "format",
    None,
    "Directories: torch, huggingface, stablehlo, savedmodel; files: safetensors, onnx, numpy.",
)
flags.DEFINE(flag_kinds.Path(), "out", None, "The file or directory to write; must not be there.")
flags.DEFINE_list(
    "tap",
    [],
    "Vectors, with commas: h, z, head1 to headL, group1 to group4, logits (of the classifier); "
    "h by default, and logits of a run that was trained on labels.",
)
flags.DEFINE_string(
    "weights", "trained", "trained, or average: their moving average, where the run keeps one."
)
flags.DEFINE_string(
    "preprocess",
    "",
    "HEIGHTxWIDTH of uint8 images that the file crops and resizes itself (onnx, stablehlo, "
    "savedmodel); by default it takes floats in [0, 1] of the size of the run's views.",
)
flags.DEFINE_string(
    "loads_in", "", "torchvision or timm: must load it strictly with equal features (torch)."
)
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def main() -> None:
    """Export one run."""
    for name in ("checkpoint", "format", "out"):
        if not FLAGS[name].value:
            raise errors.UserError(f"--{name} is missing (see --help)")
    # Imported late: --help and mistakes in flags answer without waiting for JAX.
    from simclr_jax import parallel
    from simclr_jax.interop import export

    parallel.use_compilation_cache()
    export.run(
        export.Options(
            checkpoint=FLAGS.checkpoint,
            format=FLAGS.format,
            out=FLAGS.out,
            taps=tuple(FLAGS.tap),
            weights=FLAGS.weights,
            preprocess=FLAGS.preprocess,
            loads_in=FLAGS.loads_in,
        )
    )


if __name__ == "__main__":
    entry.run(main)
