"""The memory that `simclr_jax.plan` estimates beside what the TPU's compiler plans.

    python benchmarks/plan_check.py --depths=18,50 --images=64 --devices=4

Needs libtpu (`pip install -e '.[plan]'`), no TPU. Each row is one compilation of the real step of
the recipe: minutes. The compiler is asked for a TPU v5p, whose 95 GB hold what v4's 32 do not; the
estimate knows of the device only how it stores arrays.
"""

from __future__ import annotations

import itertools
import time

import jax
from absl import flags
from ml_collections import config_flags

from simclr_jax import entry
from simclr_jax.planning.described import Case
from simclr_jax.planning.footprint import TPU

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", "configs/imagenet.py", "Recipe.")
flags.DEFINE_list("depths", ["18", "50", "152"], "Of the ResNets.")
flags.DEFINE_list("dtypes", ["bfloat16", "float32"], "What convolutions compute in.")
flags.DEFINE_list("remat", ["none", "block"], "What is computed again.")
flags.DEFINE_integer("images", 64, "On a device, two views of each.")
flags.DEFINE_integer("devices", 4, "Chips.")
flags.DEFINE_string("device", "tpu_v5p", "A TPU of simclr_jax/planning/devices.py.")
flags.DEFINE_boolean("quick", True, "Let the compiler take less time, as the plan does.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def main() -> None:
    """Print a row for each case as soon as it is known."""
    jax.config.update("jax_platforms", "cpu")
    print("| ResNet | computes in | remat | estimated GiB | compiled GiB | ratio | s |")
    print("|---|---|---|---|---|---|---|")
    for depth, dtype, remat in itertools.product(FLAGS.depths, FLAGS.dtypes, FLAGS.remat):
        start = time.perf_counter()
        config = FLAGS.config.copy_and_resolve_references()
        config.model.depth = int(depth)
        config.train.dtype, config.train.remat = dtype, remat
        config.train.batch_size = FLAGS.images * FLAGS.devices
        case = Case.of(config, FLAGS.devices)
        found = case.compile(FLAGS.device, FLAGS.quick)
        want = case.at_any_batch().footprint(case.images, TPU)
        seconds = time.perf_counter() - start
        sizes = f"{want.peak / 2**30:.3f} | {found.needed / 2**30:.3f}"
        ratio = f"{want.peak / found.needed:.2f}" if found.memory else "does not fit"
        print(f"| {depth} | {dtype} | {remat} | {sizes} | {ratio} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    entry.run(main)
