"""How many CPU devices train fastest: images/s of whole steps on 1, 2, 4 and 8 of them, in turns.

    python benchmarks/cpu_devices.py
    python benchmarks/cpu_devices.py --cases=configs/cifar10.py=128 --devices=1,8 --width=0.25

Each number of devices has a process of its own, and while one is timed the others wait. The step is
the one that trains, views included; the batch is the same on any number of devices.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from typing import Any

from absl import flags
from measured.worker import Failed, Worker

from simclr_jax import entry, errors, flag_kinds
from simclr_jax.tables import table

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "cases",
    ["configs/digits.py=256", "configs/cifar10.py=64", "configs/moco.py=256"],
    "Recipes, each with its batch: RECIPE=IMAGES.",
)
flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Numbers of CPU devices.")
flags.DEFINE(flag_kinds.Number(least=0), "width", 0.0, "Of all encoders; 0: the recipe's.")
flags.DEFINE_integer("depth", 0, "Of all encoders; 0: the recipe's.", lower_bound=0)
flags.DEFINE_integer("size", 0, "Side of a view, pixels; 0: the recipe's.", lower_bound=0)
flags.DEFINE_string("stem", "", "Of all encoders; empty: the recipe's.")
flags.DEFINE_integer("turns", 3, "Turns that each has.", lower_bound=1)
flags.DEFINE(flag_kinds.Number(above=0), "turn_s", 4.0, "Seconds of a turn, about.")
flags.DEFINE(flag_kinds.Number(above=0), "limit_s", 300.0, "Seconds that an answer may take.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def main() -> None:
    """Print a row for each recipe."""
    cases = [_case(text) for text in FLAGS.cases]
    counts = [_whole("--devices", text) for text in FLAGS.devices]
    for recipe, images in cases:
        for count in counts:
            if images % count or images // count < 2:
                raise errors.UserError(
                    f"--cases has {recipe}={images}, which {count} devices do not divide into "
                    "parts of 2 images or more: give another batch, or leave that number out"
                )
    print(f"{len(os.sched_getaffinity(0))} cores, median of {FLAGS.turns} turns, images/s")
    rows = [_row(recipe, images, counts) for recipe, images in cases]
    print(table(("recipe", "images", *map(str, counts), "best / 1"), rows))


def _case(text: str) -> tuple[str, int]:
    recipe, equals, images = text.rpartition("=")
    if not equals:
        raise errors.UserError(f'--cases has "{text}": write RECIPE=IMAGES')
    return recipe, _whole("--cases", images)


def _whole(flag: str, text: str) -> int:
    value = errors.number(flag, text, above=0)
    if value != int(value):
        raise errors.UserError(f"{flag} has {text}: give whole numbers")
    return int(value)


def _row(recipe: str, images: int, counts: list[int]) -> tuple[str, ...]:
    """Time a recipe on each number of devices."""
    fields: dict[str, Any] = {"data.resident": False, "augment.placement": "device"}
    fields |= {"augment.grid": "corner", "train.batch_size": images}
    named = {"model.depth": FLAGS.depth, "model.width": FLAGS.width, "data.image_size": FLAGS.size}
    named["model.stem"] = FLAGS.stem
    fields |= {name: value for name, value in named.items() if value}
    canvas = FLAGS.size or 32
    workers, found = {}, {count: list[float]() for count in counts}
    with tempfile.TemporaryFile("w") as log:
        try:
            for count in counts:
                flag = f"--xla_force_host_platform_device_count={count}"
                given = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}"}
                workers[count] = Worker("ours.py", log, {"JAX_PLATFORMS": "cpu", **given})
                workers[count].ask(
                    "build",
                    FLAGS.limit_s,
                    name="step",
                    recipe=recipe,
                    fields=fields,
                    batch=images // count,
                    canvas=canvas,
                )
                one = workers[count].ask("run", FLAGS.limit_s, name="step", calls=1)["seconds"]
                print(f"{recipe}, {count}: {images / one:.0f}", flush=True)
            calls = max(1, round(FLAGS.turn_s / one))
            for _ in range(FLAGS.turns):
                for count, worker in workers.items():
                    took = worker.ask("run", FLAGS.limit_s, name="step", calls=calls)
                    found[count].append(took["seconds"])
        except Failed as error:
            raise errors.UserError(f"{recipe}: {error}") from error
        finally:
            for worker in workers.values():
                worker.end()
    speeds = [images / statistics.median(found[count]) for count in counts]
    return (recipe, f"{images}", *(f"{s:.0f}" for s in speeds), f"{max(speeds) / speeds[0]:.2f}")


if __name__ == "__main__":
    entry.run(main)
