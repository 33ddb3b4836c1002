"""The numbers of a report: read from a run's files, and shown as they are there."""

from __future__ import annotations

import html
import json
import os
import re

import numpy as np
import pytest
from reporting.test_page import Reader

from simclr_jax import documents, recipes
from simclr_jax.judging import results
from simclr_jax.reporting import charts, record, run_sections, score_sections
from simclr_jax.reporting.record import Curve, Record

MINUS = "\u2212"


def write(path, lines, **fields):
    path.mkdir(parents=True, exist_ok=True)
    c = recipes.base()
    for name, value in fields.items():
        c.update_from_flattened_dict({name.replace("__", "."): value})
    documents.write(path / "config.json", c.to_dict() | {"images": ["a", "b"]})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path):
    return record.read(str(path))


LINES = [
    {"step": 0, "knn_accuracy": 0.31},
    {"step": 10, "epoch": 1.6, "loss": 5.25, "images_per_second": 90.0},
    {"step": 20, "epoch": 3.2, "loss": None, "images_per_second": 300.0, "knn_accuracy": 0.62},
    {"step": 30, "epoch": 4.8, "loss": 4.125, "images_per_second": 110.0, "knn_accuracy": 0.58},
]


# A record -----------------------------------------------------------------------------------------


def test_a_curve_has_its_own_steps_and_the_last_value_is_last(tmp_path):
    one = read(write(tmp_path / "run", LINES, train__batch_size=16))
    np.testing.assert_array_equal(one.curves["loss"].steps, [10, 20, 30])
    np.testing.assert_array_equal(one.curves["loss"].values, [5.25, np.nan, 4.125])
    np.testing.assert_array_equal(one.curves["knn_accuracy"].steps, [0, 20, 30])
    assert one.curves["knn_accuracy"].last == 0.58 and one.step == 30
    assert one.recipe["train.batch_size"] == 16 and "images" not in one.recipe


@pytest.mark.parametrize(
    "step, epoch, batch, epochs, examples, total",
    # As many steps as whole batches in all the epochs, and one more.
    [(30, 4.8, 16, 8.0, 100, 51), (7, 0.5, 10, 2.0, 140, 29), (10, 8.0, 24, 1.0, 30, 2)],
)
def test_images_and_length_follow_from_steps_and_epochs(
    tmp_path, step, epoch, batch, epochs, examples, total
):
    lines = [{"step": step, "epoch": epoch}]
    fields = {"train__batch_size": batch, "train__epochs": epochs}
    one = read(write(tmp_path / "run", lines, **fields))
    assert (one.examples, one.total_steps) == (examples, total)
    given = read(write(tmp_path / "run", lines, train__steps=77, **fields))
    assert given.total_steps == 77


def test_before_an_epoch_is_known_so_is_no_length(tmp_path):
    one = read(write(tmp_path / "run", [{"step": 0, "epoch": 0.0}], train__epochs=8.0))
    assert (one.examples, one.total_steps) == (0, 0)


def test_results_come_from_the_oldest_to_the_newest(tmp_path):
    run = write(tmp_path / "run", LINES)
    for age, name in ((30, "b"), (10, "c"), (20, "a")):
        arrays = {"labels": [age], "predictions": [0]}
        results.write(run, {"name": name, "scores": {}, "protocol": {}}, arrays)
        os.utime(run / "results" / f"{name}.json", (1e9 - age, 1e9 - age))
    documents.write(run / "results" / "summary.json", {"scores": {}})
    one = read(run)
    assert [found["name"] for found in one.results] == ["b", "a", "c"]
    assert {name: int(x["labels"][0]) for name, x in one.outputs.items()} == {
        "a": 20,
        "b": 30,
        "c": 10,
    }
    assert one.summary == {"scores": {}}


def test_a_heartbeat_is_fresh_for_two_minutes(tmp_path, monkeypatch):
    run = write(tmp_path / "run", LINES)
    monkeypatch.setattr(record.time, "time", lambda: 5000.0)
    for age, alive in ((0, True), (119, True), (121, False)):
        documents.write(run / "lock.json", {"heartbeat": 5000.0 - age})
        assert read(run).alive is alive
    (run / "lock.json").unlink()
    assert read(run).alive is False


