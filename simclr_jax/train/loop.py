"""The training loop, the same for every stage: it knows nothing of contrast, labels or teachers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from simclr_jax import parallel, processes
from simclr_jax.closing import Closing
from simclr_jax.data.batches import chunks
from simclr_jax.train.compiling import Ahead, FirstAhead, Shapes
from simclr_jax.train.interrupt import StopRequest
from simclr_jax.train.log import Log
from simclr_jax.train.profile import Profiler
from simclr_jax.train.progress import Console
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
    described = parallel.describe(mesh, jax.eval_shape(stage.init))
    restored = console.during("reading the checkpoint", lambda: checkpoints.restore(described))
    if not restored:
        processes.on_first(lambda: check_nothing_was_saved(workdir))
    first_step, state = restored or (0, None)
    if first_step:
        lost = f", though step {workdir.lost} was saved: its checkpoint is there no more"
        lost = lost if workdir.lost > first_step else ""
        console.say(f"resumed at step {first_step} of {timetable.total_steps}{lost}")

    profiler.begin(first_step, console.say)
    step = Ahead((make or make_step)(stage, mesh), described, stage.frozen, console)
    log = Log(timetable, stage.formats, workdir, first_step)
    stop, stopped_by, done = StopRequest(listening=False), 0, first_step
    with Closing() as closing:
        for manager in (stop, profiler, log):
            closing.enter(manager)
        source = FirstAhead(stage.batches(first_step, timetable.total_steps))
        closing.step(source.close)
        # Side by side; but compilers for GPUs time kernels, for which the device has to be idle.
        expected = _first_batches(stage, timetable, first_step)
        if expected and not parallel.on_gpus(mesh):
            step.begin(expected)
        if state is None:
            state = console.during("making the first state", lambda: stage.warm_start(stage.init()))
            log.evaluation(0, _evaluated(stage, state, console))
        step.wait(source.first(console))
        stop.listen()
        for steps, batches in log.watch(source):
            if stage.before_epoch and (epoch := timetable.new_epoch(steps)) is not None:
                log.catch_up()
                state = _prepared(stage.before_epoch, state, epoch, console)
            profiler.before(steps)
            state, metrics = step(state, batches, stage.frozen)
            profiler.after(steps, metrics)
            log.add(steps, metrics)
            done = steps[-1] + 1

            at_end = timetable.at_end(done)
            stopped_by = stop.after_chunk()
            if at_end or due(done, timetable.evaluate_every):
                log.catch_up()
                log.evaluation(done, _evaluated(stage, state, console))
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


def _first_batches(stage: Stage, timetable: Timetable, step: int) -> Shapes | None:
    """Describe the batches of the first call, if there is one and the stage can tell."""
    steps = next(
        chunks(step, timetable.total_steps, timetable.steps_per_call, timetable.borders), None
    )
    return stage.like(len(steps)) if stage.like and steps else None


def _evaluated(stage: Stage, state: TrainState, console: Console) -> dict[str, float]:
    return console.during("evaluating", lambda: stage.evaluate(state))


def _prepared(
    before_epoch: Callable[[TrainState, int], TrainState],
    state: TrainState,
    epoch: int,
    console: Console,
) -> TrainState:
    return console.during(f"preparing epoch {epoch + 1}", lambda: before_epoch(state, epoch))
