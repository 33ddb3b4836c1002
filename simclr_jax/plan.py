"""Say what a recipe needs on devices that you do not have.

    python -m simclr_jax.plan --config=configs/imagenet.py --devices=32
    python -m simclr_jax.plan --config=configs/imagenet.py:one_gpu --devices=1 --device=h100
    python -m simclr_jax.plan --config=configs/folder.py --images=50000 --device=a100 \\
        --config.data.image_size=128 --json=plan.json

Neither the devices nor the images have to be here. docs/planning.md says what the figures mean.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from simclr_jax import entry, errors, flag_kinds

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Recipe, such as configs/imagenet.py.")
flags.DEFINE(flag_kinds.Whole(1, 10**6), "devices", 1, "How many: chips of TPUs, GPUs.")
flags.DEFINE_string(
    "device", "tpu_v4", "tpu_v4, tpu_v5e, tpu_v5p, tpu_v6e, a100_40, a100, h100, h200 or l4."
)
flags.DEFINE_string("device_memory", "", "Of each device, such as 32GB; the device's by default.")
flags.DEFINE(flag_kinds.Whole(0, 10**12), "images", 0, "Of a data set that is not here.")
flags.DEFINE(
    flag_kinds.Whole(0, 10**7), "classes", 0, "Of a data set that is not here; 0: no labels."
)
flags.DEFINE_boolean(
    "compile", None, "Ask the TPU's compiler too (minutes); by default if libtpu is installed."
)
flags.DEFINE(flag_kinds.Path(), "json", "", "File to write the plan to, in bytes and operations.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def main() -> None:
    """Plan one recipe."""
    if FLAGS.config is None:
        raise errors.UserError("no recipe: give --config=configs/imagenet.py, say")
    # Imported late: --help and mistakes in flags answer without waiting for JAX.
    import jax

    from simclr_jax.planning import devices, plan

    devices.find(FLAGS.device)
    memory = devices.parse_bytes(FLAGS.device_memory) if FLAGS.device_memory else None
    jax.config.update("jax_platforms", "cpu")  # whatever is here stays free for others
    asked = plan.Asked(
        FLAGS.device, FLAGS.devices, memory, FLAGS.images, FLAGS.classes, FLAGS.compile
    )
    plan.run(FLAGS.config, asked, FLAGS.json)


if __name__ == "__main__":
    entry.run(main)
