"""Write what a run has learned into one HTML page that opens anywhere, offline.

    python -m simclr_jax.report --checkpoint=runs/digits
    python -m simclr_jax.report --checkpoint=runs/a,runs/b@2000 --out=compared.html

It may be written while the run goes on; on the same machine, JAX_PLATFORMS=cpu before the command
leaves the accelerator to it. Several runs stand side by side.
"""

from __future__ import annotations

from absl import flags

from simclr_jax import entry, errors, flag_kinds

FLAGS = flags.FLAGS
flags.DEFINE(
    flag_kinds.Paths(), "checkpoint", None, "The run's workdir, or RUN@STEP; several with commas."
)
flags.DEFINE(
    flag_kinds.Path(), "out", None, "The page; RUN/report.html by default, of the first run."
)
flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def main() -> None:
    """Write the report of one run or several."""
    if not FLAGS.checkpoint:
        raise errors.UserError("--checkpoint is missing (see --help)")
    # Imported late: --help and mistakes in flags answer without waiting for JAX.
    from simclr_jax import parallel
    from simclr_jax.reporting import report

    parallel.use_compilation_cache()
    report.run(FLAGS.checkpoint, FLAGS.out)


if __name__ == "__main__":
    entry.run(main)
