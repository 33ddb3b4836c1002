"""The report of a run whose files are damaged, missing, or a stranger's: what stands is shown."""

from __future__ import annotations

import html
import json
import os
import re
import time

import numpy as np
import pytest
from reporting import damages
from reporting.test_page import Reader
from reporting.test_report import healthy, write_record, written
from tensorboardX import SummaryWriter

from simclr_jax import documents
from simclr_jax.errors import UserError
from simclr_jax.judging import results
from simclr_jax.reporting import findings, record, report
from simclr_jax.reporting.curves import Known
from simclr_jax.train import mending

SCORES = {"raw pixels": {"kNN": {"accuracy": 0.3, "low": 0.2, "high": 0.4}}}
SUMMARY = {"scores": SCORES, "protocol": {}}
EVIL = "<script>alert(1)</script>'\"&\x1b[2J"


def problems(path):
    return list(record.read(str(path)).damaged)


@pytest.fixture
def run(tmp_path):
    """A run with a file of each kind."""
    path = write_record(tmp_path / "run", healthy())
    arrays = {"labels": np.arange(4) % 2, "predictions": np.zeros(4, int), "examples": np.arange(4)}
    score = {"top-1": {"value": 0.5, "low": 0.4, "high": 0.6}}
    results.write(path, {"name": "knn-h", "scores": score, "protocol": {"k": 3}}, arrays)
    documents.write(path / "results" / "summary.json", SUMMARY)
    documents.write(path / "devices.json", {"devices": "8 x TPU v5"})
    damages.Image.new("RGB", (9, 9)).save(path / "views.png")
    (path / "log.txt").write_text("2026-01-01 00:00:00  devices   1 x cpu, computing in float32\n")
    (path / "checkpoints" / "100").mkdir(parents=True)
    (path / "lock.json").write_text('{"heartbeat": 0}')
    line = documents.line({"image": "a.png", "reason": "empty"})
    (path / "unreadable_train.jsonl").write_text(line)
    return path


FILES = (
    "config.json",
    "metrics.jsonl",
    "results/knn-h.json",
    "results/knn-h.npz",
    "results/summary.json",
    "devices.json",
    "views.png",
    "unreadable_train.jsonl",
)
SHAPES = (
    b"",
    b"[]",
    b'"text"',
    b"null",
    b"{}",
    b"\xff\xfe\0",
    b"\0" * 64,
    b'{"a": 1e400}',
    b"[" * 999,
)


@pytest.mark.parametrize("file", [*FILES, "log.txt", "lock.json"])
def test_each_file_may_be_anything_and_the_rest_stands(run, file):
    whole = damages.curves(run.parent).numbers
    assert whole["loss at 100"] and whole["devices"] == "8 x TPU v5" and whole["unreadable"] == 1
    path = run / file

    def looked_at(kind):
        said = problems(run)
        found = damages.curves(run.parent).numbers
        for name, value in found.items():
            assert value == whole[name] or value in (None, "", 0, "[]"), (kind, name)
        # Half a line at the end of a list is one that was being written.
        if file in FILES and found != whole and file != "unreadable_train.jsonl":
            assert any(file in sentence for sentence in said), (kind, said)
        assert all(sentence.isprintable() for sentence in said)

    for shape in SHAPES:
        path.write_bytes(shape)
        looked_at(shape)
    for kind, make in (
        ("directory", path.mkdir),
        ("pipe", lambda: os.mkfifo(path)),
        ("loop", lambda: path.symlink_to(path)),
        ("missing", lambda: None),
    ):
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        make()
        if kind == "missing" and file != "results/knn-h.npz":
            continue  # a run need not have it
        looked_at(kind)


def test_what_is_left_out_stands_in_the_page(run):
    (run / "results" / "knn-h.json").write_text("[]")
    (run / "views.png").write_bytes(b"GIF89a")
    said = []
    report.run([str(run)], None, said.append)
    page = (run / "report.html").read_text()
    problems = [html.unescape(text) for text in re.findall(r'class="problem">([^<]*)<', page)]
    assert len(problems) == 2 and "There is no views.png" in page
    for file, text in zip(("views.png", "knn-h.json"), sorted(problems, reverse=True), strict=True):
        assert file in text and any(text in line for line in said)
    assert "At the end of the run" in page and "8 x TPU v5" in page


