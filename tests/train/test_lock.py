"""The workdir lock: one writer at a time, and no dead one in the way; writable workdirs."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from simclr_jax import documents, files
from simclr_jax.errors import UserError
from simclr_jax.train import lock as lock_module
from simclr_jax.train.lock import WorkdirLock

HERE = {"host": socket.gethostname(), "system": lock_module._system()}
FAST = {"heartbeat_secs": 0.05, "stale_secs": 0.6}

HOLD = """
import sys, time
from simclr_jax.train.lock import WorkdirLock
with WorkdirLock(sys.argv[1], heartbeat_secs=0.05):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""

RACE = """
import os, sys, time
from simclr_jax.errors import UserError
from simclr_jax.train.lock import WorkdirLock
workers = []
ready, start = os.pipe()
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        os.close(start)
        os.read(ready, 1)  # returns for all when the parent closes its end
        try:
            with WorkdirLock(sys.argv[1], say=lambda _: None):
                time.sleep(1.0)
        except UserError:
            os._exit(1)
        os._exit(0)
    workers.append(pid)
os.close(start)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers].count(0))
"""


def child(code: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True
    )


def write_lock(workdir: Path, **changes: object) -> Path:
    record = {"host": "elsewhere", "pid": 1, "started": 1, "token": "x", "heartbeat": time.time()}
    documents.write(workdir / "lock.json", {**record, **changes})
    return workdir / "lock.json"


def test_lock_names_its_holder_and_is_gone_afterwards(tmp_path):
    with WorkdirLock(tmp_path, **FAST) as lock:
        record = json.loads((tmp_path / "lock.json").read_text())
        assert (record["host"], record["pid"]) == (socket.gethostname(), os.getpid())
        deadline = time.monotonic() + 5
        while json.loads((tmp_path / "lock.json").read_text()) == record:
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.02)
        lock.check()
    assert list(tmp_path.iterdir()) == []


def test_live_process_on_this_host_refuses_at_once_even_with_an_old_heartbeat(tmp_path):
    with WorkdirLock(tmp_path, heartbeat_secs=100):
        record = json.loads((tmp_path / "lock.json").read_text())
        documents.write(tmp_path / "lock.json", {**record, "heartbeat": 0})
        with (
            pytest.raises(UserError) as error,
            WorkdirLock(tmp_path, heartbeat_secs=100, stale_secs=100),
        ):
            pass
        for part in (str(os.getpid()), socket.gethostname(), str(tmp_path)):
            assert part in str(error.value)
        assert (tmp_path / "lock.json").exists()  # the refused one released nothing
    assert not (tmp_path / "lock.json").exists()


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_lock_of_a_killed_process_is_taken_over_at_once(reaped, tmp_path):
    holder = child(HOLD, tmp_path, 60)
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
    said: list[str] = []
    with WorkdirLock(tmp_path, stale_secs=1000, heartbeat_secs=100, say=said.append):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert len(said) == 1 and f"process {holder.pid}" in said[0]
    holder.wait()
    assert list(tmp_path.iterdir()) == []


def test_pid_used_again_by_another_process_is_no_holder(tmp_path):
    write_lock(tmp_path, **HERE, pid=os.getpid(), started=1)
    with WorkdirLock(tmp_path, stale_secs=1000, say=lambda _: None) as lock:
        lock.check()


def test_silent_lock_of_another_host_is_waited_for_and_taken_over(tmp_path):
    write_lock(tmp_path, heartbeat=time.time() - 0.2)
    said: list[str] = []
    begin = time.monotonic()
    with WorkdirLock(tmp_path, **FAST, say=said.append):
        assert time.monotonic() - begin > 0.3  # 0.6 s old, not merely found
    assert "elsewhere" in said[0] and "taken over" in said[1]


@pytest.mark.parametrize("behind", [0, 3600], ids=["same clock", "clock an hour behind"])
def test_beating_lock_of_another_host_refuses(behind, tmp_path):
    write_lock(tmp_path, heartbeat=time.time() - behind)
    stop = threading.Event()

    def beat():
        while not stop.wait(0.05):
            write_lock(tmp_path, heartbeat=time.time() - behind)

    holder = threading.Thread(target=beat)
    holder.start()
    try:
        with (
            pytest.raises(UserError, match="process 1 on elsewhere"),
            WorkdirLock(tmp_path, heartbeat_secs=1, stale_secs=5, say=lambda _: None),
        ):
            pass
    finally:
        stop.set()
        holder.join()


def test_half_written_lock_is_taken_over_when_nobody_finishes_it(tmp_path):
    (tmp_path / "lock.json").write_text('{"host": ')
    with WorkdirLock(tmp_path, **FAST, say=lambda _: None) as lock:
        lock.check()


DEAD = {**HERE, "pid": os.getpid(), "started": 1}
ALIVE = {**HERE, "pid": os.getppid(), "started": None}


@pytest.mark.parametrize("before", ["nothing", "dead lock", "dead takeovers"])
def test_of_many_that_race_one_wins(before, tmp_path):
    if before != "nothing":
        write_lock(tmp_path, **DEAD)
    if before == "dead takeovers":
        for turn in (1, 2):
            documents.write(tmp_path / f"lock.takeover.x.{turn}", DEAD)
    racers = child(RACE, tmp_path)
    assert racers.communicate()[0] == "1\n"
    assert list(tmp_path.iterdir()) == []


