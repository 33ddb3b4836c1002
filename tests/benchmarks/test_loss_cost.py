"""`benchmarks/loss_cost.py`: mistakes, and its tables in small."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).parents[2] / "benchmarks" / "loss_cost.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, COMMAND, *arguments],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--compiled=1024", '--compiled has "1024": write PAIRSxDEVICES, as 65536x8'),
        ("--compiled=10x3", "10 pairs are no 3 equal parts"),
        ("--timed=0", '--timed has "0": give a finite number, above 0'),
    ],
)
def test_mistakes_are_one_line(argument, said):
    done = run(argument)
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1


def cells(text, count):
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if len(row) == count and row[0].isdigit()]


@pytest.mark.slow
def test_both_tables():
    done = run("--compiled=512x1,512x4", "--timed=64", "--at_once=16", "--turns=1", "--dim=8")
    assert done.returncode == 0, done.stderr
    memory = {(row[0], row[1], row[3]): float(row[5]) for row in cells(done.stdout, 6)}
    assert len(memory) == 6
    # Plain, each device holds matrices [512 / devices, 1024] of 4 bytes, several at a time.
    for devices in (1, 4):
        matrix = 512 / devices * 1024 * 4 / 2**20
        plain = memory["512", str(devices), "plain"]
        assert matrix <= plain <= 12 * matrix
        assert memory["512", str(devices), "16 at once"] < plain / 2
        assert memory["512", str(devices), "shipped"] == plain  # so few that all are taken at once
    times = {row[1]: float(row[3]) for row in cells(done.stdout, 7)}
    assert times.keys() == {"plain", "shipped", "16 at once"} and min(times.values()) > 0
