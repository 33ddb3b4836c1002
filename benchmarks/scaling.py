"""How a step of ResNet-50 scales from 8 to 512 TPU v4: work, traffic, and where it stops.

    python benchmarks/scaling.py --batches=4096,32768
    python benchmarks/scaling.py --compiled=8,32        # what XLA sends, beside what is expected

Nothing is timed. Operations and bytes are read from the real step; seconds are those bytes and
operations over published speeds, times the efficiency assumed. The second form compiles the step
for so many CPU devices and reads its collectives there, at a small batch of small views: they do
not depend on the views' size.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from simclr_jax import entry

if TYPE_CHECKING:
    from simclr_jax.planning.program import Program

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", "configs/imagenet.py", "Recipe.")
flags.DEFINE_list("batches", ["4096", "32768"], "Global batches, images.")
flags.DEFINE_list("counts", [str(8 * 2**i) for i in range(7)], "Devices.")
flags.DEFINE_string("device", "tpu_v4", "One of simclr_jax/planning/devices.py.")
flags.DEFINE_float("compute", 0.4, "Share of the peak that convolutions reach.")
flags.DEFINE_float("links", 0.5, "Share of the links' peak that collectives reach.")
flags.DEFINE_float("latency", 1e-6, "Seconds for each neighbour that a collective passes.")
flags.DEFINE_integer("per_host", 4, "Devices that share a host.")
flags.DEFINE_list("compiled", [], "Numbers of CPU devices to compile for.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def main() -> None:
    """Print the tables."""
    if FLAGS.compiled:
        most = max(map(int, FLAGS.compiled))
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={most}"
        return compiled(list(map(int, FLAGS.compiled)))
    for batch in map(int, FLAGS.batches):
        estimated(batch)


def compiled(counts: list[int]) -> None:
    """Compare the collectives of a compiled step with those read from the step."""
    import jax

    from simclr_jax import parallel
    from simclr_jax.planning import ahead, program
    from simclr_jax.train.step import make_step

    jax.config.update("jax_platforms", "cpu")
    print("| devices | batch | kind | expected bytes | compiled bytes |")
    print("|---|---|---|---|---|")
    for count in counts:
        case = _case(count, 4 * count, image_size=32)
        mesh = parallel.make_mesh(count)
        state, batch = parallel.describe(mesh, case.state()), case.batch(case.images, mesh)
        step: Any = make_step(case.stage(mesh), mesh)
        found = ahead.collectives(step.lower(state, batch).compile().as_text())
        want = program.collectives(program.read(step, state, batch))
        for kind in sorted(want.keys() | found.keys()):
            sizes = f"{want.get(kind, 0)} | {found.get(kind, 0)}"
            print(f"| {count} | {4 * count} | {kind} | {sizes} |", flush=True)


def _case(count: int, batch: int, image_size: int = 224):
    from simclr_jax.planning.described import Case

    config = FLAGS.config.copy_and_resolve_references()
    config.train.batch_size, config.data.image_size = batch, image_size
    return Case.of(config, count)


def estimated(batch: int) -> None:
    """Print what a step costs on each number of devices."""
    import jax

    from simclr_jax.planning import devices, program
    from simclr_jax.planning.any_batch import AnyBatch
    from simclr_jax.planning.footprint import TPU

    jax.config.update("jax_platforms", "cpu")
    device = devices.find(FLAGS.device)
    room = devices.usable(FLAGS.device, device.memory)
    print(f"\nglobal batch {batch}\n")
    print(
        "| devices | images each | GiB each | compute | statistics | embeddings | gradients | step "
        "| images/s | of ideal | input: images/s a host |"
    )
    print("|" + "---|" * 11)
    ideal = 0.0
    for count in map(int, FLAGS.counts):
        case = _case(count, batch)
        steps: AnyBatch = case.at_any_batch()
        at = steps.at(case.images)
        traffic = by_purpose(at)
        seconds = {"compute": program.flops(at) / (FLAGS.compute * device.flops)}
        for purpose, (size, calls) in traffic.items():
            # A ring sends everything twice (all-reduce) or once; a call goes round once.
            bandwidth = FLAGS.links * device.link
            seconds[purpose] = size / bandwidth + calls * FLAGS.latency * _hops(count)
        total = sum(seconds.values())
        ideal = ideal or batch / total / count
        memory = steps.footprint(case.images, TPU).peak
        fits = "" if memory <= room else " (does not fit)"
        cells = [f"{1e3 * seconds[name]:.2f} ms" for name in seconds]
        speed = batch / total
        cells += [f"{1e3 * total:.1f} ms", f"{speed:.0f}", f"{speed / count / ideal:.0%}"]
        cells += [f"{speed * FLAGS.per_host / count:.0f}"]
        print(f"| {count} | {case.images} | {memory / 2**30:.1f}{fits} | {' | '.join(cells)} |")


def by_purpose(program: Program) -> dict[str, tuple[int, int]]:
    """Return the bytes that a device sends on a ring in a step, and the rounds, by what they are.

    `statistics`: of batch normalisation; `embeddings`: gathered, and their gradient; `gradients`:
    all that is reduced once the backward pass is done, metrics with them. A ring sends nearly all
    of an array once for a gather or a scatter, and twice for an all-reduce. Collectives that do not
    wait for each other are one round; gradients are one in all, as compilers combine them.
    """
    from simclr_jax.planning.program import COLLECTIVES  # it loads JAX, which then reads its flags

    last = max(t for t, op in enumerate(program.ops) if op.name == "conv_general_dilated")
    sent = {"statistics": 0, "embeddings": 0, "gradients": 0}
    rounds: dict[str, set[int]] = {purpose: set() for purpose in sent}
    waited: dict[int, int] = {}  # collectives, one after another, behind each array
    for time, op in enumerate(program.ops):
        before = max((waited.get(array, 0) for array in op.inputs), default=0)
        kind = COLLECTIVES.get(op.name)
        waited |= dict.fromkeys(op.outputs, before + (kind is not None))
        if kind is None:
            continue
        # The larger side is the whole, whichever way the collective goes.
        whole = max(sum(map(program.bytes, arrays)) for arrays in (op.inputs, op.outputs))
        after = "gradients" if time > last else "statistics"
        purpose = after if kind == "all-reduce" else "embeddings"
        sent[purpose] += 2 * whole if kind == "all-reduce" else whole
        rounds[purpose].add(before if purpose != "gradients" else 0)
    return {purpose: (sent[purpose], len(rounds[purpose])) for purpose in sent}


def _hops(count: int) -> float:
    """Return how many neighbours a ring in each direction of the torus passes."""
    return 3 * count ** (1 / 3)


if __name__ == "__main__":
    entry.run(main)
