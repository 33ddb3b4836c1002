"""`benchmarks/methods.py`: its table of accuracies, its costs in small, mistakes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from simclr_jax import declaration

COMMAND = Path(__file__).parents[2] / "benchmarks" / "methods.py"
ALONE = ("--steps=0", "--memory=False")
HELD_OUT = "test: 360 images, crc32 3a8f66db"


def run(*arguments):
    return subprocess.run(
        [sys.executable, COMMAND, *arguments],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )


def write_run(workdir, method, accuracy, step=450, held_out=HELD_OUT, **fields):
    """Write what a run leaves of itself at its end."""
    (workdir / "results").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps({"method": method, method: fields}))
    levels = {"raw pixels": 0.25, "untrained encoder": 0.125, "pretrained encoder": accuracy}
    scores = {thing: {"kNN": {"accuracy": value}} for thing, value in levels.items()}
    protocol = {"step": step, "held_out": held_out}
    said = {"protocol": protocol, "scores": scores}
    (workdir / "results" / "summary.json").write_text(json.dumps(said))
    return str(workdir)


def cells(line):
    return re.split(r"  +", line.strip())


def test_runs_of_a_method_and_a_length_are_one_row(tmp_path):
    written = (("byol", 0.5, 450), ("simclr", 0.75, 450), ("byol", 0.7, 450), ("byol", 0.1, 9))
    runs = [
        write_run(tmp_path / str(i), method, accuracy, step)
        for i, (method, accuracy, step) in enumerate(written)
    ]
    done = run(*ALONE, f"--runs={','.join(runs)}")
    assert done.returncode == 0, done.stderr
    assert [cells(line) for line in done.stdout.splitlines()] == [
        ["accuracy, %", "steps", "runs", "kNN"],
        ["byol", "9", "1", "10.0"],
        ["byol", "450", "2", "60.0 (50.0 to 70.0)"],
        ["simclr", "450", "1", "75.0"],
        ["raw pixels", "1", "25.0"],
        ["untrained encoder", "1", "12.5"],
    ]


def test_runs_whose_own_fields_differ_are_rows_that_say_in_what(tmp_path):
    losses = "debiased", "info_nce", "debiased"
    runs = [
        write_run(tmp_path / str(i), "contrastive", i / 4, loss=loss, tau_plus=0.1)
        for i, loss in enumerate(losses)
    ]
    done = run(*ALONE, f"--runs={','.join(runs)}")
    assert done.returncode == 0, done.stderr
    assert [cells(line) for line in done.stdout.splitlines()[1:3]] == [
        ["contrastive loss=debiased", "450", "2", "25.0 (0.0 to 50.0)"],
        ["contrastive loss=info_nce", "450", "1", "25.0"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*ALONE, "--runs={0},{1}"), "judged on other held-out images (test: 360 images, "),
        ((*ALONE, "--runs={0}/no"), "no results/summary.json: it is no run that has ended"),
        (("--methods=mocco",), "moco"),
        (("--methods=contrastive:loss=margin",), "costs are of a method's defaults"),
        (("--methods=moco", "--set=moco.queu=1"), "no FIELD=VALUE of any method"),
        (("--methods=moco", "--set=moco.queue=1.5"), "moco.queue is a whole number"),
        (("--methods=moco", "--set=moco.queue=8"), "moco cannot be measured so: moco.queue is 8"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, said):
    runs = write_run(tmp_path / "a", "byol", 0.5), write_run(tmp_path / "b", "moco", 0.5, 450, "b")
    done = run(*(argument.format(*runs) for argument in arguments))
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_costs_in_small():
    """SimCLR keeps nothing and is beside itself; a queue is counted to the byte."""
    tiny = ("--depth=10", "--width=0.0625", "--size=8", "--batch_size=16", "--images=64")
    fields = ("--set=moco.queue=4096,instdisc.negatives=9", "--methods=simclr,moco")
    done = run(*tiny, *fields, "--steps=2")
    assert done.returncode == 0, done.stderr
    title, header, *rows = done.stdout.splitlines()
    assert "ResNet-10 x 0.0625, 16 images of 8 pixels of 64" in title
    assert cells(header)[0] == "method" and {"simclr", "moco"} <= set(declaration.known())
    simclr, moco = map(cells, rows)
    assert (simclr[:2], simclr[3]) == (["simclr", "0.0"], "x 1.00")
    assert float(moco[1]) >= 4096 * 128 * 4 / 2**20 and float(moco[2]) > float(moco[1])
    assert float(simclr[2]) > 0 and min(float(row[4]) for row in (simclr, moco)) > 0
    assert all(float(row[5].removeprefix("x ")) > 0 for row in (simclr, moco))
