"""A disk that others fill to the last byte, or that turns read-only: one line, and the run goes on.

The same command, given again when the disk can be written, has the losses of a run that was never
interrupted. Signals that come while a run closes change nothing about that.
"""

import os
import signal

import disks
import doors
import pytest
from disks import MOMENTS, Both, When

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk"),
]

SLOW = {"views.png", "a later save", "results are written"}  # the others are for releases
FLUSHED, CLOSED = MOMENTS["metrics are flushed"], "simclr_jax.train.checkpoints:Checkpoints.close"


@pytest.fixture
def disk(tmp_path):
    with disks.mounted(tmp_path / "disk") as path:
        yield path


def ends_in_one_line(ended, *words):
    assert ended.code == 1, ended
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    assert all(word in ended.err for word in words), ended.err


def completes(tmp_path, finished, arguments):
    ended = doors.run(tmp_path, *arguments)
    assert ended.code == 0 and not ended.err, ended
    workdir = arguments[-1].removeprefix("--workdir=")
    assert doors.metrics(tmp_path / workdir) == doors.metrics(finished.workdir)
    assert not [*tmp_path.glob("disk/run/lock*")]


def tiers(names, chosen):
    """Return names as parameters: the chosen are slow, the others only a release needs."""
    slow, release = pytest.mark.slow, pytest.mark.release
    return [pytest.param(name, marks=slow if name in chosen else release) for name in names]


@pytest.mark.parametrize("moment", tiers(MOMENTS, SLOW))
def test_filled_to_the_last_byte_ends_in_one_line_and_goes_on(moment, finished, disk, tmp_path):
    arguments = (*finished.arguments, f"--workdir={disk / 'run'}")
    blow = When(*MOMENTS[moment], disks.filling(disk))
    ends_in_one_line(doors.run(tmp_path, *arguments, blow=blow), str(disk), "free space there")
    early = doors.run(tmp_path, *arguments)
    ends_in_one_line(early, str(disk), "free space")
    disks.empty(disk)
    completes(tmp_path, finished, arguments)


@pytest.mark.parametrize("moment", tiers(["views.png", "a later save"], {"a later save"}))
def test_read_only_ends_in_one_line_and_goes_on(moment, finished, disk, tmp_path):
    arguments = (*finished.arguments, f"--workdir={disk / 'run'}")
    blow = When(*MOMENTS[moment], disks.sealing(disk))
    ended = doors.run(tmp_path, *arguments, blow=blow)
    ends_in_one_line(ended, str(disk), "Read-only file system")
    assert (disk / "run" / "lock.json").exists()  # which nobody can remove
    ends_in_one_line(doors.run(tmp_path, *arguments), str(disk), "Read-only file system")
    disks.unseal(disk)
    completes(tmp_path, finished, arguments)


@pytest.mark.parametrize("name", tiers(["INT", "TERM", "KILL"], {"INT"}))
def test_a_signal_while_a_run_closes_because_of_an_error(name, finished, disk, tmp_path):
    arguments = (*finished.arguments, f"--workdir={disk / 'run'}")
    blow = Both(When(*FLUSHED, disks.filling(disk)), When(CLOSED, 0, f"kill -{name} PID"))
    ended = doors.run(tmp_path, *arguments, blow=blow)
    if name == "INT":
        ends_in_one_line(ended, str(disk), "free space there")
    else:  # nobody takes SIGTERM any more at this point
        assert ended.code == -getattr(signal, f"SIG{name}") and not ended.err, ended
    disks.empty(disk)
    completes(tmp_path, finished, arguments)
