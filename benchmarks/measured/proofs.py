"""The sections of `gpu.py` that show that something holds on this device."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from measured.bench import ALONE, GIB, ON_DEVICE, OURS, Bench, rates, timed_alone
from measured.worker import ROOT, Failed

STEPS = 3  # that must repeat
# Recipes have this field, or XLA is told for all programs.
FIELD = "train.deterministic"
FLAG = "--xla_gpu_deterministic_ops=true"
RECIPE = "benchmarks/faults/tiny.py:pretrain"
# An evaluation compiles more than the step, and is not what is asked about.
NO_EVALUATION = ("--config.eval.knn=False", "--config.eval.compare=False")
LINES = 5  # of metrics, after which a run is killed


def accumulation(bench: Bench) -> None:
    """Take steps of one large batch in parts, in the fewest of `sizes.parts` that fit."""
    bench.end()  # the whole card is wanted
    sizes = bench.sizes
    large, count = sizes.large.with_views(ON_DEVICE), bench.machine()["count"]
    batch = sizes.whole_batch // count
    most = max(sizes.large.batches)
    for parts in [parts for parts in sizes.parts if batch // parts <= most] or sizes.parts[-1:]:
        fields = {"train__accumulate": parts, "bn__groups": parts}
        try:
            built = bench.build("parts", large, batch, **fields)
            took = timed_alone(bench, "parts")
        except Failed as error:
            bench.session.row(batch=batch, parts=parts, failed=str(error))
            if not error.memory:
                return
            continue
        memory = built["memory_bytes"]
        row = {"batch": batch, "parts": parts, "memory_gib": memory / GIB}
        room = bench.machine()["memory"] * ALONE
        row |= {"of_memory": memory / room} if room else {}
        bench.session.row(**row, **rates(built["views"], took), compile_s=built["compile_s"])
        bench.drop("parts")
        return


def bitwise(bench: Bench) -> None:
    """Take the same steps in two processes and compare all numbers of their states.

    Nothing is read from the cache of compiled programs, and both processes compile at the same
    time: each chooses its own kernels, under the other's load.
    """
    by_field = bench.ours("has_field", name=FIELD)
    bench.end()  # and leave the card to them
    plain: tuple[dict[str, Any], str] = {}, ""
    told = ({FIELD: True}, "") if by_field else ({}, FLAG)
    for name, how in (("as it is", plain), ("deterministic", told)):
        start = bench.session.elapsed
        found = _repeated(bench, *how)
        bench.session.row(
            what=name,
            by="nothing" if how is plain else FIELD if by_field else FLAG,
            steps=STEPS,
            **found,
            took_s=bench.session.elapsed - start,
        )


def _repeated(bench: Bench, fields: dict[str, Any], flags: str) -> dict[str, Any]:
    """Compare the states that two processes reach at the same time; see `differences`."""
    network = bench.sizes.small.with_views(ON_DEVICE | fields)
    session, asked = bench.session, {"name": "repeated", "batch": bench.sizes.small.batches[0]}
    more = {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = [stack.enter_context(session.worker("ours.py", **OURS, **more)) for _ in "ab"]
        paths = [directory / f"{i}.npz" for i in range(len(workers))]
        for worker in workers:
            worker.send("build", **asked, **network.asked())
        for worker in workers:
            worker.receive(session.left)
        took = [w.ask("run", session.left, name="repeated", calls=STEPS) for w in workers]
        for worker, path in zip(workers, paths, strict=True):
            worker.ask("save", session.left, name="repeated", path=os.fspath(path))
        states = [dict(np.load(path)) for path in paths]
    return differences(*states) | {"ms": 1e3 * min(one["seconds"] for one in took)}


def differences(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return whether two states have the same bits, and how far apart they are if not.

    Returns:
      `same`; `arrays` and how many of them are `different`; `largest`: of all differences, each
      as a share of the largest number of its array.
    """
    different, largest = 0, 0.0
    for name, values in one.items():
        there = other[name]
        if values.tobytes() == there.tobytes():
            continue
        different += 1
        wide, there = values.astype(np.float64), there.astype(np.float64)
        scale = float(np.max(np.abs(wide))) or 1.0
        largest = max(largest, float(np.max(np.abs(wide - there))) / scale)
    same = not different and one.keys() == other.keys()
    return {"same": same, "arrays": len(one), "different": different, "largest": largest}


def resume(bench: Bench) -> None:
    """Kill a small run of `simclr_jax.main` by SIGKILL, resume it and compare its losses.

    The reference is the same run, never interrupted.
    """
    fields = [f"--config.{FIELD}=True"] if bench.ours("has_field", name=FIELD) else []
    bench.end()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        images = directory / "images.npz"
        draw = np.random.default_rng(0)
        pixels = draw.integers(0, 256, (60, 12, 12, 1), dtype=np.uint8)
        np.savez(images, images=pixels, labels=np.arange(60) % 4)
        arguments = [*fields, *NO_EVALUATION, f"--config.data.path={images}"]
        whole = _train(bench, directory / "whole", arguments)
        cut = _train(bench, directory / "cut", arguments, kill_after=LINES)
        again = _train(bench, directory / "cut", arguments)
    same = again == whole
    pairs = [abs(whole[step] - again[step]) for step in whole.keys() & again.keys()]
    bench.session.row(
        killed_after=max(cut, default=0),
        steps=len(whole),
        of_resumed_run=len(again),
        same_losses=same,
        largest_difference=max(pairs, default=float("nan")),
        deterministic=bool(fields),
    )


def _train(
    bench: Bench, workdir: Path, arguments: list[str], kill_after: int = 0
) -> dict[int, float]:
    """Train, to the end or until so many losses are written, and return the losses by step.

    Raises:
      Failed: if the run fails, or the time is over.
    """
    command = [sys.executable, "-m", "simclr_jax.main", f"--config={RECIPE}", *arguments]
    path = os.pathsep.join([os.fspath(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        cwd=ROOT,
        stdout=bench.session.log,
        stderr=subprocess.STDOUT,
        env=os.environ | OURS | {"PYTHONPATH": path.rstrip(os.pathsep)},
    )
    try:
        while process.poll() is None:
            if kill_after and len(losses(workdir)) >= kill_after:
                process.kill()
                process.wait()
                return losses(workdir)
            if bench.session.left <= 0:
                raise Failed("the time is over: not done")
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    if kill_after:
        raise Failed("the run was over before it was killed")
    if process.returncode:
        raise Failed(f"the run failed with code {process.returncode}; the log says why")
    return losses(workdir)


def losses(workdir: Path) -> dict[int, float]:
    """Return the losses that a run has written, by step; a last line that is not whole is none."""
    found: dict[int, float] = {}
    path = workdir / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "loss" in row:
            found[row["step"]] = row["loss"]
    return found
