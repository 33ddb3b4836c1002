"""What the code does on the accelerator that is here: one command, at most ten minutes.

    python benchmarks/gpu.py --out=gpu.jsonl                # on an accelerator
    python benchmarks/gpu.py --tiny --out=/tmp/tiny.jsonl   # the same on a CPU, sizes of a toy
    python benchmarks/gpu.py --sections=accumulation,bitwise,resume --out=gpu.jsonl

Steps are those of the shipped recipes, `configs/imagenet.py` and `configs/cifar10.py`, in bfloat16,
on images made in memory: neither data sets nor TensorFlow nor simplejpeg are needed. Beside them
stands the PyTorch step of `benchmarks/torch_step.py`, if PyTorch is installed: views given to both,
in turns. Sections run in the order below, the most valuable first; one for which too little of
--budget is left is skipped with a line. A section that fails says so in a line, and the next one
begins. Rows are printed as they are known, and appended to --out (JSON lines) at once; what
libraries print is in the file of that name that ends in `.log`. docs/performance.md says what the
columns are.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags
from measured import proofs, speed
from measured.bench import Bench, Network, Sizes
from measured.session import Session
from measured.worker import Failed, one_line

from simclr_jax import entry, errors, flag_kinds

# Section: the function, and the seconds that it wants at least on an accelerator.
SECTIONS: dict[str, tuple[Callable[[Bench], None], float]] = {
    "machine": (speed.machine, 5),
    "resnet50": (speed.resnet50, 120),
    "limits": (speed.limits, 20),
    "resnet18": (speed.resnet18, 60),
    "shares": (speed.shares, 30),
    "profile": (speed.profile, 30),
    "largest": (speed.largest, 60),
    "accumulation": (proofs.accumulation, 90),
    "bitwise": (proofs.bitwise, 90),
    "resume": (proofs.resume, 90),
}
BFLOAT16 = {"train.dtype": "bfloat16"}
LARGE, SMALL = (1280, 1024, 768, 512, 384, 256, 128, 64), (128, 512, 2048)
FULL = Sizes(
    large=Network(
        "configs/imagenet.py", BFLOAT16, 256, (1024, 768, 512, 384, 256, 128, 64), build_s=100
    ),
    small=Network("configs/cifar10.py", BFLOAT16, 32, (128, 512, 2048), build_s=30),
)
TOY = BFLOAT16 | {"model.depth": 10, "model.width": 1 / 16, "data.image_size": 32}
TINY = Sizes(
    large=Network("configs/imagenet.py", TOY, 40, (4, 8)),
    small=Network("configs/cifar10.py", TOY | {"data.image_size": 16}, 16, (4, 8)),
    scanned=2,
    rounds=2,
    round_s=0.05,
    copied=2**20,
    side=64,
    whole_batch=16,
    parts=(2, 4),
    torch_compile=False,
)

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define the flags of the command."""
    seconds = flag_kinds.Number(above=0)
    flags.DEFINE(seconds, "budget", 570.0, "Seconds that all of it may take.")
    flags.DEFINE_list("sections", list(SECTIONS), f"Of {', '.join(SECTIONS)}.")
    flags.DEFINE_boolean("tiny", False, "Sizes of a toy, for a CPU; no figure of it means a thing.")
    flags.DEFINE_boolean("peer", True, "Put PyTorch's step beside ours, if it is installed.")
    flags.DEFINE_list("large_batches", [], "Images of ResNet-50 on a device, instead of ours.")
    flags.DEFINE_list("small_batches", [], "Images of ResNet-18 on a device, instead of ours.")
    flags.DEFINE(flag_kinds.Path(), "out", "gpu.jsonl", "Rows are appended to it.")
    flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def main() -> None:
    """Run the sections that are asked for, as far as the time goes."""
    for name in FLAGS.sections:
        errors.choose("--sections", name, SECTIONS)
    sizes = chosen()
    # Who is told to end ends the processes that it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    session = Session(FLAGS.budget, Path(FLAGS.out))
    bench = Bench(session, sizes)
    try:
        for name, (section, seconds) in SECTIONS.items():
            if name not in FLAGS.sections:
                continue
            what = (section.__doc__ or "").splitlines()[0]
            if session.begin(name, 0 if FLAGS.tiny else seconds, what):
                attempt(bench, section)
    finally:
        bench.end()
        session.close()
    print(f"\n{session.elapsed:.0f} s; rows are in {FLAGS.out}")


def attempt(bench: Bench, section: Callable[[Bench], None]) -> None:
    """Run a section; what stops it is a row, and the next one begins."""
    try:
        section(bench)
    except Failed as error:
        bench.session.row(failed=str(error))
    except Exception as error:  # a fault of this benchmark must not cost the sections behind it
        if FLAGS.debug:
            raise
        bench.session.row(failed=f"{type(error).__name__}: {one_line(error)}")


def chosen() -> Sizes:
    """Return what the flags say is to be measured.

    Raises:
      UserError: if a batch is no whole number above 0.
    """
    sizes, changes = TINY if FLAGS.tiny else FULL, {"peer": FLAGS.peer}
    for flag in ("large_batches", "small_batches"):
        given = [errors.number(f"--{flag}", text, above=0) for text in getattr(FLAGS, flag)]
        if wrong := [number for number in given if number != int(number)]:
            raise errors.UserError(f"--{flag} has {wrong[0]:g}: give whole numbers")
        if given:
            name = flag.removesuffix("_batches")
            network = getattr(sizes, name)
            changed = dataclasses.replace(network, batches=tuple(map(int, given)))
            changes[name] = changed
    return dataclasses.replace(sizes, **changes)


if __name__ == "__main__":
    define_flags()
    entry.run(main)
