"""A pipeline of which a file is damaged, continued by the same command."""

from __future__ import annotations

import json
import shutil

import pytest
from pipeline.short import result, runs_of

from simclr_jax import documents
from simclr_jax.errors import UserError
from simclr_jax.pipeline import run as pipeline
from simclr_jax.train import manifest


def again(workdir, images, capsys):
    """Give the command of a pipeline again, and return what it says, or raises."""
    capsys.readouterr()
    try:
        assert pipeline.run(runs_of(images), str(workdir)) == 0
    except UserError as error:
        return str(error)
    return capsys.readouterr().out


def test_the_summary_of_another_run_is_not_taken_for_that_of_this_one(
    piped, images, tmp_path, capsys
):
    moved = shutil.copytree(piped, tmp_path / "moved")
    shutil.copy(piped / "second/results/summary.json", moved / "first/results/summary.json")
    said = again(moved, images, capsys)
    assert "first/results/summary.json cannot be used (it is of other weights" in said


def test_a_damaged_summary_is_said_before_anything_is_trained(
    piped, images, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(pipeline.runs, "run", lambda *_: pytest.fail("a run was made"))
    moved = shutil.copytree(piped, tmp_path / "moved")
    shutil.rmtree(moved / "student")
    (moved / "second" / "results" / "summary.json").write_text("{")
    assert "second/results/summary.json cannot be used" in again(moved, images, capsys)


def test_nothing_starts_from_an_older_checkpoint_of_a_run_that_has_ended(
    piped, images, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(pipeline.runs, "run", lambda *_: pytest.fail("a run was made"))
    moved = shutil.copytree(piped, tmp_path / "moved")
    shutil.copytree(moved / "first/checkpoints/4", moved / "first/checkpoints/2")
    edit_step(moved / "first/checkpoints/2/manifest.json", 2)
    shutil.rmtree(moved / "first/checkpoints/4")
    (probe,) = (moved / "first/results").glob("seen-*.json")
    kept = probe.read_bytes()
    probe.unlink()
    said = again(moved, images, capsys)  # as features of which a probe is made
    assert "first had saved step 4, and step 2 is the newest that is whole" in said
    probe.write_bytes(kept)
    shutil.rmtree(moved / "student")  # as a start
    assert "first had saved step 4, and step 2 is the newest" in again(moved, images, capsys)


def test_a_run_that_has_begun_needs_its_start_no_more(piped, images, tmp_path, monkeypatch):
    moved = shutil.copytree(piped, tmp_path / "moved")
    (moved / "student" / "results" / "summary.json").unlink()
    shutil.rmtree(moved / "first" / "checkpoints")
    shutil.rmtree(moved / "second" / "checkpoints" / "4")
    monkeypatch.setattr(pipeline.runs, "run", lambda *_: 75)
    assert pipeline.run(runs_of(images), str(moved)) == 75


def edit_step(path, step):
    """Make a manifest that of another step."""
    found = json.loads(path.read_text()) | {"step": step}
    found.pop("digest")
    path.write_text(json.dumps({"digest": manifest._digest(found), **found}))


def test_what_a_run_took_stands_whatever_becomes_of_its_log(piped, images, tmp_path, capsys):
    moved = shutil.copytree(piped, tmp_path / "moved")
    (moved / "first" / "log.txt").write_text("2026-01-01 00:00:00  a\n2026-02-01 00:00:00  b\n")
    (moved / "second" / "log.txt").unlink()
    (moved / "student" / "log.txt").unlink()
    (moved / "student" / "log.txt").mkdir()
    again(moved, images, capsys)
    assert result(moved) == result(piped)


def test_numbers_that_are_gone_from_the_table_are_said(piped, images, tmp_path, capsys):
    moved = shutil.copytree(piped, tmp_path / "moved")
    (moved / "student" / "metrics.jsonl").unlink()
    shutil.rmtree(moved / "second" / "checkpoints")
    said = again(moved, images, capsys)
    assert "note      student: " in said and "metrics.jsonl is gone" in said
    assert "note      the size of the encoder of second is not known: " in said


def test_a_table_that_cannot_be_written_is_one_line(piped, images, tmp_path, capsys):
    moved = shutil.copytree(piped, tmp_path / "moved")
    shutil.rmtree(moved / "results")
    (moved / "results").write_text("")
    assert "results/pipeline.json cannot be written" in again(moved, images, capsys)


def test_a_summary_without_the_accuracy_of_the_table_is_one_line(piped, images, tmp_path, capsys):
    """As runs wrote it that did not say of which weights it is."""
    moved = shutil.copytree(piped, tmp_path / "moved")
    scores = {"raw pixels": {"kNN": {"accuracy": 0.5}}}
    documents.write(moved / "second" / "results" / "summary.json", {"scores": scores})
    assert "holds of second has no accuracy, which the table needs" in again(moved, images, capsys)
