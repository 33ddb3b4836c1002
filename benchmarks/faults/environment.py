"""What happens around a run: full, read-only, vanished disks, data that change, few files, bombs.

    python benchmarks/faults/environment.py --only='full|few'
    python benchmarks/faults/environment.py --json=environment.json

Each fault strikes a run of its own. It must end in one line that names what is wrong, or be none
for the run; then the surroundings are put right, and the same command must come to the losses and
the bits of a run that was never struck. Exit code 1 if anything is not so.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import commands
import runs
import surroundings
from absl import flags
from commands import COMMANDS, FOLDER, Command, Ended
from surroundings import FAULTS, Fault

from simclr_jax import entry, errors
from simclr_jax.tables import table

FLAGS = flags.FLAGS
HEADS = ("fault", "ended", "one line", "then", "same bits", "MB", "what it said")


@dataclasses.dataclass
class Outcome:
    """What became of one fault; `problems` says what should not have happened."""

    fault: str
    code: int = -1
    one_line: bool = False
    peak: float = 0.0
    said: str = ""
    then: int = -1
    differing: list[str] = dataclasses.field(default_factory=list)
    left: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def main() -> int:
    """Strike, compare, print a table; return the exit code."""
    names = [name for name in FAULTS if re.search(FLAGS.only, name)]
    if not names:
        raise errors.UserError(f"--only={FLAGS.only} names none of: {'; '.join(FAULTS)}")
    if os.geteuid():
        print("what needs a mount is left out: only root can do that")
        names = [name for name in names if not FAULTS[name].disk]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(FLAGS.keep or temporary).absolute()
        place.mkdir(parents=True, exist_ok=True)
        runs.use_small_compiles(place / "cache")
        runs.write_images(place / "images.npz")
        surroundings.write_pictures(place / "pictures")
        for kind, command in (("memory", COMMANDS["pretrain"]), ("folder", FOLDER)):
            if any(FAULTS[name].folder == (kind == "folder") for name in names):
                _reference(place / kind, command)
        with concurrent.futures.ThreadPoolExecutor(FLAGS.jobs) as pool:
            outcomes = list(pool.map(lambda i: _strike(place, names[i], i), range(len(names))))
    print(table(HEADS, [_row(one) for one in outcomes]))
    for one in outcomes:
        for problem in one.problems:
            print(f"{one.fault}: {problem}")
    if FLAGS.json:
        record = {"command": sys.argv, "outcomes": [dataclasses.asdict(one) for one in outcomes]}
        Path(FLAGS.json).write_text(json.dumps(record, indent=1) + "\n")
    return int(any(one.problems for one in outcomes))


def _reference(directory: Path, command: Command) -> None:
    directory.mkdir()
    ended = commands.run(command.line(), directory)
    if ended.code:
        raise errors.UserError(f"the reference ended with {ended.code}: {ended.err.strip()}")


def _strike(place: Path, name: str, number: int) -> Outcome:
    fault, outcome = FAULTS[name], Outcome(name)
    own = place / f"fault{number:03}"
    own.mkdir()
    shutil.copy(place / "images.npz", own)
    shutil.copytree(place / "pictures", own / "pictures")
    with contextlib.ExitStack() as stack:
        directory = own / "disk"
        if fault.disk:
            stack.enter_context(surroundings.disks.mounted(directory))
        else:
            directory.mkdir()
        try:
            _go(fault, directory, outcome)
            if fault.repeat and not outcome.problems:
                _compare(directory, place / ("folder" if fault.folder else "memory"), outcome)
        except Exception as error:
            outcome.problems.append(f"{type(error).__name__}: {error}")
        if FLAGS.keep and fault.disk:
            shutil.copytree(directory, own / "kept", dirs_exist_ok=True)
    print(f"{number:3} {name}: {outcome.code}, then {outcome.then}  {outcome.problems}", flush=True)
    if not (FLAGS.keep or outcome.problems):
        shutil.rmtree(own)
    return outcome


def _go(fault: Fault, directory: Path, outcome: Outcome) -> None:
    """Run the command under the fault, put it right, and run it again."""
    for preparation in fault.before:
        preparation(directory)
    notes = directory.parent
    ended = commands.run(fault.line(directory), directory, 0, notes)
    if fault.between is not None:  # it was only made ready by that run
        if ended.code != 137:
            outcome.problems.append(f"it was not killed: {ended.code} {ended.err.strip()[-300:]}")
        fault.between(directory)
        ended = commands.run(fault.plain(), directory, 1, notes)
    _judge(fault, ended, outcome)
    fault.after(directory)
    if fault.repeat:
        again = commands.run(fault.plain(), directory, 2, notes)
        outcome.then = again.code
        if again.code:
            outcome.problems.append(f"then it ended with {again.code}: {again.err.strip()[-300:]}")


def _judge(fault: Fault, ended: Ended, outcome: Outcome) -> None:
    outcome.code, outcome.one_line, outcome.peak = ended.code, ended.one_line, ended.peak
    told = [*ended.lines, *(s for s in ended.out.splitlines() if re.search(fault.says, s))]
    outcome.said = told[0] if told else ""
    if "Traceback" in ended.err:
        outcome.problems.append(f"a traceback: {ended.err.strip().splitlines()[-1][:200]}")
    elif ended.code == 0 and not fault.harmless:
        outcome.problems.append("it went on as if nothing were")
    elif ended.code and not ended.one_line:
        outcome.problems.append(f"no line: {ended.code} {ended.err.strip()[-300:]}")
    if not re.search(fault.says, outcome.said):
        outcome.problems.append(f"it does not say {fault.says}: {outcome.said}")
    if ended.peak > surroundings.MOST_MEMORY:
        outcome.problems.append(f"it took {ended.peak:.0f} MB")


def _compare(directory: Path, reference: Path, outcome: Outcome) -> None:
    found, expected = (commands.outputs(place / "run") for place in (directory, reference))
    names = commands.differing(found, expected)
    # The path of the data, and of the index of files, is another one.
    outcome.differing = [name for name in names if not name.startswith(("config.json", "index"))]
    outcome.left = commands.left_behind(directory)
    for what, list_of in (("differs", outcome.differing), ("left behind", outcome.left)):
        outcome.problems += [f"{what}: {name}" for name in list_of]


def _row(one: Outcome) -> tuple[str, ...]:
    same = "" if one.then else "no" if one.differing else "yes"
    line = "yes" if one.one_line else "" if one.code == 0 else "NO"
    then = "" if one.then < 0 else str(one.then)
    said = one.said.removeprefix("error: ")[:70]
    return (one.fault, str(one.code), line, then, same, f"{one.peak:.0f}", said)


if __name__ == "__main__":
    flags.DEFINE_string("only", "", "Regular expression of the faults.")
    flags.DEFINE_integer("jobs", 1, "Faults at the same time.", lower_bound=1)
    flags.DEFINE_string("json", None, "Where all outcomes are written to.")
    flags.DEFINE_string("keep", None, "Directory to work in, which stays; empty or new.")
    flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")
    os.chdir(commands.ROOT)
    entry.run(main)
