"""A finished run that is trained on, as a user does it: `simclr train --extend_to`."""

import shutil
import signal

import doors
import pytest
from doors import Blow

import simclr_jax
from simclr_jax.errors import UserError
from simclr_jax.reporting import record, report

pytestmark = pytest.mark.e2e


COMMAND = ("--extend_to=8", "--extend_lr=0.05")  # 28 steps: 8 epochs of 54 images // 16, and one


@pytest.fixture(scope="module")
def extended(finished, tmp_path_factory):
    """The finished run, extended without its recipe."""
    workdir = shutil.copytree(finished.workdir, tmp_path_factory.mktemp("extended") / "run")
    ended = doors.run(workdir.parent, f"--workdir={workdir}", *COMMAND)
    assert ended.code == 0, ended
    return workdir, ended


def test_it_says_what_it_is_and_the_report_shows_where(extended, finished, tmp_path):
    workdir, ended = extended
    assert "extended  by steps 20 to 28 (epochs 5.9 to 8.3): no warm-up, peak rate" in ended.out
    assert "resumed at step 20 of 28" in ended.out and "accuracy on" in ended.out
    before = doors.metrics(finished.workdir)
    assert doors.metrics(workdir)[: len(before)] == before
    pages = []
    plain = shutil.copytree(finished.workdir, tmp_path / "plain")  # a report keeps features there
    for place in (workdir, plain):
        report.run([str(place)], str(tmp_path / "report.html"), lambda line: None)
        pages.append((tmp_path / "report.html").read_text())
    assert "Finished: step 28 of 28 (planned for 20, then extended)." in pages[0]
    assert "The run was extended at step 20, to step 28, where its learning rate begins" in pages[0]
    assert pages[0].count('class="border"') >= 5 and 'class="border"' not in pages[1]
    read = record.read(str(workdir))
    assert (read.total_steps, list(read.damaged)) == (28, [])


@pytest.mark.slow
def test_killed_and_given_again_is_the_same_run(extended, finished, tmp_path):
    straight, _ = extended
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    command = (f"--workdir={workdir}", *COMMAND)
    ended = doors.run(tmp_path, *command, blow=Blow(signal.SIGKILL, 24))
    assert ended.code == -signal.SIGKILL, ended
    ended = doors.run(tmp_path, *finished.arguments, f"--workdir={workdir}")
    assert ended.code == 0 and "of 28" in ended.out, ended
    found = simclr_jax.train(workdir=workdir, extend_to=8, extend_lr=0.05)  # which is there
    assert found.encoder.step == 28
    assert doors.metrics(workdir) == doors.metrics(straight)
    one, other = doors.leaves(workdir, 28), doors.leaves(straight, 28)
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


REFUSED = {
    "of no run": (["--extend_to=9"], "--extend_to needs the run: give --workdir=RUN"),
    "of a place": (["--extend_to=9", "--workdir=none"], "none holds no run to extend"),
    "a rate alone": (["--workdir=none", "--extend_lr=1"], "--extend_lr is of a run that is"),
    "no number": (["--workdir=none", "--extend_to=more"], '--extend_to is "more": give the'),
    "a rate of 0": (["--workdir=none", "--extend_to=9", "--extend_lr=0"], "extend_lr"),
    "a pipeline": (
        ["--config=configs/v2_pipeline_digits.py", "--extend_to=9"],
        "--extend_to extends one run, and the recipe is a pipeline of several",
    ),
}


@pytest.mark.parametrize("arguments, words", REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_said_in_a_line(arguments, words, tmp_path):
    ended = doors.run(tmp_path, *arguments)
    assert ended.code == 1 and words in ended.err and ended.err.count("\n") == 1, ended


def test_the_call_says_so_too(finished):
    with pytest.raises(UserError, match="are of a run that is extended: give extend_to"):
        simclr_jax.train(workdir=finished.workdir, config="digits", extend_lr=1.0)
