"""The training loop, the same for every stage: it knows nothing of contrast, labels or teachers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from simclr_jax import parallel, processes
from simclr_jax.closing import Closing
from simclr_jax.train.interrupt import StopRequest
from simclr_jax.train.log import Log
from simclr_jax.train.profile import Profiler
from simclr_jax.train.stage import Stage, TrainState
from simclr_jax.train.step import Step, make_step
from simclr_jax.train.timetable import Timetable, due
from simclr_jax.train.workdir import Workdir, check_nothing_was_saved


@dataclasses.dataclass(frozen=True)
class Result:
    """How a call of `train` ended: the state, and the signal that stopped it early, or 0."""

    state: TrainState
    stopped_by: int


def train(
    stage: Stage,
    timetable: Timetable,
    mesh: Mesh,
    workdir: Workdir,
    profiler: Profiler,
    make: Callable[[Stage, Mesh], Step] | None = None,
) -> Result:
    """Train from the newest whole checkpoint, or from the start, to the end or a stop request.

    The unit is a chunk of `timetable.steps_per_call` steps. Python runs one chunk ahead of the
    device: it reads the metrics of a chunk only once the next is under way, so nothing in the loop
    waits for the device except the hooks that are due: log, evaluate, save, in this order.

    Args:
      stage: what is trained.
      timetable: how long, and when something is due.
      mesh: the devices.
      workdir: where metrics, checkpoints and lines go.
      profiler: records a trace of some steps, if asked to.
      make: makes the step in the place of `make_step`, to measure it.

    Raises:
      UserError: if the loss is not finite; what was saved before stays.
    """
    checkpoints, console = workdir.checkpoints, workdir.console
    # Restored onto a description of the state: two states need not be in memory at once.
    restored = checkpoints.restore(parallel.describe(mesh, jax.eval_shape(stage.init)))
    if not restored:
        processes.on_first(lambda: check_nothing_was_saved(workdir))
    first_step, state = restored or (0, stage.warm_start(stage.init()))
    if first_step:
        lost = f", though step {workdir.lost} was saved: its checkpoint is there no more"
        lost = lost if workdir.lost > first_step else ""
        console.say(f"resumed at step {first_step} of {timetable.total_steps}{lost}")

    profiler.begin(first_step, console.say)
    step = (make or make_step)(stage, mesh)
    log = Log(timetable, stage.formats, workdir, first_step)
    stop, stopped_by, done = StopRequest(), 0, first_step
    with Closing() as closing:
        for manager in (stop, profiler, log):
            closing.enter(manager)
        if first_step == 0:
            log.evaluation(0, stage.evaluate(state))
        source = stage.batches(first_step, timetable.total_steps)
        closing.step(getattr(source, "close", lambda: None))  # it has threads that read
        for steps, batches in log.watch(source):
            if stage.before_epoch and (epoch := timetable.new_epoch(steps)) is not None:
                log.catch_up()
                state = stage.before_epoch(state, epoch)
            profiler.before(steps)
            state, metrics = step(state, batches, stage.frozen)
            profiler.after(steps, metrics)
            log.add(steps, metrics)
            done = steps[-1] + 1

            at_end = timetable.at_end(done)
            stopped_by = stop.after_chunk()
            if at_end or due(done, timetable.evaluate_every):
                log.catch_up()
                log.evaluation(done, stage.evaluate(state))
            if at_end or stopped_by or due(done, timetable.save_every):
                processes.on_first(workdir.lock.check)
                checkpoints.save(done, state, log.seal(state))
            if stopped_by:
                break
        checkpoints.wait()
        stopped_by = stopped_by or stop.after_chunk()
        if stopped_by:
            console.say(f"stopped at step {done}; the same command continues from there")
        return Result(state, stopped_by)
