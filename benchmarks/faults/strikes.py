"""What happens to a run in `table.py`, and at which instant: the side of the run itself.

A run is watched by wrapping the functions between which it is "inside" something. The reference
run notes how long each of these spans lasted and how many file operations fell into it; a struck
run is hit at a random time, or just before a random file operation, of one of them. A span that
ends sooner than it did there is hit at its end, so that the instant is never outside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST_HOLD = 240.0  # seconds that a held run waits to be let go


@dataclasses.dataclass(frozen=True)
class Strike:
    """One fault.

    Attributes:
      action: a method of `Hit`, without its underscore.
      span: inside which the run is hit; see `watch`.
      turn: which time it enters that span, from 0.
      seconds: after the beginning of the span; 0: just there, and the run stands still
        meanwhile; None: at a file operation.
      operation: which file operation of the span, from 1.
      seed: of what the action draws.
    """

    action: str
    span: str
    turn: int
    seconds: float | None
    operation: int = 0
    seed: int = 0


class Hit:
    """Does to the process, or to its disk, what a strike says."""

    def __init__(self, strike: Strike, workdir: Path, note: Path):
        self._strike, self._workdir, self._note = strike, workdir, note
        self._random = random.Random(strike.seed)
        self._lock, self.done = threading.RLock(), False  # a hit may meet itself in `_audit`

    def __call__(self) -> None:
        with self._lock:
            if self.done:
                return
            self.done = True
            self._note.write_text(self._strike.span)
            getattr(self, f"_{self._strike.action}")()

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _term(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def _tear(self) -> None:
        """Be killed with the next line of metrics half written."""
        line = json.dumps({"step": 10**6, "loss": self._random.random()}) + "\n"
        with (self._workdir / "metrics.jsonl").open("a") as file:
            file.write(line[: self._random.randrange(1, len(line))])
        self._kill()

    def _fill(self) -> None:
        """Leave no byte, or a few, on the disk."""
        slack = self._random.choice([0, self._random.randrange(1 << 17)])
        with (self._workdir.parent / "ballast").open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                for size in (1 << 16, 1 << 12):
                    while file.write(bytes(size)) == size:
                        pass
            file.truncate(max(0, file.tell() - slack))

    def _vanish(self) -> None:
        self._workdir.rename(self._workdir.with_name("away"))

    def _hold(self) -> None:
        """Stand still until the file beside the workdir is gone."""
        barrier = self._workdir.with_name("held")
        barrier.touch()
        end = time.monotonic() + LONGEST_HOLD
        while barrier.exists() and time.monotonic() < end:
            time.sleep(0.05)


class Spans:
    """Knows which spans the run is inside, and hits it when it is inside the right one."""

    def __init__(self, strike: Strike | None, hit: Callable[[], None], survey: Path | None):
        self._strike, self._hit, self._survey = strike, hit, survey
        self._entered: dict[str, int] = {}
        self._inside: dict[str, tuple[float, list[int]]] = {}  # since when, file operations
        sys.addaudithook(self._audit)

    def enter(self, span: str) -> None:
        """Begin a span."""
        turn = self._entered.get(span, 0)
        self._entered[span] = turn + 1
        self._inside[span] = (time.perf_counter(), [0])
        if not self._strike or not self._aims_at(span) or self._strike.seconds is None:
            return
        if not self._strike.seconds:
            self._hit()
        else:
            timer = threading.Timer(self._strike.seconds, self._hit)
            timer.daemon = True
            timer.start()

    def leave(self, span: str) -> None:
        """End a span, if the run is inside it."""
        if span not in self._inside:
            return
        if self._aims_at(span):
            self._hit()
        since, operations = self._inside.pop(span)
        if self._survey:
            line = json.dumps([span, time.perf_counter() - since, operations[0]]) + "\n"
            with self._survey.open("a") as file:
                file.write(line)

    def _aims_at(self, span: str) -> bool:
        strike = self._strike
        aim = (strike.span, strike.turn) if strike else None
        return aim == (span, self._entered[span] - 1)

    def _audit(self, event: str, _: object) -> None:
        if not (event == "open" or event.startswith(("os.", "shutil."))):
            return
        for span, (_, operations) in list(self._inside.items()):
            operations[0] += 1
            strike = self._strike
            if not strike or strike.seconds is not None or not self._aims_at(span):
                continue
            if operations[0] == strike.operation:
                self._hit()


def watch(spans: Spans) -> None:
    """Wrap the functions of `simclr_jax` between which a run is inside something."""
    from simclr_jax.stages import summary
    from simclr_jax.train import loop, manifest
    from simclr_jax.train import workdir as workdirs
    from simclr_jax.train.checkpoints import Checkpoints
    from simclr_jax.train.lock import WorkdirLock
    from simclr_jax.train.log import Log
    from simclr_jax.train.metrics import MetricsWriter

    def around(owner: Any, name: str, before: Callable[[], None], after: Callable[[], None]):
        function = getattr(owner, name)

        @functools.wraps(function)
        def wrapped(*args, **options):
            before()
            try:
                return function(*args, **options)
            finally:
                after()

        setattr(owner, name, wrapped)

    def nothing() -> None:
        pass

    def within(span: str, owner: Any, name: str) -> None:
        around(owner, name, lambda: spans.enter(span), lambda: spans.leave(span))

    within("seal", manifest, "write")
    within("verify", Checkpoints, "_check_files")
    within("prune", Checkpoints, "_prune")
    within("metrics", MetricsWriter, "flush")
    within("restore", Checkpoints, "restore")
    within("conclude", summary, "conclude")
    within("cut", MetricsWriter, "_cut")
    around(Checkpoints, "_begin", lambda: spans.enter("write"), nothing)
    around(manifest, "write", lambda: spans.leave("write"), nothing)
    around(WorkdirLock, "__enter__", lambda: spans.enter("open"), nothing)
    around(workdirs, "_check_shared", lambda: spans.leave("open"), nothing)
    around(Log, "add", lambda: spans.leave("step"), lambda: spans.enter("step"))
    around(Log, "catch_up", lambda: spans.leave("step"), nothing)
    train = loop.train

    def training(stage, *rest):
        def evaluate(state):
            spans.enter("evaluate")
            try:
                return stage.evaluate(state)
            finally:
                spans.leave("evaluate")

        spans.enter("train")
        try:
            return train(dataclasses.replace(stage, evaluate=evaluate), *rest)
        finally:
            spans.leave("train")

    loop.train = training


def count_steps(path: Path) -> None:
    """Keep in a file which steps were computed, also those that are lost later."""
    from simclr_jax.train.log import Log

    add, steps_done = Log.add, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def counted(log, steps, metrics):
        os.write(steps_done, b"".join(b"%d\n" % (step + 1) for step in steps))
        add(log, steps, metrics)

    Log.add = counted  # type: ignore[method-assign]


def slow_down(hit: Hit) -> None:
    """After the hit, take the seconds that JAX needs to tell all processes of a SIGTERM."""
    from simclr_jax.train.log import Log

    add = Log.add
    slept: list[bool] = []

    def slowly(log, steps, metrics):
        add(log, steps, metrics)
        if hit.done:
            time.sleep(0.3 if slept else 3.0)
            slept.append(True)

    Log.add = slowly  # type: ignore[method-assign]


def read_survey(path: Path) -> dict[str, list[tuple[float, int]]]:
    """Read what a run wrote of its spans."""
    spans: dict[str, list[tuple[float, int]]] = {}
    for line in path.read_text().splitlines():
        span, seconds, operations = json.loads(line)
        spans.setdefault(span, []).append((seconds, operations))
    return spans
