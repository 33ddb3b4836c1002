"""The training loop, the same for every stage: it knows nothing of contrast, labels or teachers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from simclr_jax.errors import UserError
from simclr_jax.train.interrupt import StopRequest
from simclr_jax.train.metrics import MetricsWriter
from simclr_jax.train.plan import Plan
from simclr_jax.train.profile import Profiler
from simclr_jax.train.progress import Speed, progress_line, shown
from simclr_jax.train.stage import Params, Stage, TrainState
from simclr_jax.train.step import make_step
from simclr_jax.train.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Result:
    """How a call of `train` ended: the state, and the signal that stopped it early, or 0."""

    state: TrainState
    stopped_by: int


def train(
    stage: Stage,
    plan: Plan,
    mesh: Mesh,
    workdir: Workdir,
    profiler: Profiler,
) -> Result:
    """Train from the newest whole checkpoint, or from the start, to the end or a stop request.

    The unit is a chunk of `plan.steps_per_call` steps. Python runs one chunk ahead of the device:
    it reads the metrics of a chunk only once the next is under way, so nothing in the loop waits
    for the device except the hooks that are due: log, evaluate, save, in this order.

    Args:
      stage: what is trained.
      plan: how long, and when something is due.
      mesh: the devices.
      workdir: where metrics, checkpoints and lines go.
      profiler: records a trace of some steps, if asked to.

    Raises:
      UserError: if the loss is not finite; what was saved before stays.
    """
    checkpoints, console = workdir.checkpoints, workdir.console
    state = stage.init()
    kept = checkpoints.steps()
    restored = checkpoints.restore(state)
    if kept and not restored:
        raise UserError(
            f"none of the checkpoints {kept} in {workdir.path} is whole: "
            "to start again, give another --workdir"
        )
    first_step, state = restored or (0, state)
    if first_step:
        console.say(f"resumed at step {first_step} of {plan.total_steps}")

    step = make_step(stage, mesh)
    log = _Log(plan, stage.formats, workdir, first_step)
    stop = StopRequest()
    with stop, profiler, log:
        if first_step == 0:
            log.evaluation(0, stage.evaluate(state))
        for steps, batches in stage.batches(first_step, plan.total_steps):
            profiler.before(steps)
            state, metrics = step(state, batches)
            profiler.after(steps, metrics)
            log.add(steps, metrics)
            done = steps[-1] + 1

            at_end = done == plan.total_steps
            stopped_by = 0 if at_end else stop.signal  # once: it may come at any moment
            if at_end or _due(done, plan.evaluate_every):
                log.catch_up()
                log.evaluation(done, stage.evaluate(state))
            if at_end or stopped_by or _due(done, plan.save_every):
                log.catch_up(state)
                workdir.lock.check()
                checkpoints.save(done, state)
            if stopped_by:
                checkpoints.wait()
                console.say(f"stopped at step {done}; the same command continues from there")
                return Result(state, stopped_by)
    checkpoints.wait()
    return Result(state, stopped_by=0)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@jax.jit
def _all_finite(tree: Params) -> jax.Array:
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


class _Log:
    """Turns device metrics into lines, one chunk late; stops on a loss that is not finite."""

    def __init__(
        self,
        plan: Plan,
        formats: dict[str, str],
        workdir: Workdir,
        first_step: int,
    ):
        self._plan, self._formats = plan, formats
        self._checkpoints, self._console = workdir.checkpoints, workdir.console
        self._writer = MetricsWriter(workdir.path, first_step)
        self._speed = Speed(plan.batch_size)
        self._pending: tuple[range, dict[str, jax.Array]] | None = None

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_) -> None:
        self._writer.close()

    def add(self, steps: range, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of a chunk under way, and read those of the one before."""
        previous, self._pending = self._pending, (steps, metrics)
        self._read(previous)

    def catch_up(self, state: TrainState | None = None) -> None:
        """Read and put on disk all metrics so far; the clock of speed stands still meanwhile.

        A loss judges the parameters before its update. With a `state`, which is about to be saved,
        the parameters after the last update are judged too.
        """
        previous, self._pending = self._pending, None
        self._read(previous)
        if state is not None and not _all_finite(state.params):
            done = int(state.step)
            self._raise_not_finite("the parameters are", range(done - 1, done))
        self._speed.pause()
        self._writer.flush()

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write and print held-out metrics."""
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
        self._speed.add(len(steps))
        done = steps[-1] + 1
        if _due(done, self._plan.log_every) or done == self._plan.total_steps:
            values = {name: float(value[-1]) for name, value in metrics.items()}
            values["epoch"] = done * self._plan.batch_size / self._plan.examples
            line = progress_line(done, self._plan, shown(self._formats, values), self._speed)
            self._console.status(line)
            self._writer.write(done, values | {"images_per_second": self._speed.images_per_second})

    def _raise_not_finite(self, what: str, steps: range) -> None:
        self._checkpoints.wait()
        saved = [step for step in self._checkpoints.steps() if step < steps[0]]
        last = f"the last good checkpoint is step {saved[-1]}" if saved else "nothing was saved yet"
        raise UserError(
            f"{what} not finite in steps {steps[0] + 1} to {steps[-1] + 1}; "
            f"{last}; "
            "start anew in another --workdir with a lower optim.base_lr or a longer warm-up"
        )
