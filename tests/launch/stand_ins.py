"""Programs that stand in for others: they write down their calls, and answer by a script."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / "launch"

# Under `nohup` every process started here would ignore what some of the tests send.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The arguments are written NUL-separated, a line feed after each call. `remote` is what gcloud
# would have the workers run: it splits at blanks what ssh joins with blanks again.
PROGRAM = r"""#!/bin/bash
call="${0##*/} $*" line=0
{ printf '%s\0' "${0##*/}" "$@"; printf '\n'; } >>"$STAND_INS/calls"
for argument in "$@"; do
  if [[ $argument == --command=* ]]; then remote=${argument#--command=}; fi
done
while IFS= read -r answer; do
  line=$((line + 1)) pattern=${answer%% => *}
  if [[ $pattern != - && $call == ${pattern#always } ]]; then
    [[ $pattern == always* ]] || sed -i "${line}s/.*/- => /" "$STAND_INS/answers"
    eval "${answer#* => }"
    exit
  fi
done <"$STAND_INS/answers"
"""


class StandIns:
    """Programs of some names, first on the PATH.

    Each call is answered by the first line of `answers`, `PATTERN => COMMANDS`, whose pattern (of
    bash) matches its name and arguments. A line answers once, or always if it begins with "always".
    Without an answer the program succeeds.
    """

    def __init__(self, directory: Path, names: str, *answers: str) -> None:
        self.directory = directory
        self.programs = directory / "bin"
        self.programs.mkdir()
        for name in names.split():
            executable(self.programs / name, PROGRAM)
        (directory / "calls").touch()
        (directory / "answers").write_text("".join(f"{answer}\n" for answer in answers))
        self.environment = os.environ | {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "STAND_INS": str(directory),
            "POLL": "0",
        }

    def run(
        self, script: str, *arguments: str, launch: Path = LAUNCH, **environment: str
    ) -> subprocess.CompletedProcess:
        """Run a script of `launch`."""
        return subprocess.run(
            ["timeout", "60", "bash", launch / script, *arguments],
            env=self.environment | environment,
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[list[str]]:
        """Return the name and arguments of each call."""
        calls = (self.directory / "calls").read_text().split("\0\n")
        return [call.split("\0") for call in calls[:-1]]


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def words(line: str) -> list[str]:
    """Return the words that bash makes of a line."""
    said = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return said.stdout.decode().split("\0")[:-1]


def until(true: Callable[[], object], secs: float = 20) -> None:
    """Wait until `true()`, and fail if that takes too long."""
    deadline = time.monotonic() + secs
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    said = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(said.stdout.strip()) and not said.stdout.startswith("Z")


# What no shell on the way may touch.
ODD = ("two  blanks ", 'it\'s "$HOME" `id`', "a;b & c|d>e\\", "line\nfeed", "*?[é]{1,2}~#!", "")
