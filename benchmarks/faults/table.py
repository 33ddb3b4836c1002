"""What a run survives: one run struck at many random instants, against one never interrupted.

    python benchmarks/faults/table.py --points=66 --json=faults.json

Of each kind of fault in turn: a run is hit by it at a random instant, the same command is given
again until it is done, and the result is compared with the reference run of as many processes:
all kept checkpoints bit by bit, metrics.jsonl line by line. Exit code 1 if anything is not as it
should be; a silent divergence is a run that ended with 0 and differs.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import damage
import points
import runs
import strikes
from absl import flags
from points import Outcome, Point, Reference

from simclr_jax import entry, errors
from simclr_jax.tables import table

FLAGS = flags.FLAGS

KINDS: dict[str, Callable[[Point], None]] = {
    "SIGKILL, Orbax writes": functools.partial(points.killed, span="write"),
    "SIGKILL, a save is sealed": functools.partial(points.killed, span="seal"),
    "SIGKILL, a save is read back": functools.partial(points.killed, span="verify"),
    "SIGKILL, pruning": functools.partial(points.killed, span="prune"),
    "SIGKILL, evaluation": functools.partial(points.killed, span="evaluate"),
    "SIGKILL, metrics are written": points.killed_while_logging,
    "SIGKILL, training step": functools.partial(points.killed, span="step"),
    "SIGKILL, workdir is opened": points.killed_while_opening,
    "SIGKILL, restoring": points.killed_while_restoring,
    "SIGKILL, results are written": functools.partial(points.killed, span="conclude"),
    "SIGTERM": points.asked_to_stop,
    "SIGTERM to one of two": points.one_of_two_asked_to_stop,
    "SIGKILL of one of two": points.one_of_two_killed,
    "checkpoint: file truncated": functools.partial(points.damaged, how=damage.truncate),
    "checkpoint: file emptied": functools.partial(points.damaged, how=damage.empty),
    "checkpoint: bit flipped": functools.partial(points.damaged, how=damage.flip),
    "checkpoint: file deleted": functools.partial(points.damaged, how=damage.delete),
    "checkpoint: all deleted": functools.partial(points.damaged, how=damage.empty_directory),
    "every checkpoint damaged": points.all_damaged,
    "disk full": points.disk_full,
    "workdir vanishes": points.vanished,
    "second run, same workdir": points.second_run,
}
HEADS = (
    "fault",
    "points",
    "ended in one line",
    "same bits in the end",
    "steps done again: mean, max",
    "metric lines lost, repeated, changed",
    "damage noticed",
    "silent divergences",
)


def main() -> int:
    """Strike, compare, print a table; return the exit code."""
    kinds = [kind for kind in KINDS if re.search(FLAGS.only, kind)]
    if not kinds:
        raise errors.UserError(f"--only={FLAGS.only} names none of: {', '.join(KINDS)}")
    if "disk full" in kinds and os.geteuid():
        print('"disk full" is left out: only root can mount a small disk')
        kinds.remove("disk full")
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(FLAGS.keep or temporary).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        outcomes = _strike_all(kinds, directory)
    print(table(HEADS, [_row(kind, outcomes) for kind in [*kinds, "all"]]))
    for outcome in outcomes:
        for problem in outcome.problems:
            print(f"point {outcome.point} ({outcome.kind}): {problem}")
    survived = [outcome.survived for outcome in outcomes if outcome.survived is not None]
    if survived:
        print(f"a process outlived the other by {min(survived)} to {max(survived)} s")
    if FLAGS.json:
        record = {"command": sys.argv, "outcomes": [dataclasses.asdict(one) for one in outcomes]}
        Path(FLAGS.json).write_text(json.dumps(record, indent=1) + "\n")
    return int(any(outcome.problems or outcome.silent_divergence for outcome in outcomes))


def _strike_all(kinds: list[str], directory: Path) -> list[Outcome]:
    runs.use_small_compiles(directory / "cache")
    runs.write_images(directory / "images.npz")
    recipe = Path(__file__).with_name("recipe.py")
    arguments = (f"--config={recipe}", f"--config.data.path={directory}/images.npz")
    two = any("of two" in kind for kind in kinds)
    references = _references(directory, arguments, two)

    def strike(number: int) -> Outcome:
        kind = kinds[number % len(kinds)]
        own = directory / f"point{number:03}"
        own.mkdir()
        point = Point(own, arguments, references, random.Random(f"{FLAGS.seed} {number}"))
        began = time.monotonic()
        try:
            KINDS[kind](point)
        except Exception as error:
            point.problem(f"{type(error).__name__}: {error}")
            traceback.print_exc()
        outcome = point.outcome
        outcome.kind, outcome.point = kind, number
        print(
            f"{number:3} {kind:30} {time.monotonic() - began:4.0f} s  codes {outcome.codes}  "
            f"again {outcome.steps_again}  {outcome.damaged}  {'; '.join(outcome.problems)}",
            flush=True,
        )
        if not (FLAGS.keep or outcome.problems or outcome.silent_divergence):
            shutil.rmtree(own)
        return outcome

    with concurrent.futures.ThreadPoolExecutor(FLAGS.jobs) as pool:
        return list(pool.map(strike, range(FLAGS.points)))


def _references(directory: Path, arguments: tuple[str, ...], two: bool) -> dict[int, Reference]:
    """Make the runs to compare with, and measure their spans."""

    def make(processes: int) -> Reference:
        place = directory / f"reference{processes}"
        _reference(place, arguments, processes)  # compiles, so its spans are none that come again
        shutil.rmtree(place)
        return _reference(place, arguments, processes)

    kinds = (1, 2) if two else (1,)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = dict(zip(kinds, pool.map(make, kinds), strict=True))
    place = directory / "reference0"
    shutil.copytree(found[1].workdir, place / "run")
    shutil.rmtree(max((place / "run/checkpoints").iterdir(), key=lambda path: int(path.name)))
    return found | {0: _reference(place, arguments, 1)}


def _reference(place: Path, arguments: tuple[str, ...], processes: int) -> Reference:
    notes = place / "notes"
    ended = runs.Running(place / "run", notes, arguments, processes, survey=True).wait()
    if ended.code:
        raise errors.UserError(f"the reference run ended with {ended.code}: {ended.err.strip()}")
    spans = [strikes.read_survey(notes / f"survey.{rank}") for rank in range(processes)]
    return Reference(place / "run", spans)


def _row(kind: str, outcomes: list[Outcome]) -> tuple[str, ...]:
    chosen = [one for one in outcomes if kind in (one.kind, "all")]
    compared = [one for one in chosen if one.same_bits is not None]
    refused = sum(one.refused for one in chosen)
    noticed = [one.noticed for one in chosen if one.noticed is not None]
    again = [one.steps_again for one in compared]
    lines = [sum(getattr(one, n) for one in chosen) for n in ("lost", "repeated", "changed")]
    return (
        kind,
        str(len(chosen)),
        str(refused) if refused else "",
        f"{sum(bool(one.same_bits) for one in compared)}/{len(compared)}" if compared else "",
        f"{sum(again) / len(again):.1f}, {max(again)}" if again else "",
        ", ".join(map(str, lines)) if compared else "",
        f"{sum(noticed)}/{len(noticed)}" if noticed else "",
        str(sum(one.silent_divergence for one in chosen)),
    )


def _define_flags() -> None:
    """Define them here alone: the runs, which import this module, have flags of their own."""
    flags.DEFINE_integer("points", 66, "How many instants.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the random instants.")
    flags.DEFINE_integer("jobs", 2, "Points at the same time.", lower_bound=1)
    flags.DEFINE_string("only", "", "Regular expression of the kinds to strike.")
    flags.DEFINE_string("json", None, "Where all outcomes are written to.")
    flags.DEFINE_string("keep", None, "Directory to work in, which stays; empty or new.")
    flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