def test_the_newest_devices_are_shown_and_all_checkpoints(tmp_path):
    run = write(tmp_path / "run", LINES)
    log = ["1 x cpu", "8 x TPU v5"]
    (run / "log.txt").write_text(
        "".join(f"2026-01-01 00:00:00  devices   {of}, computing in float32\n" for of in log)
    )
    for step in (20, 5, 100):
        (run / "checkpoints" / str(step)).mkdir(parents=True)
    (run / "checkpoints" / "30.tmp").mkdir()
    one = read(run)
    assert one.devices == "8 x TPU v5" and one.saved == [5, 20, 100]
    assert record.read(f"{run}@20").at == 20


# The head of the page -----------------------------------------------------------------------------


def test_tiles_show_the_last_values_and_the_median_speed(tmp_path):
    one = read(write(tmp_path / "run", LINES, train__batch_size=16, train__epochs=8.0))
    shown = Reader(str(run_sections.head([one], "now"))).text
    tiles = dict(zip(shown[1:], shown, strict=False))
    assert tiles["loss"] == "4.125" and tiles["kNN, held out"] == "58.0%"
    assert tiles["epochs"] == "4.8" and tiles["images/s, median"] == "110"
    (sentence,) = [said for said in shown if "pretraining" in said]
    assert "100 images" in sentence and "step 30 of 51" in sentence


@pytest.mark.parametrize("last, said", [(50, "Not finished"), (51, "Finished: step 51 of 51.")])
def test_a_run_is_finished_at_its_last_step(tmp_path, last, said):
    lines = [{"step": last, "epoch": last * 16 / 100, "loss": 1.0}]
    one = read(write(tmp_path / "run", lines, train__batch_size=16, train__epochs=8.0))
    assert run_sections.state(one).startswith(said)


# Curves -------------------------------------------------------------------------------------------


def test_a_chart_says_where_each_line_ends(tmp_path):
    one = read(write(tmp_path / "run", LINES, train__batch_size=16, train__epochs=8.0))
    labels = [
        v for n, v in Reader(str(run_sections.curves([one])[1])).attributes if n == "aria-label"
    ]
    assert "Loss over steps: loss ends at 4.125" in labels
    assert "Accuracy on held-out images over steps: kNN ends at 58.0 %" in labels
    assert "Images per second over steps: images/s ends at 110" in labels


def test_runs_of_one_chart_keep_their_own_numbers(tmp_path):
    runs = []
    for name, loss in (("one", 3.5), ("two", 2.25)):
        lines = [{"step": 10, "epoch": 1.0, "loss": 9.0}, {"step": 20, "epoch": 2.0, "loss": loss}]
        runs.append(read(write(tmp_path / name, lines, train__batch_size=16)))
    page = str(run_sections.curves(runs)[1])
    assert "Loss over steps: one ends at 3.5; two ends at 2.25" in html.unescape(page)
    titles = re.findall(r"<title>([^<]+)</title>", page)
    assert {"one, 20: 3.5", "two, 20: 2.25", "one, 10: 9"} <= set(titles)


def test_the_chance_is_marked_where_all_runs_share_it(tmp_path):
    runs = [
        read(write(tmp_path / str(batch), LINES, train__batch_size=batch)) for batch in (64, 64, 32)
    ]
    assert run_sections._chance(runs[:2])[0] == pytest.approx(2 * np.log(127))
    assert run_sections._chance(runs) is None


def curve(length, seed=0):
    values = np.random.RandomState(seed).rand(length)
    return Curve(np.arange(length, dtype=float), values)


def test_more_than_240_points_are_averaged_and_no_fewer():
    for length in (240, 241):
        x, mean, low, high = charts.thinned(*(curve(length).steps, curve(length).values), 240)
        assert len(x) == 240
        assert mean.mean() == pytest.approx(curve(length).values.mean(), abs=2e-3)
        assert ((low < high).sum() > 0) == (length > 240)


# Scores -------------------------------------------------------------------------------------------


