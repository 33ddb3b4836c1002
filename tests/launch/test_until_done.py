"""The script starts a preempted run again, and nothing else."""

import shlex
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "until_done"


def run(tmp_path, codes, *arguments):
    """Run the script over a command that ends with each of `codes` in turn; return both."""
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    command = tmp_path / "a command"  # the space tells whether arguments are quoted
    command.write_text(
        '#!/bin/sh\ncode=$(sed -n 1p codes); sed -i 1d codes; echo "$*" >> said; exit $code\n'
    )
    command.chmod(0o755)
    ended = subprocess.run(
        [SCRIPT, command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    return ended.returncode, (tmp_path / "said").read_text().splitlines()


@pytest.mark.parametrize(
    "codes, ends, attempts",
    [((0,), 0, 1), ((75, 137, 134, 139, 143, 0), 0, 6), ((75, 1, 0), 1, 2), ((130, 0), 130, 1)],
)
def test_only_preemption_starts_again(tmp_path, codes, ends, attempts):
    code, said = run(tmp_path, codes, "--workdir=a b", "c")
    assert code == ends
    assert said == ["--workdir=a b c"] * attempts


def test_attempts_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIES", "2")
    code, said = run(tmp_path, (75, 75, 75), "x")
    assert code == 75 and len(said) == 2


def test_a_dry_run_prints_the_command(tmp_path):
    command = [SCRIPT, "--dry-run", "touch", str(tmp_path / "a b")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shlex.split(ended.stdout) == command[2:] and not list(tmp_path.iterdir())


def test_help():
    ended = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert "launch/until_done python -m simclr_jax.main" in ended.stdout
