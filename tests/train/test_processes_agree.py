"""Two real processes: what they tell each other, and what becomes of one when the other fails."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from simclr_jax import processes
from simclr_jax.errors import UserError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMMAND = ("launch/local", "-n", "2", "--devices_each=2", "--", "-")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    script = (sys.executable, "tests/train/agreeing.py", str(directory))
    command = (sys.executable, *COMMAND[:-1], *script)
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    found = [json.loads((directory / f"found{rank}.json").read_text()) for rank in (0, 1)]
    return found, done, time.monotonic() - began


def test_each_has_its_own_rows_and_hears_what_all_say(ended):
    (first, second), *_ = ended
    assert first["rows"] == [0, 1, 2, 3] and second["rows"] == [4, 5, 6, 7]
    said = [{"rank": 0, "text": ""}, {"rank": 1, "text": "ä" * 300}]
    assert first["everyone"] == second["everyone"] == said


def test_the_first_acts_and_all_have_the_result_or_the_error(ended):
    (first, second), *_ = ended
    assert first["first"] == second["first"] == "by 0"
    assert first["refused"] == "UserError: no"
    assert second["refused"] == "Told: no", "printed once, by the first"
    assert first["code"] == second["code"] == 75, "all say that it may be tried again"


def test_processes_of_different_runs_are_noticed_by_all(ended):
    for found in ended[0]:
        assert found["same"] is None
        assert "process 1 has other recipe than process 0" in found["other"]


def test_images_that_any_of_them_cannot_read_are_left_out_by_all(ended):
    for found in ended[0]:
        assert found["readable"] == [0, 3]


def test_and_are_counted_together(ended):
    for found in ended[0]:
        assert (
            "2 of 4 images (held_out) are unreadable so far, such as 1 (brok" in found["too many"]
        )


def test_a_damaged_step_is_set_aside_once_and_all_restore_the_one_before(ended):
    for found in ended[0]:
        assert found["restored"] == [1, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], ["1", "2.damaged"]]


def test_directories_that_are_not_shared_are_refused_by_all(ended):
    for found in ended[0]:
        assert "process 1 cannot read checkpoint" in found["not shared"]
        assert "give a --workdir that all hosts share" in found["not shared"]
        assert "process 1 does not find" in found["own workdirs"]
        assert "give a --workdir that all hosts share" in found["own workdirs"]


def test_when_one_fails_the_other_ends_too(ended):
    _, done, seconds = ended
    assert done.returncode == 1, done
    assert "[1] error: process 1: no" in done.stderr and "Traceback" not in done.stderr
    assert seconds < 120


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((False, "a:1", None, None), "need --distributed"),
        ((True, "a:1", 2, None), "give all of --coordinator, --processes and --process"),
        ((True, "a:1", 2, 2), "--process is 2"),
        ((True, "somewhere", 2, 1), "must be HOST:PORT"),
        ((True, ":1", 2, 1), "must be HOST:PORT"),
        ((True, "a b:1", 2, 1), "must be HOST:PORT"),
        ((True, "a:0", 2, 1), "a port from 1 to 65535"),
        ((True, "a:99999999", 1, 0), "a port from 1 to 65535"),
        ((True, "a:1", 2, 1, 1), "--heartbeat_secs is 1"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message), processes.joined(*arguments):
        pytest.fail("nothing to join")


def test_without_a_cluster_the_flags_are_named(monkeypatch):
    def initialize(*_, **__):  # what it says where no cluster is found
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    message = r"finds no cluster.*give --coordinator"
    with pytest.raises(UserError, match=message), processes.joined(True):
        pytest.fail("nothing to join")


def test_a_coordinator_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(processes, "START_SECS", 0)
    alone = processes.joined(True, "localhost:1", 2, 1)
    with pytest.raises(UserError, match="--coordinator is localhost:1, but nobody") as told, alone:
        pytest.fail("nothing to join")
    assert told.value.code == 75, "it may be tried again"


def test_inside_a_cluster_what_is_given_counts_alone(monkeypatch):
    def initialize(*_, cluster_detection_method, **__):
        raise ValueError(f"detection: {cluster_detection_method}")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with (
        pytest.raises(UserError, match="detection: deactivate"),
        processes.joined(True, "a:1", 1, 0),
    ):
        pytest.fail("nothing to join")
    with pytest.raises(UserError, match="detection: None"), processes.joined(True):
        pytest.fail("nothing to join")
