"""Every table that a door prints, with long names of everything: it fits a terminal."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import simclr_jax
from simclr_jax import tables
from simclr_jax.evaluate import chance
from simclr_jax.judging import shown, transfer, transfer_sets
from simclr_jax.judging.shown import Scored
from simclr_jax.judging.transfer import Target
from simclr_jax.pipeline import table as pipeline_table
from simclr_jax.pipeline.table import Cost, Entry
from simclr_jax.planning import plan

LONG = "runs/of_a_group-with/a_rather_long_name-of-a-run@123456 untrained"
SCORE = {"value": 0.794, "low": 0.753, "high": 0.836}
METRICS = ("top-1", "top-5", "mean per class", "mAP", "11-point mAP")


def scored(run=LONG, solver="knn", variant="knn200_0.1", tap="group4", data=LONG) -> Scored:
    result = {
        "name": f"{LONG}-{variant}-{tap}",
        "solver": solver,
        "variant": variant,
        "tap": tap,
        "data": {"name": data, "test": {"split": "test"}},
        "protocol": {"labels used": "some/file_of_names.txt, crc32 01234567"},
        "scores": dict.fromkeys(METRICS, SCORE),
        "level": {"of": "", "scores": {metric: {"value": 0.1} for metric in METRICS}},
    }
    encoder = SimpleNamespace(run=run, step=1, config=SimpleNamespace(stage="finetune"))
    return Scored(encoder, result, {}, variant)  # type: ignore[arg-type]


def of_probes() -> str:
    found = [
        scored(f"{run}{LONG}", "lbfgs", "lbfgs", tap, f"{data}{LONG}")
        for run in "ab"
        for tap in ("h", "head1")
        for data in "cd"
    ]
    found += [scored(solver="kmeans", variant="kmeans"), scored(solver="retrieval")]
    return "\n".join(shown.table(found))


def of_many_probes() -> str:
    taps = ["h", "z", *(f"head{i}" for i in range(1, 12)), "pixels"]
    found = [scored(f"{run}{LONG}", tap=tap) for run in "ab" for tap in taps]
    return "\n".join(shown.grid(found)[:-2])


def of_transfer() -> str:
    sets = {one.name: one for one in transfer_sets.SETS}
    targets = {
        name: Target(None, one.metric, transfer_sets.published(one), ("a note",))  # type: ignore
        for name, one in sets.items()
    }
    return "\n".join(transfer.beside_published(dict.fromkeys(sets, scored()), targets))


def of_pipelines() -> str:
    cost = Cost(123_456_789, 12_345.6, 12_345.6)
    entries = [
        Entry(f"{row} {LONG}", f"{column} {LONG}", f"{row}{draw}", draw, 0.5, cost, 0.1)
        for row in "ab"
        for column in "cde"
        for draw in range(3)
    ]
    pairs = [(f"a {LONG}", f"b {LONG}")]
    summary = pipeline_table.summarise(entries, pairs, {LONG: cost})
    return "\n\n".join(text for text in pipeline_table.lines(summary) if "\n" in text)


def at_the_end_of_a_run() -> str:
    score = {"accuracy": 0.794, "low": 0.753, "high": 0.836}
    names = ("kNN", "probe, 10 labels a class", "probe, all labels", "mean per class", "top-5")
    things = (chance.COMMONEST, "raw pixels", "pretrained encoder", f"teacher {LONG}")
    return tables.scores({thing: dict.fromkeys(names, score) for thing in things})


def of_parameters() -> str:
    return tables.parameters({LONG: np.zeros(3), "encoder": np.zeros((3, 10**5))})


def of_plans() -> str:
    choice = {"peak": 10**12, "largest": 12345678}
    asked = SimpleNamespace(count=32)
    found = {
        "batch_size": 4096,
        "room": 10**11,
        "choices": [choice | {"name": f"as it is {LONG}"}, choice | {"name": "a"}],
    }
    return plan._choices_table(asked, found).split("\n\n")[0]  # type: ignore[arg-type]


TABLES = (
    of_probes,
    of_many_probes,
    of_transfer,
    of_pipelines,
    at_the_end_of_a_run,
    of_parameters,
    of_plans,
)


@pytest.mark.parametrize("make", TABLES)
def test_it_fits_a_terminal(make):
    lines = make().splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= tables.WIDTH, max(lines, key=len)


@pytest.mark.parametrize(
    "make", [of_probes, of_many_probes, of_transfer, of_pipelines, at_the_end_of_a_run]
)
def test_what_guessing_gives_stands_beside_accuracies(make):
    assert "thecommonestclass" in "".join(make().split())


def test_what_is_printed_in_columns_is_a_table_of_the_one_place():
    """So that no other door has a table of its own which nothing keeps within the width."""
    package = Path(simclr_jax.__file__).parent
    aligning = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(word in path.read_text() for word in (".ljust(", ".rjust(", "expandtabs"))
    ]
    assert aligning == ["tables.py"]


def test_a_probe_is_told_by_words_and_what_is_the_same_by_a_line():
    found = [scored("a", variant=v, data="digits", tap="h") for v in ("knn200_0.1", "knn20")]
    _, said, header, *rows = "\n".join(shown.table(found)).splitlines()
    assert said.split(", ") == ["run a", "data digits", "tap h", "labels some/file_of_names.txt"]
    assert header.split()[0] == "solver"
    assert [row.split()[0] for row in rows[:2]] == ["knn200_0.1", "knn20"]
