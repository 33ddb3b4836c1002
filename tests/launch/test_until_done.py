"""The script starts a preempted run again, and nothing else; signals to it reach the run."""

import json
import os
import runpy
import shlex
import signal
import subprocess
import sys

import pytest
from stand_ins import LAUNCH, ODD, alive, until

pytestmark = pytest.mark.slow

SCRIPT = LAUNCH / "until_done"


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setenv("PAUSE", "0")


def run(tmp_path, codes, *arguments):
    """Run the script over a command that ends with each of `codes` in turn.

    Returns its exit code, what it said, and the arguments of each attempt.
    """
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    command = tmp_path / "a command"  # the space tells whether arguments are quoted
    command.write_text(
        '#!/bin/sh\ncode=$(sed -n 1p codes); sed -i 1d codes; echo "$*" >> said; exit $code\n'
    )
    command.chmod(0o755)
    ended = subprocess.run(
        [SCRIPT, command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    return ended.returncode, ended.stderr, (tmp_path / "said").read_text().splitlines()


@pytest.mark.parametrize(
    "codes, ends, attempts",
    [((0,), 0, 1), ((75, 137, 134, 139, 143, 0), 0, 6), ((75, 1, 0), 1, 2), ((130, 0), 130, 1)],
)
def test_only_preemption_starts_again(tmp_path, codes, ends, attempts):
    code, _, said = run(tmp_path, codes, "--workdir=a b", "c")
    assert code == ends
    assert said == ["--workdir=a b c"] * attempts


def test_the_codes_are_those_of_the_other_scripts(monkeypatch):
    monkeypatch.syspath_prepend(LAUNCH)
    every = 'for ((i = 0; i < 256; i++)); do if again "$i"; then echo "$i"; fi; done'
    line = ["bash", "-c", f"source '{LAUNCH}/common.sh'; {every}"]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert tuple(map(int, said.split())) == runpy.run_path(str(SCRIPT))["AGAIN"]


def test_a_command_that_a_signal_ends_is_started_again(tmp_path):
    script = "touch $$; [ $(ls | wc -l) -gt 1 ] || kill -KILL $$; exit 3"
    ended = subprocess.run([SCRIPT, "bash", "-c", script], cwd=tmp_path, timeout=30)
    assert ended.returncode == 3 and len(list(tmp_path.iterdir())) == 2


def test_attempts_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIES", "2")
    code, err, said = run(tmp_path, (75, 75, 75), "x")
    assert code == 75 and len(said) == 2
    assert err == "until_done: attempt 1 ended with 75, starting again in 0 s\n"


def test_pauses_grow_while_attempts_are_short(tmp_path, monkeypatch):
    monkeypatch.setenv("PAUSE", "0.001")
    _, err, _ = run(tmp_path, (75, 75, 75, 0))
    assert [line.split()[-2] for line in err.splitlines()] == ["0.001", "0.002", "0.004"]
    monkeypatch.syspath_prepend(LAUNCH)
    next_pause = runpy.run_path(str(SCRIPT))["next_pause"]
    assert next_pause(16, lasted=59, first=1) == 32
    assert next_pause(32, lasted=59, first=1) == 60
    assert next_pause(60, lasted=3600, first=1) == 1


# Its arguments are the code after SIGTERM (0: ignores it), that after SIGINT, and "done" to end at
# once with 75. It starts a process that stays.
TRAINING = """
import json, os, signal, subprocess, sys, time
for number, code in zip((signal.SIGTERM, signal.SIGINT), map(int, sys.argv[1:3])):
    def end(*_, number=number, code=code):
        open(f"heard.{number:d}", "a").write("x")
        if code:
            os._exit(code)
    signal.signal(number, end)
pids = [os.getpid(), subprocess.Popen(["sleep", "60"]).pid]
with open("pids.new", "a") as file:
    file.write(json.dumps(pids) + "\\n")
if "done" in sys.argv:
    sys.exit(75)
os.rename("pids.new", "pids")
while True:
    time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the script over TRAINING with arguments."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # inherited, if ignored
    started = []

    def start(*arguments, script=(SCRIPT,), **options):
        line = [*script, sys.executable, "-S", "-c", TRAINING, *arguments]
        started.append(
            subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True, **options)
        )
        return started[-1]

    yield start
    signal.signal(signal.SIGINT, previous)
    for script in started:
        script.kill()
        script.wait()
        script.stderr.close()


def pids(tmp_path):
    return [pid for line in (tmp_path / "pids").open() for pid in json.loads(line)]


@pytest.mark.parametrize(
    "sent, ends, heard",
    [
        (signal.SIGTERM, 75, signal.SIGTERM),
        (signal.SIGHUP, 75, signal.SIGTERM),
        (signal.SIGINT, 130, signal.SIGINT),
        (signal.SIGKILL, -signal.SIGKILL, None),
    ],
)
def test_a_signal_reaches_the_command_once_and_ends_it_for_good(tmp_path, start, sent, ends, heard):
    script = start("75", "130", process_group=0)
    until((tmp_path / "pids").exists)
    os.killpg(script.pid, sent)  # as a terminal does, to all that are in the foreground
    assert script.wait(20) == ends
    said = {file.suffix: file.read_text() for file in tmp_path.glob("heard.*")}
    assert said == ({f".{heard:d}": "x"} if heard else {})
    assert len(pids(tmp_path)) == 2  # one attempt
    until(lambda: not any(map(alive, pids(tmp_path))))


AT_LEISURE = f"""
import runpy, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
main = runpy.run_path({str(SCRIPT)!r})["main"]
main.__globals__["SAME_SECS"] = 0
sys.exit(main())
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_second_signal_kills(tmp_path, start, second):
    script = start("0", "0", script=[sys.executable, "-S", "-c", AT_LEISURE])
    until((tmp_path / "pids").exists)
    script.terminate()
    until((tmp_path / f"heard.{signal.SIGTERM:d}").exists)
    script.send_signal(second)
    assert script.wait(20) == 137
    until(lambda: not any(map(alive, pids(tmp_path))))


@pytest.mark.parametrize("twice", [signal.SIGTERM, signal.SIGHUP])
def test_what_two_senders_tell_at_once_is_one_request(tmp_path, start, twice):
    script = start("0", "0")
    until((tmp_path / "pids").exists)
    script.send_signal(twice)
    until((tmp_path / f"heard.{signal.SIGTERM:d}").exists)
    script.send_signal(twice)
    with pytest.raises(subprocess.TimeoutExpired):
        script.wait(0.3)
    script.send_signal(signal.SIGINT)
    assert script.wait(20) == 137


def test_a_signal_between_attempts_ends_the_script(tmp_path, monkeypatch, start):
    monkeypatch.setenv("PAUSE", "60")
    script = start("75", "130", "done")
    assert "ended with 75, starting again in 60 s" in script.stderr.readline()
    script.terminate()
    assert script.wait(20) == 75
    assert (tmp_path / "pids.new").read_text().count("\n") == 1


def test_nothing_of_an_attempt_is_left_when_the_next_one_begins(tmp_path, start):
    script = start("75", "130", "done")
    assert "starting again" in script.stderr.readline()
    _, stays = json.loads((tmp_path / "pids.new").read_text().splitlines()[0])
    until(lambda: not alive(stays))


def test_under_nohup_a_lost_terminal_is_not_heard(tmp_path, start):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    script = start("75", "130")
    signal.signal(signal.SIGHUP, previous)
    until((tmp_path / "pids").exists)
    script.send_signal(signal.SIGHUP)
    script.send_signal(signal.SIGINT)  # heard next: with SIGHUP before it, it would kill
    assert script.wait(20) == 130


def test_a_dry_run_prints_the_command(tmp_path):
    command = [SCRIPT, "--dry-run", "touch", str(tmp_path / "a b"), *ODD]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shlex.split(ended.stdout) == command[2:] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, ends, said",
    [
        ((), 0, "launch/until_done python -m simclr_jax.main"),
        (("--help",), 0, "launch/until_done python -m simclr_jax.main"),
        (("--", "--help"), 127, "until_done: --help cannot be run: No such file"),
        (("--tries=2", "true"), 1, "until_done: --tries=2 is no option: see --help"),
        (("/",), 126, "until_done: / cannot be run: Permission denied"),
    ],
)
def test_mistakes_and_help(arguments, ends, said):
    ended = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, timeout=30)
    assert ended.returncode == ends
    assert said in ended.stdout + ended.stderr


@pytest.mark.parametrize("script", ["until_done", "local"])
def test_help_may_be_read_in_part(script):
    """As by `--help | head -1`: no traceback, whenever the reader goes away."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [LAUNCH / script, "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=30)
    os.close(writer)
    assert done.stderr == "" and done.returncode in (0, -signal.SIGPIPE)


@pytest.mark.parametrize("name, value", [("TRIES", "0"), ("TRIES", "many"), ("PAUSE", "-1")])
def test_settings_that_are_no_numbers_are_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    ended = subprocess.run([SCRIPT, "true"], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1 and f"{name} is {value}: it must be a number" in ended.stderr