# Metrics ------------------------------------------------------------------------------------------


def test_a_table_that_an_ended_run_must_have_is_missed_and_no_other(tmp_path):
    run = write_record(tmp_path / "run", healthy())
    assert problems(run) == []  # it may be at work on its last steps
    (run / "checkpoints" / "100").mkdir(parents=True)
    said = f"{run}/results/summary.json is missing: restore it, or run the command again."
    assert problems(run) == [said]
    (run / "lock.json").write_text(json.dumps({"heartbeat": time.time()}))
    assert problems(run) == []
    (run / "lock.json").unlink()
    without_labels = [line for line in healthy() if "knn_accuracy" not in line]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in without_labels))
    assert problems(run) == []
    write_record(run, healthy(), eval__compare=False)
    assert problems(run) == []
    (run / "checkpoints" / "100").rmdir()
    (run / "checkpoints" / "80").mkdir()
    write_record(run, healthy())
    assert problems(run) == []


def sealed(path, lines):
    """Write lines as runs do."""
    (path / "metrics.jsonl").write_text("".join(map(documents.line, lines)))


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"step": 101, "loss": 1e400}', "1e400 is out of range"),
        ('{"step": 101, "loss": {"a": 1}}', "Expected `float | null`, got `object`"),
        ('{"step": 101, "loss": "3"}', "got `str`"),
        ('{"step": 101, "loss": true}', "got `bool`"),
        ('{"step": 1.5, "loss": 3}', "its step is 1.5"),
        ('{"step": -1, "loss": 3}', "its step is -1"),
        ('{"step": 99999999999999999, "loss": 3}', "its step is 1e+17"),
        ('{"step": null, "loss": 3}', "it has no step"),
        ('{"loss": 3}', "it has no step"),
        ("[101, 3]", "got `array`"),
        ("", "not JSON"),
        ("\0\0\0", "not JSON"),
        ('{"step": 100, "loss": 3}', "it is another of step 100"),
        (documents.line({"step": 101, "loss": 3.0}).replace("3.0", "4.0"), "it was altered"),
    ],
)
def test_a_line_that_is_none_is_left_out(tmp_path, line, said):
    run = write_record(tmp_path / "run", healthy())
    whole = record.read(str(run)).curves
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line.rstrip("\n") + "\n")
    (text,) = problems(run)
    number = len(healthy()) + 1
    assert text.startswith(f"Line {number} of {run}/metrics.jsonl is left out: ") and said in text
    found = record.read(str(run)).curves
    for name, curve in whole.items():
        np.testing.assert_array_equal(found[name].values, curve.values)


def test_a_line_without_a_checksum_after_others_with_one_is_not_believed(tmp_path):
    run = write_record(tmp_path / "run", healthy(10))
    with (run / "metrics.jsonl").open("a") as file:  # a run that a later version goes on with
        file.write(documents.line({"step": 15, "loss": 7.0}))
        file.write('{"step": 20, "loss": 1.0}\n{"step": 25, "loss": 2.0}\n')
    assert record.read(str(run)).curves["loss"].last == 7.0
    (text, *_) = problems(run)
    assert text.startswith("2 lines of") and "it has no checksum, and lines before it have" in text


