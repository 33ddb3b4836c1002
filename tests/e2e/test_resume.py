"""A run that was interrupted, however, ends as the run that was not."""

import shutil
import signal

import doors
import numpy as np
import pytest
from doors import Blow

from simclr_jax import documents

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def killed(finished, tmp_path_factory):
    """A run killed while it logged step 9, with step 7 saved and half a line in its metrics."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    saved = workdir / "checkpoints" / "7" / "manifest.json"
    arguments = (*finished.arguments, f"--workdir={workdir}")
    ended = doors.run(workdir.parent, *arguments, blow=Blow(signal.SIGKILL, 9, saved))
    assert ended.code == -signal.SIGKILL, ended
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    return workdir


EVERY_FIVE = "--config.log.every_steps=5"


@pytest.fixture(scope="module")
def killed_between_lines(finished, tmp_path_factory):
    """A run with a line every five steps, killed at that of step 15, with 7 and 14 saved."""
    workdir = tmp_path_factory.mktemp("killed between lines") / "run"
    saved = workdir / "checkpoints" / "14" / "manifest.json"
    arguments = (*finished.arguments, EVERY_FIVE, f"--workdir={workdir}")
    ended = doors.run(workdir.parent, *arguments, blow=Blow(signal.SIGKILL, 15, saved))
    assert ended.code == -signal.SIGKILL, ended
    return workdir


def test_killed_and_resumed_is_the_same_run_to_the_bit(finished, killed, tmp_path):
    workdir = shutil.copytree(killed, tmp_path / "run")
    ended = doors.run(tmp_path, *finished.arguments, f"--workdir={workdir}")
    assert ended.code == 0, ended
    assert "resumed at step 7 of 20" in ended.out
    assert doors.metrics(workdir) == doors.metrics(finished.workdir)
    expected, found = doors.leaves(finished.workdir, 20), doors.leaves(workdir, 20)
    assert found.keys() == expected.keys()
    for part in ("params", "batch_stats", "opt_state", "average", "queue"):
        assert any(part in name for name in found), part
    for name, leaf in expected.items():
        assert leaf.dtype == found[name].dtype and leaf.tobytes() == found[name].tobytes(), name


@pytest.mark.slow
def test_resumed_on_other_devices_and_stopped_by_a_signal(finished, killed, tmp_path):
    workdir = shutil.copytree(killed, tmp_path / "run")
    arguments = (*finished.arguments, f"--workdir={workdir}")
    ended = doors.run(tmp_path, *arguments, devices=4, blow=Blow(signal.SIGTERM, 10))
    assert ended.code == 75, ended
    assert "stopped at step 11; the same command continues from there" in ended.out
    assert (workdir / "checkpoints" / "11" / "manifest.json").exists()
    assert list(doors.losses(workdir)) == list(range(1, 12))

    ended = doors.run(tmp_path, *arguments, "--resume=must")
    assert ended.code == 0, ended
    assert "resumed at step 11 of 20" in ended.out
    expected, found = doors.losses(finished.workdir), doors.losses(workdir)
    assert list(found) == list(range(1, 21))
    # Other sums of other rounding; another order of examples differs in the first digit.
    np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-3)


@pytest.mark.slow
def test_asked_to_stop_at_its_last_step_it_saves_and_concludes_when_asked_again(
    finished, killed, tmp_path
):
    workdir = shutil.copytree(killed, tmp_path / "run")
    arguments = (*finished.arguments, f"--workdir={workdir}")
    ended = doors.run(tmp_path, *arguments, blow=Blow(signal.SIGTERM, 20))
    assert ended.code == 75, ended
    assert "stopped at step 20" in ended.out and "accuracy on" not in ended.out
    assert (workdir / "checkpoints" / "20" / "manifest.json").exists()
    ended = doors.run(tmp_path, *arguments)
    assert ended.code == 0 and "accuracy on" in ended.out
    assert doors.metrics(workdir) == doors.metrics(finished.workdir)


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True], ids=["killed", "and damaged"])
def test_lines_average_the_steps_between_them_also_where_the_run_was_killed(
    finished, killed_between_lines, tmp_path, damaged
):
    workdir = shutil.copytree(killed_between_lines, tmp_path / "run")
    if damaged:
        (workdir / "checkpoints" / "14" / "manifest.json").write_text("{}")
    arguments = (*finished.arguments, EVERY_FIVE, f"--workdir={workdir}")
    ended = doors.run(tmp_path, *arguments)
    assert ended.code == 0 and f"resumed at step {7 if damaged else 14} of 20" in ended.out, ended
    steps = [line for line in doors.metrics(finished.workdir) if "loss" in line]
    found = [line for line in doors.metrics(workdir) if "loss" in line]
    assert [line["step"] for line in found] == [5, 10, 15, 20]
    for line in found:
        of_window = steps[line["step"] - 5 : line["step"]]
        last = {name: of_window[-1][name] for name in ("step", "lr", "epoch")}
        assert line.items() >= last.items() and line.keys() == of_window[-1].keys()
        for name in line.keys() - last.keys():
            np.testing.assert_allclose(
                line[name], np.mean([step[name] for step in of_window]), rtol=1e-14, err_msg=name
            )


def test_complete_run_says_its_summary_again(finished, tmp_path):
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    before = doors.metrics(workdir)
    # What only decides what is written may change.
    changed = ("--resume=must", "--config.checkpoint.every_steps=5", "--config.log.every_steps=2")
    ended = doors.run(tmp_path, *finished.arguments, f"--workdir={workdir}", *changed)
    assert ended.code == 0, ended
    assert "resumed at step 20 of 20" in ended.out
    table = ended.out[ended.out.index("accuracy on") :].partition("checkpoint")[0]
    assert table in finished.ended.out
    assert doors.metrics(workdir) == before
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["14", "20", "7"]


REFUSED = {
    "another recipe": (
        ["--config.train.batch_size=32", "--config.loss.temperature=0.5"],
        ["loss.temperature: 0.2 -> 0.5", "train.batch_size: 16 -> 32", "--workdir"],
    ),
    "never resumed": (["--resume=never"], ["holds a run already", "--workdir", "--resume=auto"]),
}


@pytest.mark.parametrize("changed, words", REFUSED.values(), ids=REFUSED)
def test_refused_and_nothing_touched(finished, tmp_path, changed, words):
    before = doors.content(finished.workdir)
    arguments = (*finished.arguments, f"--workdir={finished.workdir}", *changed)
    ended = doors.run(tmp_path, *arguments)
    assert ended.code == 1 and ended.err.count("\n") == 1, ended
    assert all(word in ended.err for word in words), ended.err
    assert doors.content(finished.workdir) == before


@pytest.mark.slow
def test_what_was_removed_and_damaged_is_said_and_the_rest_is_as_it_was(
    finished, killed_between_lines, tmp_path
):
    workdir = shutil.copytree(killed_between_lines, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "14")
    documents.write(workdir / "saved.json", {"step": 14})  # which the kill may have come before
    text = (workdir / "metrics.jsonl").read_bytes()
    (workdir / "metrics.jsonl").write_bytes(text.replace(b'"step": 5, ', b'"step": 5; ', 1))
    arguments = (*finished.arguments, EVERY_FIVE, f"--workdir={workdir}")
    ended = doors.run(tmp_path, *arguments)
    assert ended.code == 0, ended
    assert "resumed at step 7 of 20, though step 14 was saved: its checkpoint is" in ended.out
    assert "put back from TensorBoard's events, in float32: 1 line (of step 5" in ended.out
    lines = [line for line in doors.metrics(workdir) if "loss" in line]
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert [line["step"] for line in lines if "repaired" in line] == [5]
    expected, found = doors.leaves(finished.workdir, 20), doors.leaves(workdir, 20)
    assert all(found[name].tobytes() == leaf.tobytes() for name, leaf in expected.items())

    shutil.rmtree(workdir / "checkpoints")
    before = doors.content(workdir)
    ended = doors.run(tmp_path, *arguments)
    assert ended.code == 1 and "had saved step 20, and no checkpoint of it any more" in ended.err
    assert ended.err.count("\n") == 1
    assert {**doors.content(workdir), "log.txt": b""} == {**before, "log.txt": b""}
