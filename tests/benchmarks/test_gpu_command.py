"""`benchmarks/gpu.py` as a command: mistakes, time that is over, and all of it in small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Of what is not needed, and may well be missing on a machine with an accelerator.
MISSING = ("simplejpeg", "tensorflow", "tensorflow_datasets", "torch")


def run(tmp_path, *arguments, command="gpu.py", timeout=1500):
    """Run a command where packages are missing; return how it ended, and its rows."""
    for name in MISSING:
        text = f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n"
        (tmp_path / f"{name}.py").write_text(text)
    out = tmp_path / "rows.jsonl"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / command, f"--out={out}", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "XLA_FLAGS": one_device()},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return done, rows


def one_device():
    flags = os.environ["XLA_FLAGS"].split()
    return " ".join(flag for flag in flags if "device_count" not in flag)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--sections=resnet51", '--sections is "resnet51" (did you mean "resnet50"?)'),
        ("--large_batches=8,x", '--large_batches has "x", which is no number'),
        ("--small_batches=1.5", "--small_batches has 1.5: give whole numbers"),
        ("--budget=-1", "--budget"),
    ],
)
def test_mistakes_are_one_line(tmp_path, argument, said):
    done, rows = run(tmp_path, argument)
    assert done.returncode == 1 and not rows
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line


def test_what_the_time_does_not_hold_is_skipped_with_a_line(tmp_path):
    done, rows = run(tmp_path, "--budget=3")
    assert done.returncode == 0, done.stderr
    assert [row["section"] for row in rows] == [
        "machine",
        "resnet50",
        "limits",
        "resnet18",
        "shares",
        "profile",
        "largest",
        "accumulation",
        "bitwise",
        "resume",
    ]
    assert all(row["skipped"].startswith("wants ") for row in rows)


def sections(rows):
    found = {}
    for row in rows:
        found.setdefault(row["section"], []).append(row)
    return found


@pytest.mark.slow
def test_every_section_in_small(tmp_path):
    done, rows = run(tmp_path, "--tiny", "--budget=1400")
    assert done.returncode == 0, done.stderr
    failed = [row for row in rows if "failed" in row or "skipped" in row]
    assert [row["failed"] for row in failed] == ["No module named 'torch'"]
    found = sections(rows)

    views = {row["batch"]: row for row in found["resnet50"] if "views_per_s" in row}
    for batch, row in views.items():
        assert row["views_per_s"] * row["ms"] / 1e3 == pytest.approx(2 * batch)
        assert row["loss"] > 0
    assert {row["what"] for row in found["resnet50"]} == {
        "ours alone, views given",
        "ours, views on device",
    }
    limits = {row["bytes"]: row for row in found["limits"] if "bytes" in row}
    assert limits.keys() == {"cost_bytes", "moved_bytes"}
    assert all(row["of_flops"] > 0 for row in limits.values())
    assert [row["batch"] for row in found["resnet18"]] == [4, 8, 8, 4]
    assert {row["piece"] for row in found["shares"]} == {"augmentation", "loss"}
    kinds = {row["kind"]: row["share"] for row in found["profile"] if "kernel" not in row
             and "kind" in row}  # fmt: skip
    assert sum(kinds.values()) == pytest.approx(1) and kinds["convolution"] > 0
    parts = {row["part"]: row["share"] for row in found["profile"] if "part" in row}
    assert parts["encoder, backward"] > 0 and parts["views"] > 0

    assert [row["batch"] for row in found["largest"]] == [8]
    (whole,) = found["accumulation"]
    assert (whole["batch"], whole["parts"]) == (16, 2)
    assert whole["views_per_s"] * whole["ms"] / 1e3 == pytest.approx(32)
    assert [row["same"] for row in found["bitwise"]] == [True, True]  # a CPU repeats itself
    (resumed,) = found["resume"]
    assert resumed["same_losses"] and resumed["steps"] == 12
    assert 5 <= resumed["killed_after"] < 12


@pytest.mark.slow
def test_our_step_where_there_is_no_pytorch(tmp_path):
    small = ("--depth=10", "--width=0.0625", "--size=16", "--batch=4")
    short = ("--turns=1", "--turn_s=0.05")
    done, rows = run(tmp_path, *small, *short, command="against_torch.py")
    assert done.returncode == 0, done.stderr
    _, ours, theirs = rows
    assert ours["views_per_s"] * ours["ms"] / 1e3 == pytest.approx(8)
    assert theirs["failed"] == "No module named 'torch'"
    done, _ = run(tmp_path, "--recipe=configs/none.py", command="against_torch.py")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "configs/none.py" in line