def test_the_checkpoint_knows_which_lines_there_were(tmp_path):
    run = write_record(tmp_path / "run", [])
    lines = healthy()
    texts = [documents.line(line) for line in lines]
    steps = [line["step"] for line in lines]
    known = Known(100, steps, mending.checksum(texts))
    file = record.epath.Path(run / "metrics.jsonl")

    def read(some):
        file.write_text("".join(some))
        return record.curves.read(file, known)

    found, wrong = read(texts)
    assert not wrong and found["loss"].last == lines[-2]["loss"]
    # Whatever happens after it was saved is no concern of its.
    assert not read([*texts, documents.line({"step": 101, "loss": 1.0})])[1]
    found, wrong = read([*texts[:3], *texts[5:]])
    assert wrong == [f"2 lines of metrics are lost, of step {steps[3]}, {steps[4]}."]
    assert len(found["loss"].steps) == 18
    found, wrong = read(texts[:-1])
    assert wrong == ["1 lines of metrics are lost, of step 100."]
    assert "lines of metrics are lost" in read([])[1][0]
    # Lines of another run, each whole in itself.
    others = [documents.line({**line, "lr": 0.2} if "lr" in line else line) for line in lines]
    found, wrong = read(others)
    assert not found and "has other numbers than when step 100 was saved" in wrong[0]
    # What was put back after a loss says so in its lines.
    found, wrong = read([*texts[:-1], documents.line({**lines[-1], mending.REPAIRED: 1})])
    assert found["loss"].last and wrong == [
        "1 lines of metrics are of TensorBoard's events, in float32."
    ]
    assert Known.of(3, {"lines": "x"}) is Known.of(3, None) is Known.of(3, {}) is None


def test_lines_of_another_run_are_not_believed_where_some_are_lost(tmp_path):
    """No checksum is left to tell them; TensorBoard's events are."""
    run, lines = write_record(tmp_path / "run", []), healthy()
    texts, steps = [documents.line(line) for line in lines], [line["step"] for line in lines]
    known, file = Known(100, steps, mending.checksum(texts)), record.epath.Path(run)
    with SummaryWriter(str(run / "tensorboard")) as writer:
        for line in lines:
            if "loss" in line:
                writer.add_scalar("loss", line["loss"], line["step"])
    (run / "metrics.jsonl").write_text("".join(texts[2:]))
    found, wrong = record.curves.read(file / "metrics.jsonl", known)
    assert found["loss"].last == lines[-2]["loss"] and "2 lines of metrics are lost" in wrong[0]
    others = [documents.line(line | {"loss": 9.0} if "loss" in line else line) for line in lines]
    (run / "metrics.jsonl").write_text("".join(others[2:]))
    found, wrong = record.curves.read(file / "metrics.jsonl", known)
    assert not found and "has other numbers than TensorBoard was given" in wrong[0]


def test_arrays_whose_result_is_missing_are_said(run):
    (run / "results" / "knn-h.json").unlink()
    (text,) = problems(run)
    assert text == f"{run}/results/knn-h.json is missing, and knn-h.npz is there: restore it."


def test_lines_that_an_older_run_misses_are_noticed_where_they_can_be(tmp_path):
    whole = healthy()
    run = write_record(tmp_path / "run", whole, log__every_steps=5)
    assert problems(run) == []

    def without(*rows):
        sealed(run, [line for i, line in enumerate(whole) if i not in rows])
        return " ".join(problems(run))

    loss = [i for i, line in enumerate(whole) if "loss" in line]
    assert "There is no loss between steps 20 and 30" in without(loss[4])
    assert "There is no loss between steps 20 and 40" in without(*loss[4:7])
    assert "There is no loss between steps 0 and 10" in without(loss[0])
    knn = [i for i, line in enumerate(whole) if "knn_accuracy" in line]
    assert "There is no knn_accuracy between steps 20 and 60" in without(knn[2])
    assert "There is no knn_accuracy after step 80" in without(knn[-1])
    (run / "checkpoints" / "100").mkdir(parents=True)
    (run / "results").mkdir()
    documents.write(run / "results" / "summary.json", SUMMARY)
    assert "no line of training after step 90" in without(*range(loss[-2], len(whole)))
    assert problems(run) and without() == ""
    (run / "metrics.jsonl").write_bytes(b"")
    assert "no line of training after step 0" in problems(run)[0]
    sealed(run, [*whole[5:], *whole[:5]])
    assert "not in their order" in problems(run)[0]
    assert list(record.read(str(run)).curves["loss"].steps) == list(range(5, 101, 5))


