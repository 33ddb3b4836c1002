"""Checkpoints while the disk fails or the process is killed: the last good step survives."""

import errno
import os
import random
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from simclr_jax.errors import Unreachable, UserError
from simclr_jax.train import manifest
from simclr_jax.train.checkpoints import Checkpoints


@pytest.mark.parametrize("surface", ["wait", "save", "close"])
def test_failed_write_surfaces_once_and_names_the_last_good_step(surface, tmp_path, caplog):
    state = {"a": np.random.default_rng(0).normal(size=200_000)}  # noise: 1.6 MB however packed
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(UserError, match=rf"2 cannot be written to {tmp_path}.*last good .* 1"):
            checkpoints.save(2, state)
            checkpoints.save(3, state) if surface == "save" else getattr(checkpoints, surface)()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Traceback" not in caplog.text, "Orbax has logged what is raised here"
    if surface != "close":
        checkpoints.wait()  # said once
        checkpoints.save(4, state)
        checkpoints.wait()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "4"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        ValueError("Error reading x [os_error_code='110'] Connection timed out"),
    ],
)
def test_a_disk_that_does_not_answer_condemns_no_checkpoint(error, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"a": np.arange(9)})
    checkpoints.wait()

    def refuse(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_load", refuse)
        with pytest.raises(Unreachable, match=rf"{tmp_path}/2 cannot be read .*move that") as e:
            checkpoints.restore({"a": np.zeros(9, np.int64)})
    assert e.value.code == 75
    assert checkpoints.restore({"a": np.zeros(9, np.int64)})[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def refusing(name, number):
    """Return how files are read where the system refuses the one of a name."""
    read = type(epath.Path("/")).read_bytes

    def read_bytes(path):
        if path.name == name:
            raise OSError(number, os.strerror(number), os.fspath(path))
        return read(path)

    return read_bytes


# What the system may say without any file being at fault: the exit code, and the remedy.
REFUSALS = {
    errno.EMFILE: (1, "ulimit -n"),
    errno.ENOMEM: (1, "free memory"),
    errno.EACCES: (1, "see to the rights there"),
    errno.EIO: (75, "check the disk or mount"),
    errno.ESTALE: (75, "check the disk or mount"),
}


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["manifest.json", "_METADATA"])
def test_what_no_file_is_at_fault_for_condemns_no_checkpoint(name, number, tmp_path, monkeypatch):
    code, remedy = REFUSALS[number]
    target = {"a": np.zeros(9, np.int64)}
    checkpoints = Checkpoints(tmp_path, say=pytest.fail)
    for step in (1, 2):
        checkpoints.save(step, {"a": np.arange(9)})
    checkpoints.wait()
    reads = [lambda: checkpoints.restore(target), checkpoints.leaves]
    reads += [lambda: checkpoints.about(2)] if name == "manifest.json" else []
    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path("/")), "read_bytes", refusing(name, number))
        for read in reads:
            with pytest.raises(UserError, match=f"{name} cannot be read .*{remedy}") as told:
                read()
            assert told.value.code == code
    assert checkpoints.restore(target)[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize("kind", ["of TensorStore", "of Python"])
def test_nor_do_arrays_that_the_program_may_not_open(kind, number, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, say=pytest.fail)
    checkpoints.save(1, {"a": np.arange(9)})
    checkpoints.wait()

    def refuse(*_):
        if kind == "of Python":
            raise OSError(number, os.strerror(number))
        raise ValueError(f"Error reading x [os_error_code='{number}']")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_load", refuse)
        with pytest.raises(UserError, match=rf"1 cannot be read .*{REFUSALS[number][1]}") as told:
            checkpoints.restore({"a": np.zeros(9, np.int64)})
    assert told.value.code == 1
    assert checkpoints.restore({"a": np.zeros(9, np.int64)})[0] == 1


def test_at_the_limit_of_open_files_no_checkpoint_is_condemned(tmp_path, monkeypatch):
    """Not one call is refused here but all: the limit is reached, between any two of them."""
    target = {"a": np.zeros(9, np.int64)}
    checkpoints = Checkpoints(tmp_path, say=pytest.fail)
    for step in (1, 2):
        checkpoints.save(step, {"a": np.arange(9)})
    checkpoints.wait()
    directories, held = checkpoints._directories, []

    def then_none_is_left():
        found = directories()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 3, limits[1]))
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            return found

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(checkpoints, "_directories", then_none_is_left)
    try:
        with pytest.raises(UserError, match=r"Too many open files.*ulimit -n") as told:
            checkpoints.restore(target)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for opened in held:
            os.close(opened)
    monkeypatch.undo()
    assert told.value.code == 1
    assert checkpoints.restore(target)[0] == 2


