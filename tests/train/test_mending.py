"""`metrics.jsonl` that was damaged, cut, removed or replaced between two lives of a run."""

from __future__ import annotations

import errno
import json
import os
import shutil
from types import SimpleNamespace

import bucket
import logged
import numpy as np
import pytest
from etils import epath

from simclr_jax import buckets, documents, files
from simclr_jax.errors import Unreachable, UserError
from simclr_jax.train.metrics import MetricsWriter, Window

SAVED = 10  # the step that runs go on from
NAMES = {"loss", "lr"}


def numbers(step):
    return {"loss": float(np.random.default_rng(step).normal()), "lr": step / 7, "input_wait": 0.5}


def write(writer, first, until):
    """Write a line a step, with a held-out one every 5 steps, as the loop does."""
    for step in range(first, until + 1):
        if step:
            writer.write(step, numbers(step))
        if step % 5 == 0:
            writer.write(step, {"knn": step / 70, "broken": float("nan")})


def open_at(workdir, step, seal=None):
    """Return a writer as a run that goes on from a step has it, and what it says."""
    said = []
    return MetricsWriter(workdir, step, seal, said.append), said


def live(workdir, sealed=True):
    """Write a run's log: two lives until the save, and a third that got further."""
    writer, _ = open_at(workdir, 0)
    write(writer, 0, 6)
    writer.close()
    writer, _ = open_at(workdir, 4)
    write(writer, 5, SAVED)
    writer.flush()
    seal = json.loads(json.dumps(writer.seal(Window())))
    write(writer, SAVED + 1, 12)
    writer.close()
    return seal if sealed else None


@pytest.fixture
def log(tmp_path):
    workdir = files.make_workdir(tmp_path / "run")
    seal = live(workdir)
    return SimpleNamespace(workdir=workdir, seal=seal, path=workdir / "metrics.jsonl")


def known():
    """Return the lines of a run never interrupted, as they are read."""
    lines = []
    for step in range(SAVED + 1):
        lines += [{"step": step, **numbers(step)}] if step else []
        lines += [{"step": step, "knn": step / 70, "broken": None}] if step % 5 == 0 else []
    return lines


def found(workdir):
    return logged.lines(workdir, without=())


def check_numbers(lines):
    """Compare lines with those of a run never interrupted: to the bit, repaired ones in float32."""
    expected = known()
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, other in zip(lines, expected, strict=True):
        if line.pop("repaired", None):
            finite = {name: value for name, value in other.items() if value is not None}
            assert line == {name: float(np.float32(value)) for name, value in finite.items()}
        else:
            assert line == other


def repaired(workdir):
    return [line["step"] for line in found(workdir) if line.get("repaired")]


def test_what_nobody_has_touched_is_left_to_the_byte_and_nothing_is_said(log):
    before = log.path.read_bytes().splitlines(keepends=True)[: len(known())]
    writer, said = open_at(log.workdir, SAVED, log.seal)
    writer.close()
    assert log.path.read_bytes() == b"".join(before) and not said
    check_numbers(found(log.workdir))


def flip(line):
    def damage(path):
        lines = path.read_bytes().splitlines(keepends=True)
        lines[line] = lines[line][:20] + bytes([lines[line][20] ^ 8]) + lines[line][21:]
        path.write_bytes(b"".join(lines))

    return damage


def other_run(path):
    """Another run's file: whole lines, of the same steps."""
    lines = [line | {"loss": 3.0} if "loss" in line else line for line in known()]
    path.write_text("".join(map(documents.line, lines)))


