"""A part of the malformed calls of `malformed.py`; and that it sees what is no right answer."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import doors
import malformed
import pytest
from malformed_calls import Call, calls

from simclr_jax import command

COUNT = 60


@pytest.mark.e2e
def test_malformed_calls_end_in_one_right_line():
    tests = doors.ROOT / "tests"
    path = os.pathsep.join(map(str, (doors.ROOT, tests, tests / "e2e")))
    count = (f"--count={COUNT}", "--seed=1")
    ended = doors.run_fresh(sys.executable, "-m", "e2e.malformed", *count, PYTHONPATH=path)
    assert ended.code == 0, ended.out + ended.err
    assert f"{COUNT} calls, 0 not refused" in ended.out


def test_every_door_is_called():
    assert {call.door for call in calls()} == {*command.DOORS.values()}


def said(line, code=1, file=""):
    def door(name, arguments):
        if file:
            Path(file).write_text("")
        print(line, file=sys.stderr)
        sys.exit(code)

    return door


@pytest.mark.parametrize(
    "door, result",
    [
        (said("error: --out is wrong"), "one line"),
        (said("note      of a library\nerror: --out is wrong", 75), "one line"),
        (said("error: it is wrong"), "unnamed"),
        (said("error: --out is wrong", file="new"), "late"),
        (said("done", 0), "accepted"),
        (said("error: --out is wrong\nand more"), "traceback"),
        (said("error: --out is wrong", 139), "traceback"),
        (lambda name, arguments: 1 / 0, "traceback"),
    ],
)
def test_what_is_no_right_answer_is_seen(door, result, tmp_path, monkeypatch):
    monkeypatch.setattr(malformed, "door", door)
    whole = malformed.there(tmp_path)
    call = Call("embed", "empty", ("--out=",), ("--out",))
    assert malformed.outcome(tmp_path, call, whole)[0] == result
    assert malformed.there(tmp_path) == whole
