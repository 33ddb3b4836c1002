"""What of a run's workdir was removed, or left half written by a kill, is said or swept away."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import bucket
import numpy as np
import pytest
from etils import epath
from train import tiny

from simclr_jax import buckets, documents, files
from simclr_jax.errors import Unreachable, UserError
from simclr_jax.train import loop
from simclr_jax.train.profile import Profiler
from simclr_jax.train.workdir import open_workdir

RECORD = tiny.recipe().to_dict() | {"images": ["some", "others"]}


@pytest.fixture(params=["disk", "bucket"])
def workdir(request, tmp_path):
    if request.param == "disk":
        yield epath.Path(tmp_path) / "run"
        return
    with bucket.at(tmp_path):
        yield epath.Path("gs://fake/run")


def go_on(workdir, *steps, resume="auto"):
    """Open a workdir as a run does, save some steps, and return what there was."""
    with open_workdir(str(workdir), RECORD, resume, keep=9, keep_period=None) as opened:
        found = opened.checkpoints.restore({"step": np.int32(0)})
        for step in steps:
            opened.checkpoints.save(step, {"step": np.int32(step)})
        opened.checkpoints.wait()
        return SimpleNamespace(step=found and found[0], lost=opened.lost)


def remove(path):
    """Remove a directory, also of a bucket, which has none."""
    for file in buckets.below(path):
        file.unlink()
    if buckets.is_local(path):
        path.rmtree()


def test_a_run_knows_that_a_newer_step_was_saved_than_the_one_it_goes_on_from(workdir):
    go_on(workdir, 2, 4, 6)
    assert go_on(workdir).lost == 0
    remove(workdir / "checkpoints" / "6")
    found = go_on(workdir)
    assert (found.step, found.lost) == (4, 6)
    assert go_on(workdir, 5).lost == 6  # until a step is saved
    assert go_on(workdir).lost == 0
    (workdir / "saved.json").unlink()  # as killed before it was written, or of an earlier version
    assert go_on(workdir).lost == 0
    remove(workdir / "checkpoints" / "5")
    assert go_on(workdir).lost == 5


def test_what_was_set_aside_is_not_lost(workdir):
    go_on(workdir, 2, 4)
    (workdir / "checkpoints" / "4" / "manifest.json").write_text("{}")
    assert go_on(workdir).step == 2
    found = go_on(workdir)
    assert (found.step, found.lost) == (2, 0)


def test_a_run_all_of_whose_checkpoints_are_gone_is_not_begun_anew_over_what_is_left(workdir):
    go_on(workdir, 2, 4)
    (workdir / "metrics.jsonl").write_text("lines")
    remove(workdir / "checkpoints")
    for resume in ("auto", "must", "never"):
        with pytest.raises(UserError) as raised:
            go_on(workdir, resume=resume)
        assert "\n" not in str(raised.value)
        if resume == "auto":
            assert "had saved step 4, and no checkpoint of it any more: bring" in str(raised.value)
    assert (workdir / "metrics.jsonl").read_text() == "lines"
    assert not (workdir / "lock.json").exists()
    # As the line says:
    (workdir / "saved.json").unlink()
    (workdir / "metrics.jsonl").unlink()
    assert go_on(workdir).step is None


def test_nor_is_one_of_an_earlier_version_which_kept_no_account_of_its_saves(workdir):
    go_on(workdir, 2)
    remove(workdir / "checkpoints")
    (workdir / "saved.json").unlink()
    assert go_on(workdir).step is None  # nothing tells of a save
    every = RECORD["checkpoint"]["every_steps"]
    line = documents.line({"step": 2 * every, "loss": 1.0})
    (workdir / "metrics.jsonl").write_text(line)
    assert go_on(workdir).step is None  # it may have been killed in its first save
    (workdir / "metrics.jsonl").write_text(line + documents.line({"step": 2 * every + 1}))
    with pytest.raises(UserError, match="had saved steps, and no checkpoint of it any more"):
        go_on(workdir)
    (workdir / "metrics.jsonl").unlink()
    (workdir / "results").mkdir(exist_ok=True)
    (workdir / "results" / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="had saved steps, and no checkpoint of it any more"):
        go_on(workdir)


def unseal(workdir):
    """As a copy that left all files of JSON out."""
    for step in ("2", "4"):
        (workdir / "checkpoints" / step / "manifest.json").unlink()


def leave_half_a_save(workdir):
    for step in ("2", "4"):
        remove(workdir / "checkpoints" / step)
    (workdir / "checkpoints" / "6.orbax-checkpoint-tmp").mkdir(parents=True, exist_ok=True)
    (workdir / "checkpoints" / "6.orbax-checkpoint-tmp" / "_METADATA").write_text("half")


LOSSES = {
    "their manifests": (unseal, "bring .*checkpoints back, each with its manifest.json, or"),
    "all but a save that was under way": (leave_half_a_save, "bring .*checkpoints back"),
}


@pytest.mark.parametrize("account", ["whole", "damaged"])
@pytest.mark.parametrize("loss", LOSSES)
def test_nor_is_one_whose_checkpoints_have_lost_what_made_them_checkpoints(workdir, loss, account):
    go_on(workdir, 2, 4)
    (workdir / "metrics.jsonl").write_text("lines")
    if account == "damaged":
        (workdir / "saved.json").write_text("{")
    lose, remedy = LOSSES[loss]
    lose(workdir)
    before = {path: path.read_bytes() for path in buckets.below(workdir / "checkpoints")}
    step = "step 4" if account == "whole" else "steps"
    with pytest.raises(UserError, match=f"had saved {step}, and no checkpoint of it.*{remedy}"):
        go_on(workdir)
    assert (workdir / "metrics.jsonl").read_text() == "lines"
    now = {path: path.read_bytes() for path in buckets.below(workdir / "checkpoints")}
    assert now == before and before


def test_nor_is_one_whose_checkpoints_vanish_once_it_is_open(tmp_path):
    stage, mesh = tiny.make_stage(tiny.recipe(), 1)
    workdir = epath.Path(tmp_path)
    go_on(workdir, 2)
    with (
        pytest.raises(UserError, match="had saved step 2, and no checkpoint of it any more"),
        open_workdir(str(workdir), RECORD, "auto", keep=9, keep_period=None) as opened,
    ):
        (workdir / "metrics.jsonl").write_text("lines")
        remove(workdir / "checkpoints")
        profiler = Profiler("", workdir / "profile", tiny.STEPS)
        loop.train(stage, tiny.timetable(tiny.recipe()), mesh, opened, profiler)
    assert (workdir / "metrics.jsonl").read_text() == "lines"


def test_arrays_of_a_step_that_lost_its_manifest_are_kept_and_the_step_is_said_to_be_lost(workdir):
    go_on(workdir, 2, 4)
    (workdir / "checkpoints" / "4" / "manifest.json").unlink()
    there = {path.name for path in buckets.below(workdir / "checkpoints" / "4")}
    found = go_on(workdir)
    assert (found.step, found.lost) == (2, 4)
    kept = {path.name for path in buckets.below(workdir / "checkpoints" / "4.damaged")}
    assert kept == there and "manifest.json" not in kept
    assert go_on(workdir, 4).lost == 4
    assert go_on(workdir).step == 4


def test_what_cannot_be_read_now_is_not_taken_for_a_run_that_never_saved(tmp_path, monkeypatch):
    go_on(tmp_path, 2)
    remove(epath.Path(tmp_path) / "checkpoints")
    read = type(epath.Path("/")).read_bytes

    def refuse(path):
        if path.name == "saved.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(type(epath.Path("/")), "read_bytes", refuse)
    with pytest.raises(Unreachable, match=r"saved.json cannot be read .Input/output error"):
        go_on(tmp_path)


def test_an_account_of_saves_that_is_damaged_is_said_and_written_anew(tmp_path, capsys):
    go_on(tmp_path, 2)
    (tmp_path / "saved.json").write_text('{"step": 7}x')
    assert go_on(tmp_path, 3).lost == 0
    assert "saved.json cannot be used" in capsys.readouterr().out
    assert documents.read(tmp_path / "saved.json", dict[str, int]) == {"step": 3}


# Half written files -------------------------------------------------------------------------------

WRITE = """
import os, sys
from pathlib import Path
from simclr_jax import files
def stop(descriptor):
    print(flush=True)
    sys.stdin.read()