DAMAGES = {
    "a flipped bit": (flip(7), 1, True),
    "in the last line": (flip(len(known()) - 1), 1, True),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe\n" * 3 + b"\0" * 99), 13, True),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:700]), 6, False),
    "emptied": (lambda path: path.write_bytes(b""), 13, False),
    "removed": (lambda path: path.unlink(), 13, False),
    "of another run": (other_run, 10, True),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_lines_are_put_back_from_the_events_and_marked_and_said(log, damage):
    make, count, aside = DAMAGES[damage]
    make(log.path)
    damaged = log.path.read_bytes() if log.path.exists() else b""
    writer, (said,) = open_at(log.workdir, SAVED, log.seal)
    assert len(repaired(log.workdir)) == count
    assert f"metrics.jsonl is not as it was when step {SAVED} was saved; put back from" in said
    assert f"in float32: {count} line" in said and "\n" not in said and "lost" not in said
    kept = log.workdir / "metrics.jsonl.damaged"
    assert kept.exists() == aside and (not aside or kept.read_bytes() == damaged)
    check_numbers(found(log.workdir))

    # The run goes on, and neither the next save nor the same one has anything to say any more.
    seal = writer.seal(Window())
    write(writer, SAVED + 1, 12)
    writer.close()
    for again in (seal, log.seal):
        writer, said = open_at(log.workdir, SAVED, again)
        writer.close()
        assert not said and len(repaired(log.workdir)) == count
    assert not (log.workdir / "metrics.jsonl.damaged-2").exists()


def test_no_flipped_bit_anywhere_changes_a_number_or_ends_in_a_traceback(log, tmp_path):
    whole = log.path.read_bytes()
    for place in np.random.default_rng(0).choice(len(whole), 60, replace=False):
        copy = epath.Path(shutil.copytree(log.workdir, tmp_path / f"copy {place}"))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        (copy / "metrics.jsonl").write_bytes(flipped)
        writer, _ = open_at(copy, SAVED, log.seal)
        writer.close()
        check_numbers(found(copy))


def cut_events(workdir, size):
    (first, *_) = sorted((workdir / "tensorboard").iterdir())
    first.write_bytes(first.read_bytes()[:size])
    return first.name


def test_what_is_lost_for_good_is_said_by_its_steps(log):
    name = cut_events(log.workdir, 300)
    log.path.write_bytes(b"")
    writer, said = open_at(log.workdir, SAVED, log.seal)
    writer.close()
    assert said[0].startswith(f"tensorboard/{name} has 300 of ")
    steps = [line["step"] for line in found(log.workdir)]
    lost = [step for step in (line["step"] for line in known()) if step not in steps]
    assert 0 < len(lost) < 5 and f"lost: {len(lost)} lines (of step {lost[0]}, " in said[1]
    assert len(said) == 2


def test_numbers_that_nobody_can_vouch_for_any_more_are_said(log):
    other_run(log.path)
    shutil.rmtree(log.workdir / "tensorboard")
    writer, said = open_at(log.workdir, SAVED, log.seal)
    writer.close()
    assert "has 0 of" in said[0] and "other numbers were written then" in said[1]


def test_events_that_are_whole_are_never_needed_nor_written_over(log):
    before = {p.name: p.read_bytes() for p in (log.workdir / "tensorboard").iterdir()}
    for _ in range(3):  # within a second
        writer, said = open_at(log.workdir, SAVED, log.seal)
        writer.close()
        assert not said
    now = {p.name: p.read_bytes() for p in (log.workdir / "tensorboard").iterdir()}
    assert len(now) == len(before) + 3 and now.items() >= before.items()


def old(workdir):
    """Write a log as earlier versions did: without checksums, an event for each number."""
    text = "".join(json.dumps(line) + "\n" for line in found(workdir))
    (workdir / "metrics.jsonl").write_text(text)
    shutil.rmtree(workdir / "tensorboard")
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(workdir / "tensorboard")) as board:
        for line in known():
            for name, value in line.items():
                if name != "step" and value is not None:
                    board.add_scalar(name, value, line["step"])


SHOWING = ("a flipped bit", "in the last line", "no text", "cut", "emptied", "removed")


@pytest.mark.parametrize("damage", [None, *SHOWING])
def test_a_run_of_an_earlier_version_is_mended_where_the_damage_shows(tmp_path, damage):
    workdir = epath.Path(tmp_path)
    live(workdir)
    old(workdir)
    if damage:
        DAMAGES[damage][0](workdir / "metrics.jsonl")
    writer, said = open_at(workdir, SAVED)
    writer.close()
    check_numbers(found(workdir))
    assert bool(said) == (damage is not None)


@pytest.mark.parametrize("call", ["read_bytes", "stat"])
def test_lines_are_not_lost_where_the_events_cannot_be_read_now(log, monkeypatch, call):
    """As on a mount that does not answer: what is sealed as lost would never be put back."""
    log.path.write_bytes(b"")
    whole = getattr(type(log.path), call)

    def refuse(path, *args, **kwargs):
        if "tensorboard/" in str(path):
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return whole(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(log.path), call, refuse)
        with pytest.raises(Unreachable, match=r"tensorboard/\S+ cannot be read .Connection timed"):
            open_at(log.workdir, SAVED, log.seal)
    writer, (said,) = open_at(log.workdir, SAVED, log.seal)
    writer.close()
    assert "put back from" in said and "lost" not in said
    check_numbers(found(log.workdir))


def test_a_run_that_starts_anew_says_that_it_drops_lines(log):
    writer, said = open_at(log.workdir, 0)
    writer.close()
    assert said == ["nothing was saved before: the run starts anew, and its metrics.jsonl too"]
    assert log.path.read_bytes() == b""


def test_a_directory_in_the_place_of_the_file_is_one_line(log):
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be read .*: move it away"):
        open_at(log.workdir, SAVED, log.seal)


@pytest.mark.parametrize("damage", ["a flipped bit", "emptied", "removed"])
def test_in_a_bucket_it_is_the_same(tmp_path, damage):
    with bucket.at(tmp_path):
        workdir = files.make_workdir("gs://fake/run")
        seal = live(workdir)
        DAMAGES[damage][0](workdir / "metrics.jsonl")
        writer, (said,) = open_at(workdir, SAVED, seal)
        writer.close()
        assert "put back from" in said
        check_numbers(found(workdir))
        names = {path.name for path in buckets.below(workdir)}
        assert ("metrics.jsonl.damaged" in names) == DAMAGES[damage][2]