def test_all_of_a_checkpoint_is_on_the_disk_before_it_is_one(tmp_path, monkeypatch):
    synced: list[str] = []
    sync = os.fsync

    def fsync(opened):
        path = Path(f"/proc/self/fd/{opened}").readlink()
        synced.append(os.path.relpath(path, tmp_path))
        sync(opened)

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": np.arange(9)})
    checkpoints.close()
    (seal,) = [i for i, path in enumerate(synced) if "manifest.json" in path]
    there = {os.path.relpath(path, tmp_path) for path in (tmp_path / "1").rglob("*")}
    assert there - {"1/manifest.json"} <= {*synced[:seal]}


def test_directory_that_cannot_be_made_is_an_error_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory"):
        Checkpoints(tmp_path / "file").save(1, {"a": np.ones(3)})


def test_nothing_is_pruned_when_the_new_step_reads_back_differently(tmp_path, monkeypatch):
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, keep=1, say=said.append)
    checkpoints.save(1, {"a": np.arange(9)})
    checkpoints.wait()
    seal = manifest.write

    def failing_disk(directory, step, *args):
        seal(directory, step, *args)
        biggest = max(Path(directory).glob("**/d/*"), key=lambda path: path.stat().st_size)
        biggest.write_bytes(biggest.read_bytes()[::-1])

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write", failing_disk)
        checkpoints.save(2, {"a": np.arange(9) + 1})
        with pytest.raises(UserError, match=r"reads back differently.*last good one is 1"):
            checkpoints.wait()
    assert checkpoints.steps() == [1] and "2.damaged" in said[0]
    checkpoints.save(3, {"a": np.arange(9) + 2})
    checkpoints.wait()
    assert checkpoints.steps() == [3]


# Kills

NURSERY = textwrap.dedent(
    """
    # Imports once; then, for each line of input, forks a child that saves without end and kills
    # it the given time after its second save. Prints the last step that the child saw sealed.
    import os, signal, sys, time
    import numpy as np
    from simclr_jax.train.checkpoints import Checkpoints

    def child(directory, report):
        checkpoints = Checkpoints(directory, keep=2, say=lambda _: None)
        restored = checkpoints.restore({"a": np.zeros((64, 64)), "b": {"c": np.int32(0)}})
        step = restored[0] if restored else 0
        while True:
            step += 1
            rng = np.random.default_rng(step)
            checkpoints.save(step, {"a": rng.normal(size=(64, 64)), "b": {"c": np.int32(step)}})
            os.write(report, b"%d\\n" % (step - 1))  # save(step) has waited for the one before

    directory = sys.argv[1]
    for line in sys.stdin:
        out, report = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(directory, report)
        os.close(report)
        sealed = b""
        while sealed.count(b"\\n") < 2:  # however slow the machine, one step more than before
            sealed += os.read(out, 100)
        time.sleep(float(line))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while more := os.read(out, 10000):
            sealed += more
        os.close(out)
        print(sealed.split()[-1].decode(), flush=True)
    """
)


@pytest.mark.slow
def test_kill_at_any_instant_leaves_the_last_sealed_step_restorable(tmp_path):
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    rng = random.Random(5)
    target = {"a": np.zeros((64, 64)), "b": {"c": np.int32(0)}}
    reached = 0
    for _ in range(8):
        nursery.stdin.write(f"{rng.uniform(0, 0.4)}\n")
        nursery.stdin.flush()
        sealed = int(nursery.stdout.readline())
        checkpoints = Checkpoints(tmp_path, keep=2, say=lambda _: None)
        restored = checkpoints.restore(target)
        step, state = restored
        assert step >= sealed > reached - 1
        expected = np.random.default_rng(step).normal(size=(64, 64))
        assert (state["a"] == expected).all() and state["b"]["c"] == step
        reached = step
        checkpoints.close()
    nursery.stdin.close()
    assert nursery.wait() == 0
    assert reached >= 8
