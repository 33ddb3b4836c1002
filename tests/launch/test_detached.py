"""A command outlives the connection that started it, and is followed again by the same call."""

import os
import signal
import subprocess

import pytest
from stand_ins import LAUNCH, ODD, alive, until

pytestmark = pytest.mark.slow

SCRIPT = LAUNCH / "detached"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory, where a file "go" ends the waiting of commands."""
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path
    (tmp_path / "go").touch()


def run(*arguments):
    ended = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, timeout=30)
    return ended.returncode, ended.stdout, ended.stderr


WAIT = ("bash", "-c", "echo run >>~/runs; echo one; until [ -e ~/go ]; do sleep .05; done; exit 3")


def test_output_code_and_arguments_pass_through(home):
    code, out, _ = run("--", "bash", "-c", 'printf "%s\\0" "$@"; exit 75', "bash", *ODD)
    assert code == 75
    assert out.split("\0")[:-1] == list(ODD)
    assert run("--ended")[1].split()[::2] == ["ended", "75"]


def test_a_lost_connection_leaves_the_command_and_finds_it_again(home):
    first = subprocess.Popen([SCRIPT, "--id=7", *WAIT], stdout=subprocess.PIPE, process_group=0)
    assert first.stdout.readline() == b"one\n"
    os.killpg(first.pid, signal.SIGKILL)  # all of the connection's processes
    first.wait()
    assert run("--id=7", "--ended") == (0, "", "")

    # The connection that comes back, a new launch of the same, and one of another command.
    again = [subprocess.Popen([SCRIPT, f"--id={i}", *WAIT], stdout=subprocess.PIPE) for i in (7, 8)]
    assert [process.stdout.readline() for process in again] == [b"one\n"] * 2
    code, _, err = run("other")
    assert code == 1 and "another command runs here: bash -c" in err
    (home / "go").touch()
    assert [process.wait(20) for process in again] == [3, 3]
    assert run("--id=7", *WAIT)[:2] == (3, "one\n")  # ended while nobody listened
    assert (home / "runs").read_text() == "run\n"
    assert run("--id=9", *WAIT)[0] == 3
    assert (home / "runs").read_text() == "run\n" * 2


def test_stop_asks_the_command_and_waits_for_it(home):
    script = "trap 'sleep .2; exit 75' TERM; echo $$; while :; do sleep .05; done"
    follower = subprocess.Popen([SCRIPT, "bash", "-c", script], stdout=subprocess.PIPE)
    pid = int(follower.stdout.readline())
    code, out, _ = run("--stop")
    assert code == 0 and out.split()[::2] == ["ended", "75"]
    assert not alive(pid)
    assert follower.wait(20) == 75


def test_a_stopped_script_has_ended_when_what_it_runs_has(home):
    saving = "trap 'until [ -e ~/go ]; do sleep .05; done; echo saved; exit 75' TERM"
    inner = f"{saving}; echo; while :; do sleep .05; done"
    script = ["bash", "-c", '"$@"; exit', "script", "bash", "-c", inner]
    follower = subprocess.Popen([SCRIPT, *script], stdout=subprocess.PIPE)
    assert follower.stdout.readline()
    stop = subprocess.Popen([SCRIPT, "--stop"], stdout=subprocess.PIPE, text=True)
    session = int((home / ".simclr_jax/pid").read_text())
    until(lambda: not script_of(session))
    assert (follower.poll(), stop.poll(), run("--ended")[1]) == (None, None, "ended 0 76\n")
    (home / "go").touch()
    assert follower.stdout.read().endswith(b"saved\n")
    assert stop.communicate()[0].split()[::2] == ["ended", "143"]
    assert follower.wait(20) == 143


def script_of(session):
    said = subprocess.run(["ps", "-o", "args=", "-s", str(session)], capture_output=True, text=True)
    return [line for line in said.stdout.splitlines() if line.startswith('bash -c "$@"; exit')]


@pytest.mark.parametrize(
    "code, said", [(75, ["0", "76"]), (143, ["0", "76"]), (1, ["1"]), (0, ["0"])]
)
def test_how_a_run_ended_tells_a_stop_from_a_preemption(home, code, said):
    script = f"trap 'exit {code}' TERM; echo; while :; do sleep .05; done"
    follower = subprocess.Popen([SCRIPT, "--id=7", "bash", "-c", script], stdout=subprocess.PIPE)
    assert follower.stdout.readline()
    run("--stop")
    assert follower.wait(20) == code
    assert run("--id=7", "--ended")[1].split()[-len(said) :] == said
    assert run("--id=8", "--ended")[1] == ""
    assert run("--id=8", "bash", "-c", "exit 75")[0] == 75
    assert run("--id=8", "--ended")[1].split()[::2] == ["ended", "75"]  # a new start forgets it


def test_a_launch_that_followed_learns_how_it_ended_and_starts_nothing(home):
    first = subprocess.Popen([SCRIPT, "--id=7", *WAIT], stdout=subprocess.PIPE)
    assert first.stdout.readline()
    second = subprocess.Popen([SCRIPT, "--id=8", *WAIT], stdout=subprocess.PIPE)
    assert second.stdout.readline()
    (home / "go").touch()
    assert (first.wait(20), second.wait(20)) == (3, 3)
    for each in ("--id=7", "--id=8"):
        assert run(each, "--ended")[1].split()[::2] == ["ended", "3"]
        assert run(each, *WAIT)[0] == 3
    assert (home / "runs").read_text() == "run\n"


def test_a_command_that_was_killed_with_its_shell_says_137(home):
    follower = subprocess.Popen([SCRIPT, "bash", "-c", "echo; sleep 60"], stdout=subprocess.PIPE)
    assert follower.stdout.readline()
    os.killpg(int((home / ".simclr_jax/pid").read_text()), signal.SIGKILL)
    assert follower.wait(20) == 137
    until(lambda: run("true")[0] == 0)


def test_help():
    assert "launch/detached [--id=ID] python" in run("--help")[1]
