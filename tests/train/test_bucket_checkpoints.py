"""A workdir in a bucket: sealed checkpoints, logs that grow, one owner; whatever dies when."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bucket
import numpy as np
import pytest
from etils import epath

from simclr_jax import buckets, files
from simclr_jax.errors import Unreachable, UserError
from simclr_jax.train import manifest
from simclr_jax.train.bucket_checkpoints import BucketCheckpoints, open_checkpoints
from simclr_jax.train.lock import WorkdirLock
from simclr_jax.train.metrics import MetricsWriter
from simclr_jax.train.progress import Console
from simclr_jax.train.workdir import open_workdir

RUN = epath.Path("gs://fake/run")


@pytest.fixture(autouse=True)
def store(tmp_path):
    with bucket.at(tmp_path / "bucket") as stand_in:
        yield stand_in


def state(step):
    random = np.random.default_rng(step)
    return {"step": np.int32(step), "params": {"kernel": random.normal(size=(7, 3))}}


def names(directory=RUN / "checkpoints"):
    return {str(path)[len(str(directory)) + 1 :].split("/")[0] for path in buckets.below(directory)}


@pytest.fixture
def checkpoints():
    said = []
    opened = open_checkpoints(RUN / "checkpoints", keep=2, say=said.append)
    assert isinstance(opened, BucketCheckpoints)
    opened.said = said
    yield opened
    opened.close()


def same(found, step):
    at, tree = found
    assert at == step
    np.testing.assert_array_equal(tree["params"]["kernel"], state(step)["params"]["kernel"])


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, state(step))
    checkpoints.wait()


# Checkpoints --------------------------------------------------------------------------------------


def test_what_comes_back_is_what_was_saved_and_old_ones_go(checkpoints):
    assert checkpoints.restore(state(0)) is None
    save(checkpoints, 1, 2, 3)
    assert names() == {"2", "3"} and checkpoints.steps() == [2, 3]
    with pytest.raises(UserError, match=r"checkpoint gs://fake/run/checkpoints/3 exists"):
        checkpoints.save(3, state(3))
    reader = open_checkpoints(RUN / "checkpoints", read_only=True)
    same(reader.restore(state(0)), 3)
    step, leaves = reader.leaves(2)
    np.testing.assert_array_equal(leaves["params/kernel"], state(step)["params"]["kernel"])
    reader.close()
    assert not list(checkpoints._directory.iterdir())  # nothing stays on the local disk


def test_the_seal_is_the_last_to_come_and_the_first_to_go(checkpoints, store):
    with pytest.MonkeyPatch.context() as patch:
        done = Requests(store, patch).noted
        save(checkpoints, 1, 2, 3)
    for what, last in (("pipe_file", -1), ("_rm", 0)):
        of_first = [name for did, name in done if did == what and name.startswith("1/")]
        assert of_first[last] == "1/manifest.json" and len(of_first) > 3
    assert done.index(("pipe_file", "3/manifest.json")) < done.index(("_rm", "1/manifest.json"))


class Killed(BaseException):
    """Ends what it is raised in, as a kill would."""


class Requests:
    """Writes to a bucket and removals: noted, and the process is killed after `most` of them."""

    def __init__(self, store, monkeypatch, most=None):
        self.noted, self._most = [], most
        for name in ("pipe_file", "_rm"):
            monkeypatch.setattr(store, name, self._counted(name, getattr(store, name)))

    def _counted(self, name, action):
        def act(fs, path, *args, **kwargs):
            if self._most is not None and len(self.noted) >= self._most:
                raise Killed
            self.noted.append((name, path.rpartition("checkpoints/")[2]))
            return action(fs, path, *args, **kwargs)

        return act


def third_save(store, before, most=None):
    """Save step 3 where 1 and 2 are, keeping one; return the requests up to the kill."""
    for path in store.root.iterdir():
        path.unlink()
    for name, content in before.items():
        (store.root / name).write_bytes(content)
    doomed = open_checkpoints(RUN / "checkpoints", keep=1)
    with pytest.MonkeyPatch.context() as patch:
        requests = Requests(store, patch, most)
        with contextlib.suppress(Killed):
            save(doomed, 3)
    doomed.close()
    return requests.noted


def test_killed_between_any_two_requests_leaves_a_whole_checkpoint(store):
    first = open_checkpoints(RUN / "checkpoints", keep=1)
    save(first, 1, 2)
    first.close()
    before = {path.name: path.read_bytes() for path in store.root.iterdir()}
    noted = third_save(store, before)
    sealed = noted.index(("pipe_file", "3/manifest.json"))
    reached = set()
    for most in (0, 1, sealed, sealed + 1, sealed + 2, len(noted) - 1):
        # Files are uploaded side by side, not always by as many requests.
        done = third_save(store, before, most)
        again = open_checkpoints(RUN / "checkpoints", keep=1)
        step = 3 if ("pipe_file", "3/manifest.json") in done else 2
        reached.add(step)
        same(again.restore(state(0)), step)
        if step == 2:  # what was left half copied is no obstacle
            save(again, 3)
        save(again, 4)
        assert names() == {"4"}
        again.close()
    assert reached == {2, 3}


def test_what_was_damaged_is_set_aside_and_the_one_before_is_taken(checkpoints):
    save(checkpoints, 1, 2)
    data = max(buckets.below(RUN / "checkpoints/2"), key=lambda path: path.stat().length)
    stored = bytearray(data.read_bytes())
    stored[len(stored) // 2] ^= 1
    data.write_bytes(bytes(stored))
    same(checkpoints.restore(state(0)), 1)
    assert names() == {"1", "2.damaged"} and checkpoints.damaged() == ["2.damaged"]
    assert "2 is set aside as 2.damaged" in checkpoints.said[-1]
    moved = epath.Path(str(data).replace("checkpoints/2/", "checkpoints/2.damaged/"))
    assert moved.read_bytes() == bytes(stored)
    save(checkpoints, 2)
    same(checkpoints.restore(state(0)), 2)
    (RUN / "checkpoints/2/manifest.json").unlink()  # then it is none
    same(checkpoints.restore(state(0)), 1)


def test_a_bucket_that_fails_meanwhile_is_one_line(checkpoints, store, monkeypatch):
    save(checkpoints, 1)

    def refuse(*_, **__):
        raise RuntimeError("503 Backend Error\nretry later")

    monkeypatch.setattr(store, "pipe_file", refuse)
    checkpoints.save(2, state(2))
    message = r"checkpoints/2 cannot be reached \(503 Backend Error ret"
    with pytest.raises(UserError, match=message) as told:
        checkpoints.wait()
    assert told.value.code == 75, "the same command may be given again"
    monkeypatch.undo()
    same(checkpoints.restore(state(0)), 1)


def test_a_bucket_that_does_not_answer_condemns_no_checkpoint(checkpoints, store, monkeypatch):
    save(checkpoints, 1)
    read = store.cat_file

    def refuse(self, path, *arguments, **keywords):
        if path.endswith("manifest.json"):
            raise TimeoutError("try again")
        return read(self, path, *arguments, **keywords)

    monkeypatch.setattr(store, "cat_file", refuse)
    monkeypatch.setattr(store, "_open", lambda self, path, *_, **__: refuse(self, path))
    with pytest.raises(Unreachable):
        checkpoints.restore(state(0))
    with pytest.raises(Unreachable):  # as readers of a run do, without a copy
        manifest.read(RUN / "checkpoints" / "1", 1)
    monkeypatch.undo()
    same(checkpoints.restore(state(0)), 1)
    assert not checkpoints.damaged()


def test_a_bucket_that_fails_ends_the_run_with_75_whatever_else_it_keeps_from_being_written(
    store, monkeypatch
):
    def refuse(*_, **__):
        raise RuntimeError("503 Backend Error")

    workdir = open_workdir(str(RUN), {"seed": 1}, "auto", keep=1, keep_period=None)
    with pytest.raises(UserError, match="cannot be reached") as told, workdir as opened:
        opened.console.say("published")
        monkeypatch.setattr(store, "pipe_file", refuse)
        opened.console.say("not published yet")
        with buckets.reaching(RUN):
            refuse()
    assert told.value.code == 75


class HttpError(Exception):
    def __init__(self, code):
        super().__init__(f"it said {code}")
        self.code = code


class DefaultCredentialsError(Exception):
    pass


@pytest.mark.parametrize(
    "error, code",
    [
        (HttpError(503), 75),
        (HttpError(429), 75),
        (TimeoutError("no answer"), 75),
        (ConnectionResetError(), 75),
        (HttpError(403), 1),
        (HttpError(404), 1),
        (FileNotFoundError("no such bucket"), 1),
        (PermissionError("not yours"), 1),
        (DefaultCredentialsError("who are you?"), 1),
    ],
)
def test_only_what_may_pass_is_worth_another_try(error, code):
    with (
        pytest.raises(UserError, match=r"gs://fake/run cannot be reached.*credentials") as told,
        buckets.reaching(RUN),
    ):
        raise error
    assert told.value.code == code


# Logs and metrics ---------------------------------------------------------------------------------


def test_metrics_grow_and_are_cut_where_the_run_resumes():
    for first, lines in ((0, range(1, 5)), (2, range(3, 7))):
        writer = MetricsWriter(RUN, first)
        for step in lines:
            writer.write(step, {"loss": 1.0 * step, "first": first})
        writer.flush()
        assert len((RUN / "metrics.jsonl").read_text().splitlines()) == lines[-1]
        writer.write(99, {"loss": 0.0})
        writer.close()
    found = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6, 99]
    assert [line.get("first") for line in found] == [0, 0, 2, 2, 2, 2, None]
    assert all(path.stat().length > 100 for path in buckets.below(RUN / "tensorboard"))


def test_the_log_is_continued_and_complete_in_the_end(store, capsys):
    for word in ("one", "two"):
        console = Console(RUN)
        for i in range(20):
            console.say(f"{word} {i}")
        console.close()
    lines = (RUN / "log.txt").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        f"{word} {i}" for word in ("one", "two") for i in range(20)
    ]


# The lock, and what is there ----------------------------------------------------------------------


def test_of_many_that_come_at_once_one_gets_the_lock():
    path = RUN / "lock.json"
    for _ in range(5):
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda i: files.create(path, str(i)), range(8))) == 1
        path.unlink()
    with WorkdirLock(RUN), pytest.raises(UserError, match="is in use by process"):
        WorkdirLock(RUN).__enter__()
    assert not path.exists()


def test_a_workdir_that_cannot_be_written_is_one_line(store, monkeypatch):
    assert files.make_workdir("gs://fake/new") == epath.Path("gs://fake/new")
    monkeypatch.setattr(store, "pipe_file", lambda *_: (_ for _ in ()).throw(OSError("Forbidden")))
    with pytest.raises(
        UserError, match=r"gs://fake/new/\S+ cannot be reached \(Forbidden\).*crede"
    ):
        files.make_workdir("gs://fake/new")


def test_without_the_package_it_is_named(monkeypatch):
    import fsspec

    def missing(*_, **__):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    bucket._forget()
    with pytest.raises(UserError, match=r"needs the package gcsfs: pip install 'gcsfs>="):
        files.make_workdir("gs://fake/new")
    with pytest.raises(UserError, match=r"needs the package s3fs: pip install s3fs"):
        buckets.listing(epath.Path("s3://fake/run"))


def test_local_copies_of_a_killed_process_are_deleted_and_those_in_use_are_not(
    tmp_path, monkeypatch
):
    local = tmp_path / "local"
    local.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(local))
    killed = "import os; from simclr_jax.buckets import Scratch; Scratch(); os._exit(9)"
    environment = os.environ | {"TMPDIR": str(local)}
    assert subprocess.run([sys.executable, "-c", killed], env=environment).returncode == 9
    (left,) = local.glob("*/files")
    here, there = buckets.Scratch(), buckets.Scratch()
    assert not left.exists() and here.path.exists() and there.path.exists()
    here.close()
    assert [*local.glob("*/files")] == [Path(there.path)]
    there.close()
    assert not [*local.iterdir()]