def cells(page):
    """Return the rows of all tables, each a list of what stands in its cells."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", str(page), re.S)
    return [
        [
            html.unescape(re.sub(r"<[^>]+>", "", cell)).strip()
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)
        ]
        for row in rows
    ]


def interval(value, key="value"):
    return {key: value, "low": value - 0.031, "high": value + 0.042}


def shown(value):
    return f"{100 * value:.1f} ({100 * value - 3.1:.1f} to {100 * value + 4.2:.1f})"


def scored(tmp_path, **more):
    run = write(tmp_path / "run", LINES)
    about = {"checkpoint": {"step": 30}, "protocol": {"folds": 5, "penalty": 0.0123456789}}
    about |= {"data": {"name": "digits", "test": {"split": "dev", "images": 1234}}}
    made = {
        "lbfgs-h": ("lbfgs", "h", {"top-5": interval(0.876), "top-1": interval(0.543)}),
        "knn-z": ("knn", "z", {"top-1": interval(0.432), "mean per class": interval(0.321)}),
    }
    for age, (name, (solver, tap, scores)) in enumerate(made.items()):
        result = {"name": name, "solver": solver, "tap": tap, "scores": scores, **about, **more}
        results.write(run, result, {"labels": [0], "predictions": [0]})
        os.utime(run / "results" / f"{name}.json", (1e9 + age, 1e9 + age))
    scores = {
        thing: {
            "kNN": interval(base, "accuracy"),
            "probe, all labels": interval(base + 0.1, "accuracy"),
        }
        for thing, base in (
            ("raw pixels", 0.41),
            ("untrained encoder", 0.32),
            ("pretrained encoder", 0.63),
        )
    }
    summary = {"protocol": {"step": 30, "knn": {"k": 7}}, "scores": scores}
    documents.write(run / "results" / "summary.json", summary)
    return read(run)


def test_each_score_stands_in_its_row_and_column(tmp_path):
    rows = cells(score_sections.results([scored(tmp_path)])[1])
    header = [
        "result",
        "solver",
        "tap",
        "data",
        "images",
        "step",
        "top-1",
        "mean per class",
        "top-5",
    ]
    assert header in rows
    at = ["digits dev", "1,234", "30"]
    assert ["lbfgs-h", "lbfgs", "h", *at, shown(0.543), "", shown(0.876)] in rows
    assert ["knn-z", "knn", "z", *at, shown(0.432), shown(0.321), ""] in rows
    assert ["penalty", "0.0123457"] in rows and ["folds", "5"] in rows


def test_the_comparison_at_the_end_stands_row_by_row(tmp_path):
    rows = cells(score_sections.results([scored(tmp_path)])[1])
    assert ["accuracy on held-out images, %", "kNN", "probe, all labels"] in rows
    for thing, base in (
        ("raw pixels", 0.41),
        ("untrained encoder", 0.32),
        ("pretrained encoder", 0.63),
    ):
        assert [thing, shown(base), shown(base + 0.1)] in rows
    assert ["knn", "k 7"] in rows


def test_published_numbers_stand_with_their_epochs_and_batch(tmp_path):
    one = scored(tmp_path, data={"name": "tfds:cifar10", "test": {"split": "test", "images": 10}})
    rows = cells(score_sections.results([one])[1])
    lightly = ["ResNet-18", "kNN, k = 200", "Lightly's benchmarks", "200", "512", "84.8"]
    assert ["network", "judged by", "source", "epochs", "batch", "top-1"] in rows
    assert lightly in rows and sum("ResNet" in row[0] for row in rows if row) == 5


def test_an_interval_bar_runs_from_low_to_high():
    svg = str(charts.interval_bar(0.5, 0.2, 0.9, 3))
    start, end = map(float, re.search(r"M([\d.]+),8H([\d.]+)", svg).groups())
    assert (start, end) == (
        pytest.approx(4 + 88 * 0.2, abs=0.06),
        pytest.approx(4 + 88 * 0.9, abs=0.06),
    )
    assert "50.0 %, 95 % interval 20.0 to 90.0 %" in svg


@pytest.mark.parametrize("same, tested", [(True, True), (False, False)])
def test_runs_are_compared_only_on_the_same_images(tmp_path, same, tested):
    labels = np.arange(300) % 3
    records: list[Record] = []
    for i, name in enumerate(("one", "two")):
        run = write(tmp_path / name, LINES)
        guesses = np.where(np.arange(300) % 10 < (7, 5)[i], labels, (labels + 1) % 3)
        value = float(np.mean(guesses == labels))
        test = {"split": "test", "fingerprint": "x" if same else name, "images": 300}
        about = {"name": "lbfgs-h", "solver": "lbfgs", "tap": "h", "protocol": {}}
        about |= {"data": {"name": "d", "test": test}, "scores": {"top-1": {"value": value}}}
        arrays = {"labels": labels, "predictions": guesses, "examples": np.arange(300)}
        results.write(run, about, arrays)
        records.append(read(run))
    page = score_sections.results(records)[1]
    found = [row for row in cells(page) if row[1:2] == [f"one {MINUS} two"]]
    assert bool(found) == tested
    if tested:
        assert found[0][:4] == ["lbfgs-h", f"one {MINUS} two", "top-1", "+20.0"]
        assert float(found[0][4]) < 1e-3
    else:
        assert "scored on different images" in str(page)
