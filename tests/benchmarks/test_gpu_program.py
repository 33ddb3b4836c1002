"""`benchmarks/gpu_program.py`: what it says without XLA's compiler for GPUs, and with it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).parents[2] / "benchmarks" / "gpu_program.py"
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
THERE = any(map(importlib.util.find_spec, PLUGINS))


def run(*arguments):
    return subprocess.run(
        [sys.executable, COMMAND, *arguments],
        env=os.environ,
        cwd=COMMAND.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(THERE, reason="the compiler is installed")
def test_without_the_compiler_it_says_so():
    done = run()
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "pip install jax-cuda12-plugin" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not THERE, reason="XLA's compiler for GPUs is not installed")
def test_bytes_of_a_small_step():
    small = ("model.depth=10", "model.width=0.25", "data.image_size=32")
    done = run("--images=8", *(f"--config.{field}" for field in small))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("8 images, 16 views, compiled for an H100")
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    shares = {row[0]: float(row[3]) for row in rows if row[3] != "share"}
    kinds, parts = ("convolution", "reduction"), ("encoder, forward", "encoder, backward")
    assert all(shares[name] > 0.05 for name in (*kinds, *parts))
    assert sum(shares.values()) == pytest.approx(2, abs=0.02)  # all of it by kind, and by part