@pytest.mark.parametrize("value", [1e308, -1e308, 5e-324, 1e-300, 1e149, 0, None])
@pytest.mark.parametrize("metric", ["loss", "epoch", "images_per_second", "knn_accuracy", "other"])
def test_any_number_of_json_can_be_drawn(tmp_path, metric, value):
    lines = healthy()
    for at in (3, 7, len(lines) - 2, len(lines) - 1):
        lines[at] = lines[at] | {metric: value}
    assert "<svg" in written(write_record(tmp_path / "run", lines))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "metric", ["knn_accuracy", "probe_accuracy", "accuracy", "images_per_second", "input_wait"]
)
def test_a_metric_may_have_no_number_at_all(tmp_path, metric):
    run = write_record(tmp_path / "run", [{**line, metric: None} for line in healthy()])
    said = [finding.text for finding in findings.findings(record.read(str(run)))]
    assert said == [f"Not every value of {metric} is a finite number."]
    assert ">nan<" not in written(run)


# Strangers ----------------------------------------------------------------------------------------


def test_every_string_of_a_run_is_text(tmp_path):
    run = write_record(
        tmp_path / "<b>run", [{**line, EVIL: 1.0} for line in healthy()], data__path=EVIL
    )
    name = "<i>x&"
    score = {EVIL: {"value": 0.5, "low": 0.4, "high": 0.6}}
    about = {
        "name": name,
        "solver": EVIL,
        "tap": EVIL,
        "metric": EVIL,
        "published": {EVIL: 0.5},
        "data": {"name": EVIL, "test": {"split": EVIL, "images": 3}, "class_names": [EVIL]},
        "protocol": {EVIL: [EVIL, {EVIL: EVIL}]},
        "scores": score,
    }
    (run / "results").mkdir()
    documents.write(run / "results" / f"{name}.json", about)
    (run / "results" / f"{name[:-1]}.npz").write_bytes(b"")
    summary = {"scores": {EVIL: {EVIL: {"accuracy": 0.5, "low": 0.4, "high": 0.6}}}}
    documents.write(run / "results" / "summary.json", summary | {"protocol": {EVIL: EVIL}})
    documents.write(run / "devices.json", {"devices": EVIL})
    (run / "unreadable_train.jsonl").write_text(json.dumps({"image": EVIL, "reason": EVIL}) + "\n")
    (
        run
        / "results"
        / "half\ud800.json".encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    ).write_text(EVIL)
    said = []
    report.run([str(run)], None, said.append)
    read = Reader((run / "report.html").read_text())
    assert not {"script", "i", "b"} & ({*read.tags} - {"b"}) and "script" not in read.tags
    text = "".join(read.text)
    assert text.count("<script>alert(1)</script>") > 12 and name in text and "<b>run" in text
    assert all(not attribute.startswith("on") for attribute, _ in read.attributes)
    assert all(line.isprintable() for line in said)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "x://y",
        "file:///tmp",
        "a\0b",
        "~nobody-there/run",
        "9" * 400,
        "RUN@" + "9" * 400,
        "RUN@" + "9" * 5000,
        "RUN@٣",
        "\x1b[2J\n",
    ],
)
def test_a_path_that_is_no_run_is_one_line(tmp_path, path):
    run = write_record(tmp_path / "run", healthy())
    for read in (lambda p: report.run([p]), record.read, damages.saved.read):
        with pytest.raises(UserError) as error:
            read(path.replace("RUN", str(run)))
        assert len(str(error.value)) < 6000
    if path != "\x1b[2J\n":  # which a file may be called
        with pytest.raises(UserError):
            report.run([str(run)], path.replace("RUN", "nowhere/run") or "nowhere/x")


@pytest.mark.slow
def test_no_damage_is_silent_and_none_ends_in_a_traceback(tmp_path):
    root = damages.make(tmp_path / "first")
    found = damages.survey(root, 24, 0)
    assert not [row for row in found if row[3] in damages.BAD]
    assert {row[3] for row in found} == {"same", "one line", "said"}
