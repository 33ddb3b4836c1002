"""Where the time of a training step goes: input, transfer, step, logging, and the loop itself.

    python benchmarks/step_time.py --config=configs/digits.py --steps=20

The four parts are timed one after another, each waited for; the loop runs them as training does,
with input and transfer in threads beside the step. Where the loop takes as long as the step alone,
everything else is hidden behind it; `waiting` is the part of the loop in which no batch was there.
Machines are noisy: read ratios, not milliseconds.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import config_flags

from simclr_jax import entry, parallel
from simclr_jax.data import batches
from simclr_jax.stages import run
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.prepare import prepare
from simclr_jax.tables import table
from simclr_jax.train.metrics import MetricsWriter
from simclr_jax.train.step import make_step

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", "configs/digits.py", "Recipe.")
flags.DEFINE_integer("steps", 20, "Steps to time, after two that are not counted.", lower_bound=1)
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

WARM_UP = 2


def main() -> None:
    """Time the parts of a step and the whole, and print them beside each other."""
    config = FLAGS.config
    mesh = parallel.make_mesh()
    parallel.use_compilation_cache()
    ready = prepare(config, mesh.size)
    config, timetable = ready.config, ready.timetable
    inputs = Inputs(config, ready.train, ready.test)
    stage = run.STAGES[config.stage](config, timetable, inputs, mesh)
    step, state = make_step(stage, mesh), stage.init()

    times: dict[str, list[float]] = {"input": [], "transfer": [], "step": [], "logging": []}

    def timed(part: str, call: Callable, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = jax.block_until_ready(call(*arguments))
        times[part].append(time.perf_counter() - start)
        return result

    requests = (batches.request(number, timetable.batch_size) for number in itertools.count())
    stream = inputs.stream(requests)
    with tempfile.TemporaryDirectory() as directory:
        writer = MetricsWriter(epath.Path(directory), 0)
        for number in range(FLAGS.steps + WARM_UP):
            host = timed("input", _next, stream)
            batch = timed("transfer", parallel.shard, mesh, host, 1)
            state, metrics = timed("step", step, state, batch, stage.frozen)
            timed("logging", _log, writer, number, metrics)
        writer.close()
    loop = list(_loop(stage, step, state, FLAGS.steps + WARM_UP))
    times["loop"], times["waiting"] = ([part[i] for part in loop] for i in range(2))

    kind = mesh.devices.flat[0].device_kind
    print(f"{mesh.size} x {kind}, batch {timetable.batch_size}, {config.train.dtype}")
    print(_report(times, timetable.batch_size))


def _next(stream: Iterator[dict[str, Any]]) -> dict[str, Any]:
    return {name: values[None] for name, values in next(stream).items()}


def _log(writer: MetricsWriter, step: int, metrics: dict[str, jax.Array]) -> None:
    writer.write(step, {name: float(np.asarray(values)[-1]) for name, values in metrics.items()})
    writer.flush()


def _loop(stage, step, state, steps: int) -> Iterator[tuple[float, float]]:
    """Yield seconds per step, and of them waiting, as the training loop spends them.

    Input is a chunk ahead, and metrics are read a chunk late.
    """
    previous, last, batches = None, time.perf_counter(), stage.batches(0, steps)
    while (chunk := next(batches, None)) is not None:
        steps_of_call, batch = chunk
        waited = time.perf_counter() - last
        state, metrics = step(state, batch, stage.frozen)
        jax.block_until_ready(previous)
        now = time.perf_counter()
        yield (now - last) / len(steps_of_call), waited / len(steps_of_call)
        previous, last = metrics, now


def _report(times: dict[str, list[float]], batch_size: int) -> str:
    step = statistics.median(times["step"][WARM_UP:])
    rows = []
    for part, seconds in times.items():
        median, fastest = statistics.median(seconds[WARM_UP:]), min(seconds[WARM_UP:])
        images = f"{batch_size / median:.0f}" if part in ("step", "loop") else ""
        cells = (f"{1e3 * median:.2f}", f"{1e3 * fastest:.2f}", f"{median / step:.3f}", images)
        rows.append((part, *cells))
    return table(("", "median ms", "best ms", "of the step", "images/s"), rows)


if __name__ == "__main__":
    entry.run(main)
