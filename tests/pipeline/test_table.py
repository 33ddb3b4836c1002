"""The numbers of a pipeline's table, from accuracies and files written for it, against NumPy."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from scipy import stats

from simclr_jax import documents
from simclr_jax.pipeline import table
from simclr_jax.pipeline.table import Cost, Entry
from simclr_jax.train import progress

RANDOM = np.random.RandomState(0)
DRAWS = {"a": (0, 1, 2, 3, 4), "b": (4, 3, 2, 0), "c": (1, 2), "d": (7,)}
ACCURACY = {row: RANDOM.uniform(0.4, 0.7, len(draws)) for row, draws in DRAWS.items()}


def cost(number):
    speed = None if number == 3 else 40.0 + number**2
    return Cost(1000 + 100 * (number % 2), speed, 1.5 + number)


def entries(column="10%"):
    return [
        Entry(row, column, f"{row}{draw}", draw, float(value), cost(i))
        for row, draws in DRAWS.items()
        for i, (draw, value) in enumerate(zip(draws, ACCURACY[row], strict=True))
    ]


def summary(pairs=(), others=None, more=()):
    return table.summarise([*entries(), *more], pairs, others or {})


def test_a_cell_is_mean_and_standard_deviation_over_its_draws():
    for row in summary()["rows"]:
        values = ACCURACY[row["row"]]
        cell = row["cells"]["10%"]
        assert cell["mean"] == pytest.approx(np.mean(values)) and cell["n"] == len(values)
        want = None if len(values) == 1 else pytest.approx(np.std(values, ddof=1))
        assert cell["std"] == want
        each = [(e["name"], e["draw"], e["accuracy"]) for e in cell["entries"]]
        draws = DRAWS[row["row"]]
        assert each == [
            (f"{row['row']}{d}", d, v) for d, v in zip(draws, values.tolist(), strict=True)
        ]


def test_guessing_stands_in_a_row_and_what_is_not_above_it_is_named():
    more = [Entry("e", "1%", "x", i, 0.2, None, 0.1 + 0.1 * i) for i in range(2)]
    more += [Entry("f", "1%", "y", 0, 0.15, None), Entry("g", "1%", "z", 0, 0.14, None, 0.15)]
    found = summary(more=more)
    assert found["level"] == {"1%": pytest.approx(0.15)}
    lines = table.lines(found)
    rows = [x for x in "\n".join(lines).splitlines() if x.startswith("the commonest class")]
    cells = [cell for row in rows for cell in row.split()[3:]]  # of a table in two blocks
    assert cells == ["-", "15.0", "-", "-", "-"]
    said = [line for line in lines if line.startswith("note")]
    assert [line.split(":")[0] for line in said] == ["note      f, 1%", "note      g, 1%"]
    assert "the commonest" not in "\n".join(table.lines(summary()))


def test_columns_do_not_mix():
    more = [Entry("a", "1%", "x", 0, 0.2, None), Entry("b", "1%", "y", 0, 0.3, None)]
    found = summary([("a", "b")], more=more)
    a = found["rows"][0]
    assert found["columns"] == ["10%", "1%"]
    assert a["cells"]["1%"]["mean"] == 0.2
    assert a["cells"]["10%"]["mean"] == pytest.approx(ACCURACY["a"].mean())
    assert found["differences"][0]["cells"]["1%"]["mean"] == pytest.approx(-0.1)


def paired(a, b):
    one, other = (dict(zip(DRAWS[row], ACCURACY[row], strict=True)) for row in (a, b))
    return np.array([one[draw] - other[draw] for draw in one if draw in other])


@pytest.mark.parametrize("a, b", [("a", "b"), ("b", "a"), ("a", "c")])
def test_differences_are_between_same_draws(a, b):
    (found,) = summary([(a, b)])["differences"]
    each, cell = paired(a, b), found["cells"]["10%"]
    assert (found["row"], found["minus"]) == (a, b)
    assert cell["mean"] == pytest.approx(each.mean())
    assert cell["std"] == pytest.approx(np.std(each, ddof=1)) and cell["n"] == len(each)
    assert cell["separable"] == (abs(each.mean()) > 2 * stats.sem(each))
    unpaired = ACCURACY[a].mean() - ACCURACY[b].mean()
    assert cell["mean"] != pytest.approx(unpaired)


@pytest.mark.parametrize("share, separable", [(1.99, False), (2.01, True)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("draws", [2, 3, 9])
def test_a_difference_is_separable_beyond_two_standard_errors(share, separable, sign, draws):
    noise = np.random.RandomState(1).normal(size=draws)
    noise -= noise.mean()
    values = sign * share * stats.sem(noise) + noise
    made = [
        Entry(row, "1%", f"{row}{i}", i, 0.5 + 0.01 * value, None)
        for row, of in (("a", values), ("b", 0 * values))
        for i, value in enumerate(of)
    ]
    (found,) = table.summarise(made, [("a", "b")], {})["differences"]
    assert found["cells"]["1%"]["separable"] is separable
    text = "\n".join(table.lines(table.summarise(made, [("a", "b")], {})))
    assert (" ns" in text.partition("paired differences")[2].partition("\n\n")[0]) != separable


def test_one_draw_in_common_has_no_spread_and_none_no_cell():
    c, d = (summary([pair])["differences"][0]["cells"] for pair in (("b", "b"), ("a", "d")))
    assert c["10%"]["mean"] == 0 and d == {}
    more = [Entry("d", "10%", "d0", 0, 0.25, None)]
    cell = summary([("a", "d")], more=more)["differences"][0]["cells"]["10%"]
    assert cell["mean"] == pytest.approx(ACCURACY["a"][0] - 0.25)
    assert (cell["std"], cell["n"], cell["separable"]) == (None, 1, None)


def test_costs_of_a_row_are_median_speed_mean_minutes_and_every_size():
    a, b, c, d = summary()["rows"]
    # One of five runs was too short to have a speed.
    assert a["images_per_second"] == np.median([40, 41, 44, 56])
    assert b["images_per_second"] == 41 and c["images_per_second"] == 40.5
    assert a["minutes"] == pytest.approx(np.mean([1.5, 2.5, 3.5, 4.5, 5.5]))
    assert a["parameters"] == [1000, 1100] and d["parameters"] == [1000]


def test_minutes_are_the_sum_over_all_runs_each_once():
    """A run may stand in two rows, and one in none; a probe costs nothing."""
    twice = Entry("e", "10%", "a0", 0, 0.5, cost(0))
    probe = Entry("e", "10%", "probe", 1, 0.5, None)
    found = summary(others={"pretrain": Cost(1, None, 100.25)}, more=[twice, probe])
    each = [1.5 + i for draws in DRAWS.values() for i in range(len(draws))]
    assert found["runs"] == len(each) + 1
    assert found["minutes"] == pytest.approx(sum(each) + 100.25)
    assert found["other runs"] == {
        "pretrain": {"parameters": 1, "images_per_second": None, "minutes": 100.25}
    }
    assert found["rows"][-1]["minutes"] == 1.5


def shown(found):
    text = "\n".join(table.lines(found))
    first, second = text.split("paired differences, points")
    return first, second


def test_what_is_printed_is_in_per_cent_and_points():
    found = summary([("a", "b"), ("c", "d")], {"pretrain": Cost(123_456, None, 7.25)})
    first, second = shown(found)
    values, each = 100 * ACCURACY["a"], 100 * paired("a", "b")
    spread = f"{values.mean():.1f} ± {np.std(values, ddof=1):.1f} (5)"
    assert re.search(rf"a +{re.escape(spread)} +1,000/1,100 +42 +3\.5", first)
    assert re.search(rf"d +{100 * ACCURACY['d'][0]:.1f} \(1\) +1,000 +40 +1\.5", first)
    assert re.search(r"pretrain +- +123,456 +- +7\.\d", first)
    assert f"{each.mean():+.1f} ± {np.std(each, ddof=1):.1f}" in second
    assert re.search(r"c - d +-\n", second)
    assert "all 13 runs:" in second and "standard deviation over draws" in second


@pytest.mark.parametrize("draws, words", [(1, "a single draw"), (2, "2 draws"), (3, "3 draws")])
def test_few_draws_are_called_rough(draws, words):
    def told(count):
        made = [Entry(r, "1%", f"{r}{i}", i, 0.5, None) for r in "ab" for i in range(count)]
        return "\n".join(table.lines(table.summarise(made, [("a", "b")], {})))

    assert words in told(draws)
    for many in (4, 5):
        assert "rough" not in told(many) and "single draw" not in told(many)


# What a run took ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "speeds, want", [([9, 50, 70, 60, 200], 65.0), ([9, 50, 60, 200], 60.0), ([9, 50], 50.0)]
)
def test_the_speed_is_the_median_without_the_first_line(tmp_path, speeds, want):
    lines = [{"step": i, "images_per_second": s, "loss": 1} for i, s in enumerate(speeds)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "log.txt").write_text("2026-01-01 00:00:00  run       a\n")
    assert table.cost(tmp_path) == Cost(None, want, 0.0)


def test_one_line_tells_no_speed(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "images_per_second": 9}\n')
    (tmp_path / "log.txt").write_text("2026-01-01 00:00:00  run       a\n")
    assert table.cost(tmp_path).images_per_second is None


def test_a_speed_of_some_lines_is_not_taken_for_that_of_all(tmp_path):
    lines = [documents.line({"step": i, "images_per_second": 10.0 * i}) for i in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    said = []
    assert table.cost(tmp_path, said.append).images_per_second == 35.0
    assert len(said) == 2 and "encoder" in said[0] and "minutes" in said[1]  # there is neither
    (tmp_path / "metrics.jsonl").write_text("".join(lines).replace("30.0", "90.0"))
    said.clear()
    assert table.cost(tmp_path, said.append).images_per_second is None
    assert any("line 3 of" in line.lower() and "it was altered" in line for line in said)
    assert f"the images a second of {tmp_path.name} are not known" in " ".join(said)


@pytest.mark.parametrize("kind", ["directory", "pipe", "loop"])
def test_a_log_that_is_no_file_tells_no_minutes(tmp_path, kind):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "images_per_second": 9}\n')
    log, said = tmp_path / "log.txt", []
    make = {"directory": log.mkdir, "pipe": lambda: os.mkfifo(log)}
    make.get(kind, lambda: log.symlink_to(log))()
    assert table.cost(tmp_path, said.append).minutes is None
    assert f"the minutes that {tmp_path.name} took are not known" in " ".join(said)


def test_minutes_count_every_session_from_its_first_line_to_its_last():
    log = ["2026-01-01 10:00:00  run       a", "2026-01-01 10:07:30  step 1"]
    assert progress.minutes_of(log) == 7.5
    log += ["2026-01-02 00:00:00  run       a", "2026-01-02 01:00:15  step 2"]
    log += ["2026-01-02 23:59:45  run       a", "2026-01-03 00:00:30  done"]
    assert progress.minutes_of(log) == pytest.approx(7.5 + 60.25 + 0.75)
    assert progress.minutes_of([]) is None and progress.minutes_of(log[:1]) == 0


@pytest.mark.parametrize(
    "torn", [b"\0" * 40, b"2026-01-01 10:07:3", b"\xff\xfe 09:00:00\n", b"\n\n"]
)
def test_a_torn_log_costs_its_torn_line_alone(tmp_path, torn):
    """As a full disk or a power cut leaves it, and the session that goes on after it."""
    before = b"2026-01-01 10:00:00  run       a\n2026-01-01 10:07:30  step 1\n"
    after = b"2026-01-02 00:00:00  run       a\n2026-01-02 00:01:00  done\n"
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "images_per_second": 9}\n')
    (tmp_path / "log.txt").write_bytes(before + torn + after)
    assert table.cost(tmp_path).minutes == 8.5


def test_a_run_without_a_log_leaves_the_others_their_minutes(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "images_per_second": 9}\n')
    lost, known = table.cost(tmp_path), table.Cost(10, 5.0, 3.0)
    assert lost.minutes is None
    entries = [table.Entry("a", "1%", f"a{i}", i, 0.5, c) for i, c in enumerate((lost, known))]
    entries.append(table.Entry("b", "1%", "b", 0, 0.5, lost))
    summary = table.summarise(entries, (), {"first": lost})
    assert [row["minutes"] for row in summary["rows"]] == [3.0, None]
    assert summary["minutes"] == 3.0
    shown = {line.split()[0]: line.split()[-1] for line in table.lines(summary)[1].splitlines()}
    assert (shown["a"], shown["b"], shown["first"]) == ("3.0", "-", "-")
