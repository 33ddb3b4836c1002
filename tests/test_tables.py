"""Tables as a person sees them."""

from __future__ import annotations

import numpy as np

from simclr_jax import tables


def test_columns_are_aligned():
    shown = tables.table(("name", "n"), [("a", "1"), ("longer", "1,234")])
    assert shown.splitlines() == ["name        n", "a           1", "longer  1,234"]


def test_header_alone_is_a_table():
    assert tables.table(("name", "n"), []) == "name  n"


def test_parameters_are_counted_by_part_and_in_all():
    params = {
        "encoder": {"conv": {"kernel": np.zeros((3, 3, 3, 64))}, "bn": {"scale": np.zeros(64)}},
        "head": {"dense": {"kernel": np.zeros((64, 128))}},
        "scalar": np.zeros(()),
    }
    rows = [line.split() for line in tables.parameters(params).splitlines()[1:]]
    assert rows == [["encoder", "1,792"], ["head", "8,192"], ["scalar", "1"], ["all", "9,985"]]


def test_scores_are_percentages_with_their_intervals():
    score = {"accuracy": 0.5, "low": 0.4321, "high": 0.5678}
    sure = {"accuracy": 1.0, "low": 1.0, "high": 1.0}
    header, *rows = tables.scores(
        {"raw pixels": {"kNN": score, "probe": sure}, "encoder": {"kNN": sure, "probe": score}}
    ).splitlines()
    assert header.split("  ")[0] == "accuracy on held-out images, %"
    assert header.split()[-2:] == ["kNN", "probe"]
    assert rows[0].split()[2:] == ["50.0", "(43.2-56.8)", "100.0", "(100.0-100.0)"]
    assert rows[1].split()[1:] == ["100.0", "(100.0-100.0)", "50.0", "(43.2-56.8)"]
