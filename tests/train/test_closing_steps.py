"""Every closing step of a run fails once: the error under way stays, and all else is closed."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.record_writer import RecordWriter

from simclr_jax import errors, files, parallel
from simclr_jax.augment.policy import Policy
from simclr_jax.buckets import Mirror
from simclr_jax.closing import Closing
from simclr_jax.data import batches
from simclr_jax.data.placements import Loading
from simclr_jax.data.reader import Reader, Unreadable
from simclr_jax.data.sources import Images
from simclr_jax.errors import UserError
from simclr_jax.train import interrupt, loop
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.lock import WorkdirLock
from simclr_jax.train.metrics import MetricsWriter
from simclr_jax.train.profile import Profiler
from simclr_jax.train.progress import Console
from simclr_jax.train.stage import Stage, TrainState
from simclr_jax.train.timetable import Timetable
from simclr_jax.train.workdir import open_workdir

STEPS, BATCH = 4, 8

# What a run does when it closes, each with the object that does it.
CLOSING = {
    "the log": (Console, "close"),
    "a file that grows": (files.Growing, "close"),
    "the lock's thread": (WorkdirLock, "_end_beating"),
    "the lock": (WorkdirLock, "_remove"),
    "the lock's file": (os, "remove"),
    "the save under way": (Checkpoints, "_wait_here"),
    "Orbax's writer": (ocp.StandardCheckpointer, "close"),
    "Orbax's threads": (ocp.StandardCheckpointer, "wait_until_finished"),
    "Orbax's reader": (ocp.Checkpointer, "close"),
    "pools of threads": (ThreadPoolExecutor, "shutdown"),
    "the last metrics": (MetricsWriter, "flush"),
    "metrics": (MetricsWriter, "close"),
    "events": (EventsWriter, "flush"),
    "the file of events": (RecordWriter, "close"),
    "the mirror of events": (Mirror, "close"),
    "the mirror's copy": (Mirror, "publish"),
    "the profiler": (jax.profiler, "stop_trace"),
    "signals": (interrupt.signal, "signal"),
    "the reader of images": (Reader, "close"),
}
NUMBERS = (errno.ENOSPC, errno.EIO, errno.EROFS)


def source():
    pixels = np.arange(BATCH * STEPS * 12, dtype=np.uint8).reshape(-1, 2, 2, 3)
    return Images(pixels, np.zeros(len(pixels), np.int32), 1)


def stage(mesh, breaking, closing):
    """Return a stage that learns nothing, from images that are read by threads."""

    def stream(first, total):
        images = source()
        order, unreadable = lambda positions: positions % len(images), Unreadable("train", 1, 0.5)
        views = {"views": (Policy(2), Policy(2))}
        loading = Loading(Reader(images, order, unreadable), views, 0, False, threads=2)
        made = batches.device_batches(
            "device", loading, mesh, batch_size=BATCH, first_step=first, total_steps=total,
            steps_per_call=1,
        )  # fmt: skip
        with Closing(made.close):
            for steps, batch in made:
                if steps[0] == 3:
                    closing()  # from here on
                    if breaking:
                        raise UserError("the error under way")
                yield steps, batch

    zeros = TrainState(jnp.int32(0), {"w": jnp.zeros(2)}, {}, optax.EmptyState())
    zeros = parallel.replicate(mesh, zeros)
    return Stage(
        init=lambda: zeros,
        warm_start=lambda state: state,
        forward=None,
        objective=None,
        optimizer=None,
        learning_rate=None,
        batches=stream,
        evaluate=lambda state: {"top1": 0.5},
        compare=None,
        protocol={},
        formats={"loss": "loss {:.3f}"},
        look=None,
    )


def a_run(workdir, breaking, closing, monkeypatch):
    """Train four steps; call `closing` once the last but one is done, and then maybe fail."""
    mesh = parallel.make_mesh(1)

    def step(state, batch, frozen):
        new = state._replace(step=state.step + 1)
        return new, {"loss": np.ones(1, np.float32), "lr": np.ones(1, np.float32)}

    monkeypatch.setattr(loop, "make_step", lambda *_: step)
    timetable = Timetable(BATCH * STEPS, BATCH, STEPS, 0, 0.1, 1, 1, 0, 2)
    profiler = Profiler("1:3", workdir / "profile", STEPS)
    with open_workdir(str(workdir), {"seed": 1}, "auto", keep=2, keep_period=None) as opened:
        return loop.train(stage(mesh, breaking, closing), timetable, mesh, opened, profiler)


@pytest.fixture(autouse=True)
def no_trace(monkeypatch):
    """A profiler that takes no seconds."""
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)


class Faults:
    """Closing steps that do their work and, once `strike` was called, then fail as a disk does."""

    def __init__(self, names, number, monkeypatch):
        self.hits, self._number, self._struck = set(), number, False
        for name in names:
            monkeypatch.setattr(*CLOSING[name], self._failing(name, getattr(*CLOSING[name])))

    def strike(self):
        self._struck = True

    def _failing(self, name, function):
        def step(*args, **options):
            result = function(*args, **options)
            if self._struck:
                self.hits.add(name)
                raise OSError(self._number, os.strerror(self._number), "/a/file")
            return result

        return step


def left(before):
    """Return the threads of a run that outlive it."""
    ours = ("workdir-lock", "checkpoint")
    return [t.name for t in threading.enumerate() if t not in before and t.name.startswith(ours)]


@pytest.mark.parametrize("breaking", [True, False], ids=["an error under way", "none"])
@pytest.mark.parametrize("name", CLOSING)
def test_every_closing_step(name, breaking, tmp_path, monkeypatch):
    number = NUMBERS[list(CLOSING).index(name) % len(NUMBERS)]
    before = threading.enumerate()
    handlers = [interrupt.signal.getsignal(n) for n in (2, 15)]
    faults = Faults([name], number, monkeypatch)
    with pytest.raises(Exception) as caught:
        a_run(tmp_path / "run", breaking, faults.strike, monkeypatch)
    monkeypatch.undo()
    assert faults.hits, "this step is none"
    if breaking:
        assert str(caught.value) == "the error under way"
        assert any(os.strerror(number) in note for note in caught.value.__notes__)
    else:
        said = errors.of_the_system(caught.value)
        assert said is not None and os.strerror(number) in str(said), caught.value
        assert "\n" not in str(said)
    assert not (tmp_path / "run" / "lock.json").exists() and not left(before)
    assert handlers == [interrupt.signal.getsignal(n) for n in (2, 15)]


def test_a_run_that_closes_well(tmp_path, monkeypatch):
    result = a_run(tmp_path / "run", False, lambda: None, monkeypatch)
    assert int(result.state.step) == STEPS
    assert not (tmp_path / "run" / "lock.json").exists()
    assert len(Path(tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == STEPS + 2


def test_steps_to_be_traced_that_are_behind_a_run_are_said(tmp_path, monkeypatch):
    said = "profile   no trace is written: steps 1 to 3 were asked for, and the run goes on with"
    for _ in range(2):
        a_run(tmp_path / "run", False, lambda: None, monkeypatch)
        lines = Path(tmp_path / "run" / "log.txt").read_text().splitlines()
        found = [line for line in lines if said in line]
    assert len(found) == 1 and found[0].endswith(f"step {STEPS}")
    assert f"resumed at step {STEPS}" in lines[lines.index(found[0]) - 1]


def test_all_closing_steps_fail_at_once(tmp_path, monkeypatch):
    faults = Faults(CLOSING, errno.ENOSPC, monkeypatch)
    with pytest.raises(UserError) as caught:
        a_run(tmp_path / "run", True, faults.strike, monkeypatch)
    assert str(caught.value) == "the error under way" and len(caught.value.__notes__) >= 6
    assert not (tmp_path / "run" / "lock.json").exists()