os.fsync = stop
files.write_atomically(Path(sys.argv[1]) / "config.json", "half")
"""


@pytest.fixture
def writer(tmp_path):
    """A process that is in the middle of writing a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def aside(directory):
    return [path.name for path in directory.iterdir() if path.name.endswith(".tmp")]


def age(directory, seconds=5):
    for path in directory.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


def test_what_a_killed_process_was_writing_is_swept_and_what_a_living_one_writes_is_not(
    tmp_path, writer
):
    age(tmp_path)
    files.sweep(tmp_path)
    assert len(aside(tmp_path)) == 1
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert len(aside(tmp_path)) == 1
    files.sweep(tmp_path)
    assert aside(tmp_path) == []


def test_a_run_that_goes_on_sweeps_its_workdir_and_nothing_else_in_it(tmp_path):
    go_on(tmp_path, 2)
    token = "0123456789abcdef" * 2
    kept = [".mine.tmp", f".{token}.tmp", f".notes.{token}", "a.tmp", ".x.0123.tmp"]
    left = [f".config.json.{token}.tmp", f".writable.{token}", f".embedded.{token}.npz"]
    places = [tmp_path, tmp_path / "results", tmp_path / "features" / "0123", tmp_path / "index"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        for name in (*kept, *left):
            (place / name).write_text("half")
        age(place)
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "checkpoints" / "1.pruned").mkdir()
    go_on(tmp_path)
    for place in places:
        assert {p.name for p in place.iterdir() if p.name in (*kept, *left)} == {*kept}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
