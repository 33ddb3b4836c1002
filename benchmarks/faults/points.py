"""The points of `table.py`: one fault each, what is done about it, and how the run ended."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import time
from pathlib import Path

import damage
import runs
from recipe import SAVE_EVERY
from runs import Ended, Running
from strikes import Strike

MOST_RUNS = 6  # until a point must be through
LATE = 13  # turn of the span "step" from which on two checkpoints are there


@dataclasses.dataclass
class Outcome:
    """What became of one point; `problems` says what should not have happened."""

    kind: str = ""
    point: int = 0
    strikes: list[Strike] = dataclasses.field(default_factory=list)
    codes: list[int] = dataclasses.field(default_factory=list)
    damaged: str = ""
    noticed: bool | None = None
    refused: bool = False
    same_bits: bool | None = None
    steps_again: int = 0
    lost: int = 0
    repeated: int = 0
    changed: int = 0
    survived: float | None = None
    made_anew: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    @property
    def silent_divergence(self) -> bool:
        """Tell whether the run said that all is well, and it is not."""
        wrong = self.same_bits is False or self.lost + self.repeated + self.changed > 0
        return bool(self.codes) and self.codes[-1] == 0 and wrong


@dataclasses.dataclass(frozen=True)
class Reference:
    """A run never interrupted, and its spans: `[(seconds, file operations), ...]` by process."""

    workdir: Path
    spans: list[dict[str, list[tuple[float, int]]]]


class Point:
    """One point under way.

    Args:
      directory: its own.
      arguments: of the command.
      references: by number of processes; 0: those of a run that was resumed.
      draw: what it is random by.
    """

    def __init__(
        self,
        directory: Path,
        arguments: tuple[str, ...],
        references: dict[int, Reference],
        draw: random.Random,
    ):
        self.directory, self.draw, self.processes = directory, draw, 1
        self.workdir, self.outcome = directory / "run", Outcome()
        self._arguments, self._references = arguments, references

    def strike(
        self,
        action: str,
        span: str,
        *,
        process: int = 0,
        after: int = 0,
        before: int | None = None,
        resumed: bool = False,
    ) -> Strike:
        """Draw an instant inside a span, in one of some of its turns: by time or by operation."""
        reference = self._references[0 if resumed else self.processes]
        spans = reference.spans[process][span]
        turn = self.draw.choice(range(len(spans))[after:before])
        seconds, operations = spans[turn]
        by_time = self.draw.uniform(0, seconds)
        by_operation = operations > 0 and self.draw.random() < 0.5
        operation = self.draw.randint(1, operations) if by_operation else 0
        at_once = action in ("tear", "hold")
        when = 0.0 if at_once else None if by_operation else by_time
        return Strike(action, span, turn, when, operation, self.draw.randrange(1 << 30))

    def start(self, strike: Strike | None = None, process: int = 0, name: str = "run") -> Running:
        """Start the command."""
        self.outcome.strikes += [strike] if strike else []
        notes = self.directory / "notes" if name == "run" else self.directory / name
        return Running(
            self.workdir, notes, self._arguments, self.processes, strike=strike, process=process
        )

    def run(self, strike: Strike | None = None, process: int = 0) -> Ended:
        """Run the command until it ends, and judge what it said."""
        ended = self.start(strike, process).wait()
        self.outcome.codes.append(ended.code)
        number = len(self.outcome.codes)
        for kind, text in (("out", ended.out), ("err", ended.err)):
            (self.directory / f"{kind}.{number}").write_text(text)
        if "Traceback" in ended.err:
            self.problem(f"run {number} ended with a traceback")
        if ended.code == 1 and not ended.one_line:
            self.problem(f"run {number} did not end in one line")
        if strike and not ended.hit:
            self.problem(f"run {number} was not hit")
        return ended

    def problem(self, what: str) -> None:
        """Note what should not have happened."""
        self.outcome.problems.append(what)

    def finish(self, compared: bool = True) -> None:
        """Run the command until it is complete; compare with the reference."""
        while (code := self.run().code) in runs.AGAIN:
            if len(self.outcome.codes) >= MOST_RUNS:
                self.problem("it never ends")
                return
        if code:
            self.problem(f"it ended with {code}")
        elif compared:
            self.compare()

    def compare(self) -> None:
        """Compare with the reference."""
        found = runs.compare(self.workdir, self._references[self.processes].workdir)
        outcome = self.outcome
        outcome.same_bits, outcome.changed = found.same_bits, found.changed
        outcome.lost, outcome.repeated = found.lost, found.repeated
        outcome.steps_again = runs.steps_again(self.directory / "notes")
        left = [*self.workdir.glob("lock*"), *self.workdir.glob("checkpoints/*tmp*")]
        if left:
            self.problem(f"left behind: {left}")


def killed(point: Point, span: str, action: str = "kill", **where) -> None:
    """SIGKILL inside a span."""
    point.run(point.strike(action, span, **where))
    point.finish()
    # The save under way is lost, and what was done meanwhile: up to the save after that.
    if point.outcome.steps_again > 2 * SAVE_EVERY + 1:
        point.problem(f"{point.outcome.steps_again} steps were lost")


def killed_while_logging(point: Point) -> None:
    """SIGKILL around a write of metrics, or in the middle of a line."""
    killed(point, "metrics", point.draw.choice(["kill", "tear"]))


def killed_while_opening(point: Point) -> None:
    """SIGKILL between taking the lock and reading back the recipe, of a new or a resumed run."""
    resumed = point.draw.random() < 0.5
    if resumed:
        point.run(point.strike("kill", "step"))
    killed(point, "open", resumed=resumed)


def killed_while_restoring(point: Point) -> None:
    """SIGKILL while a killed run reads its checkpoint, or cuts its metrics."""
    point.run(point.strike("kill", "step", after=LATE))
    killed(point, point.draw.choice(["restore", "cut"]), resumed=True)


def asked_to_stop(point: Point) -> None:
    """SIGTERM at any time between the start and the end of training."""
    ended = point.run(point.strike("term", "train"))
    if ended.code not in (0, 75, 143):
        point.problem(f"SIGTERM ended it with {ended.code}")
    point.finish()
    if ended.code == 75 and point.outcome.steps_again:
        point.problem("steps were lost though it had time to save")


def one_of_two_asked_to_stop(point: Point) -> None:
    """SIGTERM to one of two processes."""
    point.processes, process = 2, point.draw.randrange(2)
    span, before = point.draw.choice([("step", 10), ("evaluate", 5)])  # they need time to agree
    strike = point.strike("term", span, process=process, before=before)
    ended = point.run(strike, process)
    point.finish()
    if ended.code == 75 and point.outcome.steps_again:
        point.problem("steps were lost though they had time to save")


def one_of_two_killed(point: Point) -> None:
    """SIGKILL of one of two processes: the other must end by itself."""
    point.processes, process = 2, point.draw.randrange(2)
    span = point.draw.choice(["step", "evaluate", *["write"] * (process == 0)])
    ended = point.run(point.strike("kill", span, process=process), process)
    point.outcome.survived = round(ended.survived, 1)
    point.finish()


def damaged(point: Point, how: damage.How) -> None:
    """SIGKILL; then something happens to the newest checkpoint while nobody looks."""
    point.run(point.strike("kill", "step", after=LATE))
    newest = _sealed(point.workdir)[-1]
    point.outcome.damaged = f"{newest.name}/{damage.damage(newest, how, point.draw)}"
    point.finish()
    _was_noticed(point)


def all_damaged(point: Point) -> None:
    """SIGKILL; then every checkpoint is damaged: the run must refuse to go on, or to begin."""
    point.run(point.strike("kill", "step", after=LATE))
    for checkpoint in _sealed(point.workdir):
        name = damage.damage(checkpoint, damage.flip, point.draw)
        point.outcome.damaged += f" {checkpoint.name}/{name}"
    ended = point.run()
    _was_noticed(point, 2)
    point.outcome.refused = ended.one_line and "is whole any more" in ended.err
    if not point.outcome.refused:
        point.problem(f"it went on: {ended.code}")


def disk_full(point: Point) -> None:
    """A small disk fills up; then it has space again."""
    with damage.small_disk(point.directory / "disk") as disk:
        point.workdir = disk / "run"
        span = point.draw.choice(["train", "write", "seal", "step", "metrics"])
        ended = point.run(point.strike("fill", span))
        point.outcome.refused = ended.one_line and "free space" in ended.err
        if ended.code and not point.outcome.refused:
            point.problem(f"a full disk ended it with {ended.code}")
        if ended.code and point.draw.random() < 0.5:  # the command is given too soon
            early = point.run()
            if not early.one_line or "free space" not in early.err:
                point.problem(f"a disk still full ended it with {early.code}")
        (disk / "ballast").unlink(missing_ok=True)
        point.finish()


def vanished(point: Point) -> None:
    """The workdir is moved away in the middle, and back afterwards.

    What is being saved at that moment may be written to the old place all the same, as to the
    directory under a mount that is gone; it is thrown away here.
    """
    span = point.draw.choice(["train", "write", "seal", "prune", "step", "evaluate", "metrics"])
    ended = point.run(point.strike("vanish", span))
    point.outcome.refused = ended.one_line and os.fspath(point.workdir) in ended.err
    if ended.code and not point.outcome.refused:
        point.problem(f"a vanished workdir ended it with {ended.code}")
    if point.workdir.exists():
        made = [os.fspath(path.relative_to(point.workdir)) for path in point.workdir.rglob("*")]
        point.outcome.made_anew = made[:5]
        shutil.rmtree(point.workdir)
    (point.directory / "away").rename(point.workdir)
    point.finish()


def second_run(point: Point) -> None:
    """The command is given once more while the first one is at work."""
    first = point.start(point.strike("hold", "step"))
    held = point.directory / "held"
    while not held.exists() and first.running:
        time.sleep(0.05)
    second = point.start(name="second").wait()
    point.outcome.refused = second.one_line and "is in use by process" in second.err
    if not point.outcome.refused:
        point.problem(f"the second run ended with {second.code}")
    held.unlink()
    ended = first.wait()
    point.outcome.codes += [second.code, ended.code]
    point.compare()


def _sealed(workdir: Path) -> list[Path]:
    """Return the whole checkpoints, oldest first."""
    paths = (workdir / "checkpoints").glob("*/manifest.json")
    return sorted((path.parent for path in paths), key=lambda path: int(path.name))


def _was_noticed(point: Point, run: int = 2) -> None:
    point.outcome.noticed = "set aside" in (point.directory / f"out.{run}").read_text()
    if not point.outcome.noticed:
        point.problem("the damage was not noticed")