def test_takeover_of_a_process_killed_in_the_middle_is_waited_for_and_taken_over(tmp_path):
    write_lock(tmp_path, **DEAD)
    (tmp_path / "lock.takeover.x.1").write_text("")  # killed before it could say who it was
    (tmp_path / "lock.takeover.before.1").write_text("")  # killed after it had the lock
    said: list[str] = []
    with WorkdirLock(tmp_path, **FAST, say=said.append):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert "waiting" in said[0] and "taken over" in said[1]
    assert list(tmp_path.iterdir()) == []


def test_takeover_by_a_process_that_lives_refuses(tmp_path):
    write_lock(tmp_path, **DEAD)
    documents.write(tmp_path / "lock.takeover.x.1", ALIVE)
    with pytest.raises(UserError, match=f"process {os.getppid()} "), WorkdirLock(tmp_path):
        pass
    assert json.loads((tmp_path / "lock.json").read_text())["started"] == 1


def test_of_two_that_find_a_dead_takeover_one_gets_in(tmp_path, monkeypatch):
    write_lock(tmp_path, **DEAD)
    documents.write(tmp_path / "lock.takeover.x.1", {**DEAD, "started": 2})
    really_alive = lock_module._is_alive

    def judge_slowly(pid, started):
        if started == 2:  # meanwhile another process has judged, and is in
            documents.write(tmp_path / "lock.takeover.x.2", ALIVE)
        return really_alive(pid, started)

    monkeypatch.setattr(lock_module, "_is_alive", judge_slowly)
    with pytest.raises(UserError, match=f"process {os.getppid()} "), WorkdirLock(tmp_path):
        pass


def test_lock_that_changed_hands_after_it_was_judged_is_not_taken(tmp_path, monkeypatch):
    write_lock(tmp_path, **DEAD)
    really_alive = lock_module._is_alive

    def judge_slowly(pid, started):
        alive = really_alive(pid, started)
        if not alive:  # meanwhile another process, which lives, takes the dead lock over
            write_lock(tmp_path, **HERE, pid=os.getppid(), started=None)
        return alive

    monkeypatch.setattr(lock_module, "_is_alive", judge_slowly)
    with pytest.raises(UserError, match=f"process {os.getppid()} "), WorkdirLock(tmp_path):
        pass


def test_holder_learns_that_it_was_taken_over_and_leaves_the_new_lock(tmp_path):
    said = threading.Event()
    with WorkdirLock(tmp_path, **FAST, say=lambda _: said.set()) as lock:
        for _ in range(20):  # a heartbeat under way may write over it
            write_lock(tmp_path)
            if said.wait(0.5):
                break
        with pytest.raises(UserError, match="taken over"):
            lock.check()
    assert json.loads((tmp_path / "lock.json").read_text())["host"] == "elsewhere"


def test_the_lock_itself_is_looked_at_before_a_save(tmp_path):
    with WorkdirLock(tmp_path, heartbeat_secs=3600, say=lambda _: None) as lock:
        lock.check()
        write_lock(tmp_path)
        with pytest.raises(UserError, match="taken over by process"):
            lock.check()
        (tmp_path / "lock.json").write_text("")  # being written: nobody's
        with pytest.raises(UserError, match="taken over by process"):
            lock.check()


def test_vanished_workdir_is_named_and_may_come_back(tmp_path):
    workdir, away, said = tmp_path / "run", tmp_path / "away", threading.Event()
    workdir.mkdir()

    def say(_):
        said.set()
        raise UserError("the log is on the same disk")  # and must not end the heartbeat

    with WorkdirLock(workdir, **FAST, say=say) as lock:
        workdir.rename(away)
        assert said.wait(5)
        with pytest.raises(UserError, match="is gone: bring it back"):
            lock.check()
        away.rename(workdir)
        before = (workdir / "lock.json").read_text()
        deadline = time.monotonic() + 5
        while (workdir / "lock.json").read_text() == before:
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.02)
        lock.check()
        said.clear()
        (workdir / "lock.json").unlink()
        assert said.wait(5)
        with pytest.raises(UserError, match=r"no lock\.json any more"):
            lock.check()


# The workdir itself


def test_workdir_is_made_with_its_parents(tmp_path):
    workdir = files.make_workdir(tmp_path / "a" / "b")
    assert workdir.is_dir() and list(workdir.iterdir()) == []
    assert files.make_workdir(workdir) == workdir


def test_workdir_that_cannot_be_written_is_named_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", "/proc/run"):
        with pytest.raises(UserError, match=rf'workdir "{path}".*--workdir'):
            files.make_workdir(path)


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    documents.write(tmp_path / "a.json", {"old": 1})
    with pytest.raises(UnicodeEncodeError):
        files.write_atomically(tmp_path / "a.json", "\ud800")
    (tmp_path / "b.json").mkdir()
    with pytest.raises(OSError):
        files.write_atomically(tmp_path / "b.json", "new")
    assert documents.read(tmp_path / "a.json", dict[str, int]) == {"old": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]
