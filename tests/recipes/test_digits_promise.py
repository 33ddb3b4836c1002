"""Does the quickstart keep its promise? What its benchmark says of runs that are complete."""

import importlib.metadata
import platform
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from simclr_jax import documents

ROOT = Path(__file__).parents[2]
JAX = importlib.metadata.version("jax")
PLACE = f"JAX {JAX}, Python {platform.python_version().rpartition('.')[0]}, 2 device(s)"


def complete(folder, seed, knn, seconds, **changed):
    """Write what a complete run of the recipe leaves and the benchmark reads."""
    config = runpy.run_path(str(ROOT / "configs" / "digits.py"))["get_config"]()
    config.seed = seed
    config.update_from_flattened_dict(changed)
    run = folder / f"placed_jax{JAX}_2_{seed}"
    scores = {
        thing: {"kNN": {"accuracy": accuracy / 100, "low": 0.0, "high": 1.0}}
        for thing, accuracy in {"raw pixels": 50.8, "pretrained encoder": knn}.items()
    }
    (run / "results").mkdir(parents=True)
    documents.write(run / "config.json", config.to_dict())
    documents.write(
        run / "results" / "summary.json", {"protocol": {"held_out_images": 360}, "scores": scores}
    )
    if seconds:
        documents.write(run / "seconds.json", {"seconds": seconds})


def asked(folder):
    """Run the benchmark over runs of seeds 0 and 1, from another directory."""
    command = [sys.executable, ROOT / "benchmarks" / "digits_seeds.py", f"--workdir={folder}"]
    command += ["--seeds=2", "--devices=2"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


# kNN and seconds of seeds 0 and 1, and what is said: lowest, mean, deviation, margin, longest.
CASES = {
    "kept": ((70.0, 100.0), (73.0, 120.0), "70.0  71.5  2.1  +19.2  120 s  kept"),
    "a seed too low": ((65.7, 100.0), (66.1, 90.0), "65.7  65.9  0.3  +14.9  100 s  broken"),
    "seeds too far apart": ((70.0, 9.0), (74.0, 9.0), "70.0  72.0  2.8  +19.2  9 s  broken"),
    "too slow": ((70.0, 100.0), (71.0, 181.0), "70.0  70.5  0.7  +19.2  181 s  broken"),
    "continued": (
        (70.0, 100.0),
        (71.0, None),
        "70.0  70.5  0.7  +19.2  unknown  kept, but for time",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_promise_is_that_of_every_seed(tmp_path, case):
    *runs, want = CASES[case]
    for seed, (knn, seconds) in enumerate(runs):
        complete(tmp_path, seed, knn, seconds)
    done = asked(tmp_path)
    assert done.returncode == 0, done.stderr
    said = [" ".join(line.split()) for line in done.stdout.splitlines()]
    (knn, seconds), first = runs[0], said[0]
    assert first == (
        f"{PLACE}, seed 0: kNN {knn:.1f} %, raw pixels 50.8 %, {knn - 50.8:+.1f} points, "
        f"{seconds:.0f} s"
    )
    assert f"{PLACE} {' '.join(want.split())}" in said


def test_runs_of_another_recipe_are_not_counted(tmp_path):
    complete(tmp_path, 0, 70.0, 100.0)
    complete(tmp_path, 1, 70.0, 100.0, **{"optim.base_lr": 7.0})
    done = asked(tmp_path)
    assert done.returncode == 1 and "optim.base_lr: 7.0 -> " in done.stderr
    assert done.stderr.count("\n") == 1 and f"placed_jax{JAX}_2_1" in done.stderr
