"""SIGKILL at many instants of every command, imports included; then the same command again.

    python benchmarks/faults/kills.py --instants=8
    python benchmarks/faults/kills.py --instants=64 --kills=2 --jobs=2 --json=kills.json

Each command is run twice without a fault: the second time, programs compiled, says how long it
takes, and shows that it gives the same bits. Then it is killed at random instants, one command
after the other in turn, and given again until it is done; what it leaves is compared with what the
first run left: arrays of the last checkpoint, lines of metrics, results, vectors, pictures. On a
machine that has become faster an instant may come too late: the table says how many met a process.
Exit code 1 if anything differs, stays behind, or ends in another way.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import commands
import runs
from absl import flags
from commands import COMMANDS

from simclr_jax import entry, errors
from simclr_jax.tables import table

FLAGS = flags.FLAGS
MOST_RUNS = 8
HEADS = ("command", "seconds", "kills", "same bits", "left behind", "problems")


@dataclasses.dataclass
class Outcome:
    """What became of one instant."""

    command: str
    at: list[float]
    codes: list[int] = dataclasses.field(default_factory=list)
    kills: int = 0  # that met a process
    differing: list[str] = dataclasses.field(default_factory=list)
    left: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def main() -> int:
    """Kill, compare, print a table; return the exit code."""
    names = [name for name in COMMANDS if re.search(FLAGS.only, name)]
    if not names:
        raise errors.UserError(f"--only={FLAGS.only} names none of: {', '.join(COMMANDS)}")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(FLAGS.keep or temporary).absolute()
        place.mkdir(parents=True, exist_ok=True)
        runs.use_small_compiles(place / "cache")
        runs.write_images(place / "images.npz")
        seconds = _references(place, names)
        with concurrent.futures.ThreadPoolExecutor(FLAGS.jobs) as pool:
            numbers = range(FLAGS.instants)
            outcomes = list(pool.map(lambda i: _kill(place, names, seconds, i), numbers))
    print(table(HEADS, [_row(name, seconds[name], outcomes) for name in names]))
    if FLAGS.json:
        record = {"command": sys.argv, "outcomes": [dataclasses.asdict(one) for one in outcomes]}
        Path(FLAGS.json).write_text(json.dumps(record, indent=1) + "\n")
    return int(any(one.problems or one.differing or one.left for one in outcomes))


def _references(place: Path, names: list[str]) -> dict[str, float]:
    """Run each command without a fault; return how long each takes."""
    needed = [command.needs for name, command in COMMANDS.items() if name in names]
    seconds = {}
    for name in dict.fromkeys([*filter(None, needed), *names]):
        command, made = COMMANDS[name], []
        for directory in (place / name, place / f"{name} again"):
            ended = commands.run(command.line(), commands.prepare(directory, command, place))
            if ended.code:
                raise errors.UserError(f"{name} ended with {ended.code}: {ended.err.strip()}")
            made.append(commands.outputs(directory))
        if differing := commands.differing(*made):
            raise errors.UserError(f"{name} gives other bits without a fault: {differing}")
        seconds[name] = ended.seconds
        print(f"    {name:14} {ended.seconds:5.1f} s, {len(made[0])} outputs", flush=True)
    return seconds


def _kill(place: Path, names: list[str], seconds: dict[str, float], number: int) -> Outcome:
    name, draw = names[number % len(names)], random.Random(f"{FLAGS.seed} {number}")
    outcome = Outcome(name, [draw.uniform(0, seconds[name]) for _ in range(FLAGS.kills)])
    command, directory = COMMANDS[name], place / f"instant{number:03}"
    commands.prepare(directory, command, place)
    while not outcome.codes or outcome.codes[-1]:
        turn = len(outcome.codes)
        if turn >= MOST_RUNS:
            outcome.problems.append("it never ends")
            break
        began = time.monotonic()
        process = commands.start(command.line(), directory, turn, directory)
        if turn < FLAGS.kills:
            time.sleep(outcome.at[turn])
            outcome.kills += process.poll() is None
            process.kill()
        ended = commands.wait(process, directory, turn, began)
        outcome.codes.append(ended.code)
        if "Traceback" in ended.err:
            outcome.problems.append(f"run {turn} ended in a traceback")
        elif ended.code not in (0, *runs.AGAIN):
            if "is in use by process" not in ended.err:  # one of several is just being ended
                outcome.problems.append(f"run {turn} ended with {ended.code}: {ended.err.strip()}")
                break
            time.sleep(1)
    else:
        outcome.differing = commands.differing(
            commands.outputs(directory), commands.outputs(place / name)
        )
        outcome.left = commands.left_behind(directory)
    said = "; ".join([*outcome.problems, *outcome.differing, *outcome.left])
    at = ", ".join(f"{when:.1f}" for when in outcome.at)
    print(f"{number:3} {name:14} at {at} s  codes {outcome.codes}  {said}", flush=True)
    if not (FLAGS.keep or said):
        shutil.rmtree(directory)
    return outcome


def _row(name: str, seconds: float, outcomes: list[Outcome]) -> tuple[str, ...]:
    chosen = [one for one in outcomes if one.command == name]
    same = sum(not one.differing and not one.problems for one in chosen)
    return (
        name,
        f"{seconds:.1f}",
        f"{sum(one.kills for one in chosen)}/{len(chosen) * FLAGS.kills}",
        f"{same}/{len(chosen)}",
        str(sum(bool(one.left) for one in chosen)),
        "; ".join(problem for one in chosen for problem in one.problems)[:60],
    )


if __name__ == "__main__":
    flags.DEFINE_integer("instants", len(COMMANDS), "How many.", lower_bound=1)
    flags.DEFINE_integer("kills", 1, "Of each instant: how often the command is killed.")
    flags.DEFINE_integer("seed", 0, "Of the random instants.")
    flags.DEFINE_integer("jobs", 1, "Instants at the same time.", lower_bound=1)
    flags.DEFINE_string("only", "", "Regular expression of the commands to kill.")
    flags.DEFINE_string("json", None, "Where all outcomes are written to.")
    flags.DEFINE_string("keep", None, "Directory to work in, which stays; empty or new.")
    flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")
    os.chdir(commands.ROOT)
    entry.run(main)
