"""Tables as a person sees them."""

from __future__ import annotations

import numpy as np
import pytest

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


NUMBER = "79.4 (75.3-83.6)"


@pytest.mark.parametrize("columns", [1, 3, 12])
@pytest.mark.parametrize("text", [1, 4])
@pytest.mark.parametrize(
    "name", ["short", "runs/a name/" + "very_long_" * 15 + "@12345", "x" * 200, "words " * 40]
)
def test_no_line_is_longer_than_a_terminal_and_nothing_is_left_out(name, text, columns):
    header = [f"word{i}" for i in range(text)] + [f"a score named {i}, %" for i in range(columns)]
    rows = [[name] * text + [f"{row}{i}:{NUMBER}" for i in range(columns)] for row in "ab"]
    shown = tables.table(header, rows, text)
    assert max(map(len, shown.splitlines())) <= tables.WIDTH
    blocks = shown.split("\n\n")
    for row in "ab":
        for i in range(columns):
            number = f"{row}{i}:{NUMBER}"
            assert sum(number in block for block in blocks) == 1, number
    letters = "".join(shown.split())
    for letter in set("".join(name.split())) - set("".join(header) + NUMBER + "ab:"):
        found, wanted = letters.count(letter), 2 * text * name.count(letter)
        assert found == wanted * len(blocks)


def test_columns_without_room_follow_below_beside_the_names_of_their_rows():
    header = ("method", *(f"data set {i}" for i in range(9)))
    rows = [(name, *(f"{name[0]}{i}.5678" for i in range(9))) for name in ("first", "second")]
    first, second = tables.table(header, rows).split("\n\n")
    for block in (first, second):
        assert [line.split()[0] for line in block.splitlines()[-2:]] == ["first", "second"]
    values = [block.splitlines()[-2].split()[1:] for block in (first, second)]
    assert values[0] + values[1] == list(rows[0][1:])
    titles, line = first.splitlines()[-3], first.splitlines()[-2]
    assert all(
        titles[line.index(value) + len(value) - 1] == str(i) for i, value in enumerate(values[0])
    )


def test_what_all_rows_have_in_common_is_said_once_above():
    rows = [("a", "lbfgs", "h", "1"), ("b", "lbfgs", "h", "2")]
    said, header, left, text = tables.common(("run", "solver", "tap", "n"), rows, 3)
    assert said == "solver lbfgs, tap h" and text == 1
    assert (header, left) == (["run", "n"], [["a", "1"], ["b", "2"]])
    said, header, left, text = tables.common(("run", "tap", "n"), [("a", "h", "1")], 2)
    assert (said, header, text) == ("tap h", ["run", "n"], 1)  # a row keeps a name
