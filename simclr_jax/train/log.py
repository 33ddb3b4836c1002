"""From metrics on the device to lines in files and on the screen, without holding up the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax import closing, processes
from simclr_jax.errors import Diverged
from simclr_jax.train.metrics import MetricsWriter, NoMetrics, Recent
from simclr_jax.train.progress import STATUS_SECS, Speed, progress_line, shown
from simclr_jax.train.stage import Params, TrainState
from simclr_jax.train.timetable import Timetable, due
from simclr_jax.train.workdir import Workdir

Batch = TypeVar("Batch")

OF_ONE_STEP = ("lr",)  # a line has the last step's of these, and means of all else


@jax.jit
def _all_finite(tree: Params) -> jax.Array:
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


class Log:
    """Turns device metrics into lines, one chunk late; stops on a loss that is not finite.

    A line in a file has the means over the steps since the line before, not the values of one step.
    What is shown between two of them, and at the end, has the means over as many steps, the last
    ones, so that what stands one below the other on the screen can be compared.
    """

    def __init__(
        self,
        timetable: Timetable,
        formats: dict[str, str],
        workdir: Workdir,
        first_step: int,
    ):
        self._timetable, self._formats = timetable, formats
        self._checkpoints, self._console = workdir.checkpoints, workdir.console
        first = processes.rank() == 0
        self._writer: MetricsWriter | NoMetrics = NoMetrics()
        if first:
            seal = workdir.checkpoints.about(first_step).get("log") if first_step else None
            self._writer = MetricsWriter(
                workdir.path, first_step, seal, workdir.console.say, workdir.loggers
            )
        self._window = self._writer.window()
        self._recent = Recent(timetable.log_every)
        self._speed = Speed(timetable.batch_size)
        self._shown = -math.inf  # when the last line was; the first step has one
        self._pending: tuple[range, dict[str, jax.Array]] | None = None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        closing.close(error, self._writer.close)

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches, and measure how long the loop waits for them."""
        return self._speed.watch(batches)

    def add(self, steps: range, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of a chunk under way, and read those of the one before."""
        previous, self._pending = self._pending, (steps, metrics)
        self._read(previous)

    def catch_up(self) -> None:
        """Read and put on disk all metrics so far; the clock of speed stands still meanwhile."""
        previous, self._pending = self._pending, None
        self._read(previous)
        self._speed.pause()
        self._writer.flush()

    def seal(self, state: TrainState) -> dict[str, Any]:
        """Catch up, and return what the checkpoint of a state is to know of the log.

        A loss judges the parameters before its update: those after the last one are judged here.
        """
        self.catch_up()
        if not _all_finite(state.params):
            done = int(state.step)
            self._raise_not_finite("the parameters are", range(done - 1, done))
        return self._writer.seal(self._window)

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write and print held-out metrics, if anything could be measured."""
        if not metrics:
            return
        self._writer.write(step, metrics)
        self._writer.flush()
        self._console.say(f"step {step}  held out: {shown(self._formats, metrics)}")

    def _read(self, chunk: tuple[range, dict[str, jax.Array]] | None) -> None:
        if chunk is None:
            return
        steps, device_metrics = chunk
        metrics = {name: np.asarray(values) for name, values in device_metrics.items()}
        if not np.isfinite(metrics["loss"]).all():
            self._writer.flush()
            self._raise_not_finite("the loss is", steps)
        self._window.add(metrics)
        self._recent.add(metrics)
        self._speed.add(len(steps))
        done = steps[-1] + 1
        last = {name: float(metrics[name][-1]) for name in OF_ONE_STEP}
        whole = due(done, self._timetable.log_every)
        ends = whole or self._timetable.at_end(done)
        values = self._window.close() | last if ends else {}
        if ends or time.monotonic() - self._shown >= STATUS_SECS:
            self._show(done, values if whole else self._recent.means() | last)
        if ends:
            values["epoch"] = done * self._timetable.batch_size / self._timetable.examples
            if segment := self._timetable.segment(done):
                values["segment"] = segment
            speed = ("images_per_second", "input_wait")
            self._writer.write(done, values | {name: getattr(self._speed, name) for name in speed})

    def _show(self, done: int, values: dict[str, float]) -> None:
        self._shown = time.monotonic()
        line = progress_line(done, self._timetable, shown(self._formats, values), self._speed)
        self._console.status(line)

    def _raise_not_finite(self, what: str, steps: range) -> None:
        self._checkpoints.wait()
        saved = [step for step in self._checkpoints.steps() if step < steps[0]]
        last = f"the last good checkpoint is step {saved[-1]}" if saved else "nothing was saved yet"
        raise Diverged(
            f"{what} not finite in steps {steps[0] + 1} to {steps[-1] + 1}; "
            f"{last}; "
            "start anew in another --workdir with a lower optim.base_lr or a longer warm-up"
        )
