"""A disk that others fill to the last byte, or that turns read-only: one line, and the run goes on.

"the same command" is given again once there is space: its losses are those of a run that was never
interrupted.
"""

import os

import disks
import doors
import pytest
from disks import When

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk"),
]

MOMENTS = {
    "before anything is compiled": ("simclr_jax.parallel:make_mesh", 0),
    "the lock is taken": ("simclr_jax.train.lock:WorkdirLock.__enter__", 0),
    "the recipe is written": ("simclr_jax.train.workdir:check_recipe", 0),
    "the first line of the log": ("simclr_jax.stages.summary:announce", 0),
    "views.png": ("simclr_jax.stages.views:draw", 0),
    "the first evaluation": ("simclr_jax.train.log:Log.evaluation", 0),
    "the first save": ("simclr_jax.train.checkpoints:Checkpoints._begin", 0),
    "the seal of the first save": ("simclr_jax.train.manifest:write", 0),
    "a later save": ("simclr_jax.train.checkpoints:Checkpoints._begin", 1),
    "the seal of a later save": ("simclr_jax.train.manifest:write", 1),
    "metrics are flushed": ("simclr_jax.train.metrics:MetricsWriter.flush", 3),
    "a later evaluation": ("simclr_jax.train.log:Log.evaluation", 4),
    "results are written": ("simclr_jax.stages.summary:conclude", 0),
    "the last lines are said": ("simclr_jax.tables:scores", 0),
    "the log is closed": ("simclr_jax.train.metrics:MetricsWriter.close", 0),
}
QUICK = {"views.png", "a later save", "metrics are flushed"}


@pytest.fixture
def disk(tmp_path):
    with disks.mounted(tmp_path / "disk") as path:
        yield path


@pytest.mark.parametrize(
    "moment",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MOMENTS],
)
def test_filled_to_the_last_byte_ends_in_one_line_and_goes_on(moment, finished, disk, tmp_path):
    place, call = MOMENTS[moment]
    arguments = (*finished.arguments, f"--workdir={disk / 'run'}")
    ended = doors.run(tmp_path, *arguments, blow=When(place, disk, call))
    assert ended.code == 1, ended
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    assert str(disk) in ended.err and "free space there" in ended.err, ended.err
    early = doors.run(tmp_path, *arguments)
    assert early.code == 1 and early.err.count("\n") == 1 and "free space" in early.err, early
    disks.empty(disk)
    ended = doors.run(tmp_path, *arguments)
    assert ended.code == 0 and not ended.err, ended
    assert doors.metrics(disk / "run") == doors.metrics(finished.workdir)
