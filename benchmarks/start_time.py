"""Seconds from the command to the first step, cold and warm, and the longest time without a line.

    python benchmarks/start_time.py
    python benchmarks/start_time.py --root=ANOTHER_CHECKOUT --runs=2

`cold` has empty caches, `warm` finds there what the cold run has left. CIFAR-10 is stood in for by
512 images of noise, in batches of 64, for the images have to be evaluated before the first step.
A run is ended once it has said its first line of training; a line comes after each step.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags

from simclr_jax import entry, errors, flag_kinds
from simclr_jax.tables import table

FLAGS = flags.FLAGS
flags.DEFINE_list("recipes", ["digits", "cifar10"], "Which to start: digits, cifar10.")
flags.DEFINE(flag_kinds.Path(), "root", "", "The checkout whose program is started; this one.")
flags.DEFINE_integer("runs", 1, "Warm starts of each; the median is shown.", lower_bound=1)
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

IMAGES, HELD_OUT, BATCH = 512, 128, 64
ROOT = Path(__file__).resolve().parents[1]
MAIN = (sys.executable, "-m", "simclr_jax.main")
HASTE = ("--config.log.every_steps=1", "--config.eval.compare=False")


def main() -> None:
    """Start each recipe cold and then warm, and print a row for each start."""
    rows = []
    for name in FLAGS.recipes:
        errors.choose("--recipes", name, ("digits", "cifar10"))
        with tempfile.TemporaryDirectory() as directory:
            arguments = (f"--config=configs/{name}.py", *HASTE, *_data(name, Path(directory)))
            found = [_start(arguments, Path(directory), n) for n in range(FLAGS.runs + 1)]
        warm = sorted(found[1:])[FLAGS.runs // 2]
        for how, (first, silence) in (("cold", found[0]), ("warm", warm)):
            rows.append((name, how, f"{first:.1f}", f"{silence:.1f}"))
    print(table(("recipe", "caches", "to the first step, s", "longest without a line, s"), rows))


def _data(name: str, directory: Path) -> tuple[str, ...]:
    if name == "digits":
        return ()
    random, path = np.random.RandomState(0), directory / "noise.npz"
    pixels = random.randint(0, 256, (IMAGES + HELD_OUT, 32, 32, 3)).astype(np.uint8)
    np.savez(path, images=pixels, labels=np.arange(len(pixels)) % 10)
    return (
        "--config.data.source=memory",
        "--config.data.name=",
        f"--config.data.path={path}",
        f"--config.data.holdout_fraction={HELD_OUT / len(pixels)}",
        f"--config.train.batch_size={BATCH}",
        "--config.log.to=",
    )


def _start(arguments: tuple[str, ...], directory: Path, number: int) -> tuple[float, float]:
    """Return the seconds to the first step, and the longest time without a line until then."""
    root = Path(FLAGS.root or ROOT)
    cache = {"XDG_CACHE_HOME": os.fspath(directory / "cache"), "PYTHONPATH": os.fspath(root)}
    start = last = time.perf_counter()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "simclr_jax.main",
            *arguments,
            f"--workdir={directory / str(number)}",
        ],
        cwd=root,
        env=os.environ | cache,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    silence, said = 0.0, []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            now = time.perf_counter()
            silence, last = max(silence, now - last), now
            said.append(line)
            if line.startswith("step ") and "/" in line.split()[1]:
                return now - start, silence
        raise errors.UserError(f"it ended without a step: {''.join(said[-3:]).strip()}")
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    entry.run(main)
