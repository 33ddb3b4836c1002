"""Our step beside a plain PyTorch one, in turns: the same network, views given to both.

    python benchmarks/against_torch.py --recipe=configs/cifar10.py --batch=64             # a CPU
    python benchmarks/against_torch.py --recipe=configs/imagenet.py --batch=256 --compile # a GPU

Ours is `train.step.make_step` of the recipe, PyTorch's that of `benchmarks/torch_step.py`; each has
a process of its own, and while one is timed the other waits. Ours besides trains a linear probe,
takes the metrics of the log and the norms of LARS. On a CPU float32 is the fair precision, and
XLA's convolutions are slow there (docs/performance.md): that ratio says nothing about accelerators,
for which there is `benchmarks/gpu.py`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from absl import flags
from measured.bench import GIVEN, Bench, Network, Sizes
from measured.session import Session
from measured.speed import against_torch
from measured.worker import Failed

from simclr_jax import entry, errors, flag_kinds

FLAGS = flags.FLAGS
flags.DEFINE_string("recipe", "configs/cifar10.py", "Recipe, relative to the repository.")
flags.DEFINE_integer("batch", 64, "Images on a device.", lower_bound=2)
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What convolutions compute in.")
flags.DEFINE_integer("depth", 0, "Of the ResNet; 0: the recipe's.", lower_bound=0)
flags.DEFINE(flag_kinds.Number(least=0), "width", 0.0, "Of the ResNet; 0: the recipe's.")
flags.DEFINE_integer("size", 0, "Side of a view, pixels; 0: the recipe's.", lower_bound=0)
flags.DEFINE_boolean("compile", False, "By torch.compile.")
flags.DEFINE_integer("turns", 5, "Turns that each step has.", lower_bound=1)
flags.DEFINE(flag_kinds.Number(above=0), "turn_s", 3.0, "Seconds of a turn, about.")
flags.DEFINE(flag_kinds.Number(above=0), "budget", 1800.0, "Seconds that all of it may take.")
flags.DEFINE(flag_kinds.Path(), "out", "", "Append rows, as JSON lines; empty: print them only.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def main() -> None:
    """Print a row for each step and their ratio."""
    named = {"model.depth": FLAGS.depth, "model.width": FLAGS.width, "data.image_size": FLAGS.size}
    fields: dict[str, Any] = {name: value for name, value in named.items() if value}
    fields |= {"train.dtype": FLAGS.dtype, **GIVEN}
    network = Network(FLAGS.recipe, fields, FLAGS.size or 32, (FLAGS.batch,))
    sizes = Sizes(
        network, network, rounds=FLAGS.turns, round_s=FLAGS.turn_s, torch_compile=FLAGS.compile
    )
    with tempfile.TemporaryDirectory() as directory:
        session = Session(FLAGS.budget, Path(FLAGS.out or Path(directory) / "rows.jsonl"))
        bench = Bench(session, sizes)
        try:
            session.begin("against_torch", 0, f"{FLAGS.recipe}, {FLAGS.dtype}")
            session.row(**bench.machine())
            bench.build("step", network, FLAGS.batch)
            against_torch(bench, "step", network)
        except Failed as error:
            raise errors.UserError(f"{error}: see to --recipe, --batch and --budget") from error
        finally:
            bench.end()
            session.close()


if __name__ == "__main__":
    entry.run(main)
