"""Several runs by several taps as one table for each way to judge: what stands in it, how wide."""

from __future__ import annotations

import re

import numpy as np
import pytest
from stages.written import write_images, write_run

from simclr_jax import tables
from simclr_jax.errors import UserError
from simclr_jax.judging import linear_probe, results
from simclr_jax.judging.datasets import Wanted
from simclr_jax.judging.linear_probe import Options
from simclr_jax.judging.settings import Settings

TAPS = ("map1_32", "map2_32", "map4_32", "group4", "h")
SETTINGS = Settings(knn=((3, None),))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of methods with other names, one in a place with a long one."""
    root = tmp_path_factory.mktemp("grid")
    write_images(root / "images.npz")
    fields = {"data__source": "memory", "data__path": str(root / "images.npz")}
    far = root / "a_directory_whose_name_is_longer_than_a_column" / "second_run"
    return [write_run(root / "first", **fields), write_run(far, **fields, seed=1)]


@pytest.fixture(scope="module")
def printed(runs):
    said = []
    options = Options(("knn", "kmeans"), TAPS, settings=SETTINGS, untrained=True, grid=True)
    linear_probe.run(list(map(str, runs)), Wanted(), options, said.append)
    return said


def blocks(printed, way):
    """Return the rows of all tables of one way, joined, by the number of the row."""
    found = [block.splitlines() for block in "\n".join(printed).split("\n\n")]
    found = [block for block in found if block and block[0].startswith(way)]
    assert found
    return found


def row(blocks, number):
    """Return the cells of a row after its label, over all tables."""
    return [cell for block in blocks for cell in re.split(r"  +", block[number].strip())[1:]]


@pytest.mark.parametrize("way, metric", [("knn3", "top-1"), ("kmeans", "NMI")])
def test_the_table_has_the_scores_of_the_results(runs, printed, way, metric):
    tables_of_way = blocks(printed, f"{metric} in %, {way}")
    assert row(tables_of_way, 0) == list(TAPS)
    for place, run in enumerate(runs):
        for tail, before in (("", 0), ("-untrained", 2)):
            number = 1 + 4 * place + before
            kind = "simclr, untrained" if before else "simclr"
            assert all(block[number].startswith(kind) for block in tables_of_way)
            found = [
                results.read(run / "results" / f"{way}-{tap}{tail}.json")["scores"][metric]
                for tap in TAPS
            ]
            assert row(tables_of_way, number) == [f"{100 * one['value']:.1f}" for one in found]
            ends = [f"{100 * s['low']:.1f}-{100 * s['high']:.1f}" for s in found if "low" in s]
            assert row(tables_of_way, number + 1)[: len(ends)] == ends
            assert bool(ends) is (way != "kmeans")
            name = tables_of_way[0][number + 1].split("  ")[1]
            assert f"{run}@7".endswith(name.removeprefix("...").split(" ")[0])
    if way != "kmeans":
        assert all(block[9].startswith("the commonest class") for block in tables_of_way)
        assert row(tables_of_way, 9) == ["25.0"] * len(TAPS)


def test_no_line_of_it_is_longer_than_80(printed):
    start = next(i for i, line in enumerate(printed) if "top-1 in %" in line)
    end = next(i for i, line in enumerate(printed) if line.startswith("below each score"))
    lines = [line for text in printed[start:end] for line in text.splitlines()]
    assert len(lines) > 20 and max(map(len, lines)) <= 80
    assert not [line for line in printed if "permutation" in line]


@pytest.mark.parametrize(
    "tap, message",
    [
        ("map5", 'tap is "map5"'),
        ("map2_0", 'tap is "map2_0"'),
        ("map", 'tap is "map"'),
    ],
)
def test_a_tap_that_a_run_has_not_is_one_line_before_anything_is_done(runs, tap, message):
    said, options = [], Options(("knn",), ("map1", tap), settings=SETTINGS, grid=True)
    with pytest.raises(UserError, match=message) as found:
        linear_probe.run(list(map(str, runs)), Wanted(), options, said.append)
    assert "\n" not in str(found.value) and not said


@pytest.mark.parametrize(
    "differs, fields",
    [
        ("image size", {"image_size": 10}),
        ("held-out images", {"path": "fewer.npz", "eval_split": "few"}),
        ("training images", {"path": "fewer.npz", "split": "few", "eval_split": "test"}),
    ],
)
def test_runs_of_other_images_are_no_rows_of_one_table(runs, tmp_path, differs, fields):
    first = runs[0]
    images = dict(np.load(first.parent / "images.npz"))
    few = {f"few_{kind}": images[f"train_{kind}"][:24] for kind in ("images", "labels")}
    np.savez(tmp_path / "fewer.npz", **images, **few)
    fields = {"source": "memory", "path": first.parent / "images.npz", **fields}
    fields["path"] = str(tmp_path / fields["path"])  # which a whole path stays
    other = write_run(tmp_path / "other", **{f"data__{k}": v for k, v in fields.items()})
    options = Options(("knn",), ("h",), settings=SETTINGS, grid=True)
    for both in ([str(first), str(other)], [str(other), str(first)]):
        said = []
        with pytest.raises(UserError) as found:
            linear_probe.run(both, Wanted(), options, said.append)
        line = str(found.value)
        assert "\n" not in line and not said
        assert line.startswith("--grid: ") and all(run in line for run in both)
        assert re.findall(r"(image size|[a-z-]+ images) \(", line) == [differs]


def test_columns_that_do_not_fit_go_below_beside_the_first():
    header = ["name", "a", "b", "c"]
    rows = [["x", "1" * 10, "2" * 10, "3" * 30]]
    assert tables.folded(header, rows, 80) == tables.table(header, rows)
    first, second, third = tables.folded(header, rows, 20).split("\n\n")
    assert first == tables.table(["name", "a"], [["x", "1" * 10]])
    assert second == tables.table(["name", "b"], [["x", "2" * 10]])
    assert third == tables.table(["name", "c"], [["x", "3" * 30]])  # longer than 20, and not cut
    assert tables.folded(header, rows, 28).count("\n\n") == 1
    assert tables.folded(header, rows, 27).count("\n\n") == 2
