"""Before the first step: stopped while compiling; CPU devices chosen, kept, and refused."""

import json
import shutil
import signal

import doors
import pytest
from doors import TINY, UNLABELLED, Blow, SlowCompile

pytestmark = pytest.mark.e2e


def arguments(images, workdir):
    data = f"--config.data.path={images}"
    return (*TINY, *UNLABELLED, data, f"--workdir={workdir}", "--config.optim.base_lr=0.01")


@pytest.fixture(scope="module")
def straight(tmp_path_factory, unlabelled):
    """Six steps on as many CPU devices as the rule gives."""
    directory = tmp_path_factory.mktemp("straight")
    workdir = directory / "run"
    ended = doors.run(directory, *arguments(unlabelled, workdir), devices=None)
    assert ended.code == 0, ended
    return workdir, ended


def test_the_rule_is_followed_said_and_kept(straight):
    workdir, ended = straight
    assert "devices   2 x cpu" in ended.out and "the CPU counts as 2 devices" in ended.out
    assert json.loads((workdir / "config.json").read_text())["cpu_devices"] == 2
    lines = ended.out.splitlines()
    starts = [lines.index(next(x for x in lines if x.startswith(word))) for word in ORDER]
    assert starts == sorted(starts)


ORDER = ("run ", "devices ", "compiling the training step: ", "compiled ", "step 1/6 ")


@pytest.mark.slow
def test_stopped_and_resumed_it_has_the_same_devices_and_bits(straight, unlabelled, tmp_path):
    given = arguments(unlabelled, tmp_path / "run")
    ended = doors.run(tmp_path, *given, devices=None, blow=Blow(signal.SIGTERM, 4))
    assert ended.code == 75, ended
    ended = doors.run(tmp_path, *given, devices=None)
    assert ended.code == 0 and "devices   2 x cpu" in ended.out and "began on" not in ended.out
    expected, found = doors.leaves(straight[0], 6), doors.leaves(tmp_path / "run", 6)
    assert all(found[name].tobytes() == leaf.tobytes() for name, leaf in expected.items())


def test_on_another_number_it_goes_on_and_says_so(straight, unlabelled, tmp_path):
    workdir = shutil.copytree(straight[0], tmp_path / "run")
    given = arguments(unlabelled, workdir)
    ended = doors.run(tmp_path, *given, "--cpu_devices=1", devices=None)
    assert ended.code == 0, ended
    assert "this run began on 2 CPU device(s) and goes on on 1 of them" in ended.out


@pytest.mark.parametrize(
    ("flag", "devices", "said"),
    [
        ("--cpu_devices=17", None, "more than the 16 images of a batch"),
        ("--cpu_devices=3", None, "train.batch_size is 16, which 3 devices do not divide"),
        ("--cpu_devices=0", None, "it must be a whole number, 1 or more"),
        ("--cpu_devices=many", None, "it must be a whole number, 1 or more"),
        ("--cpu_devices=2", 4, "--cpu_devices is 2, but XLA_FLAGS"),
    ],
)
def test_refused_before_anything_is_there(flag, devices, said, unlabelled, tmp_path):
    given = arguments(unlabelled, tmp_path / "run")
    ended = doors.run(tmp_path, *given, flag, devices=devices)
    assert ended.code == 1 and said in ended.err and ended.err.count("\n") == 1, ended
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_stopped_while_it_compiles_it_ends_at_once(number, code, unlabelled, tmp_path):
    given, marker = arguments(unlabelled, tmp_path / "run"), tmp_path / "compiled"
    ended = doors.run(tmp_path, *given, blow=SlowCompile(number, marker))
    assert ended.code == code and not ended.err, ended
    assert not marker.exists(), "it has waited for the compiler"
    assert not (tmp_path / "run" / "lock.json").exists()


@pytest.mark.slow
def test_a_run_that_is_resumed_loses_nothing_by_it(straight, unlabelled, tmp_path):
    given, marker = arguments(unlabelled, tmp_path / "run"), tmp_path / "compiled"
    ended = doors.run(tmp_path, *given, devices=None, blow=Blow(signal.SIGTERM, 4))
    assert ended.code == 75, ended
    ended = doors.run(tmp_path, *given, devices=None, blow=SlowCompile(signal.SIGTERM, marker))
    assert ended.code == 75 and "resumed at step 5" in ended.out and not marker.exists(), ended
    ended = doors.run(tmp_path, *given, devices=None)
    assert ended.code == 0 and "resumed at step 5" in ended.out
    assert doors.metrics(tmp_path / "run") == doors.metrics(straight[0])
