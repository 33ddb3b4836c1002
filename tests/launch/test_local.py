"""Several processes on this machine: what each is given, how the run ends, and that none is left.

The processes are of plain Python; training through the script is in tests/e2e.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stand_ins import LAUNCH, ODD, alive, until, words

pytestmark = pytest.mark.slow

SCRIPT = [sys.executable, "-S", str(LAUNCH / "local")]

# Process I does the I-th of its first arguments: {"sleep": SECS, "exit": CODE or "kill": SIGNAL,
# "term": CODE after SIGTERM, "int": CODE after SIGINT, "child": start one that stays}.
PROCESS = """
import json, os, signal, subprocess, sys, time
rank = int(sys.argv[-1].removeprefix("--process="))
plan = json.loads(sys.argv[1])[rank]
for name, number in (("term", signal.SIGTERM), ("int", signal.SIGINT)):
    if name in plan:
        signal.signal(number, lambda *_, code=plan[name]: os._exit(code))
pids = [os.getpid()]
if plan.get("child"):
    pids.append(subprocess.Popen(["sleep", "60"]).pid)
with open(f"pids.{rank}.new", "w") as file:
    json.dump(pids, file)
os.rename(f"pids.{rank}.new", f"pids.{rank}")
time.sleep(plan.get("sleep", 0))
if "kill" in plan:
    os.kill(os.getpid(), plan["kill"])
sys.exit(plan.get("exit", 0))
"""


def line(plans, *options):
    process = [sys.executable, "-S", "-c", PROCESS, json.dumps(plans)]
    return [*SCRIPT, "-n", str(len(plans)), *options, "--", *process]


def run(tmp_path, command):
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    return ended.returncode, ended.stdout, ended.stderr


def pids(tmp_path: Path) -> list[int]:
    return [pid for file in tmp_path.glob("pids.?") for pid in json.loads(file.read_text())]


def start(tmp_path, plans, *options):
    """Start the script, and return it when all processes are there."""
    launcher = subprocess.Popen(line(plans, *options), cwd=tmp_path, stderr=subprocess.PIPE)
    until(lambda: len(list(tmp_path.glob("pids.?"))) == len(plans))
    return launcher


def test_each_process_knows_its_part_and_gets_the_arguments_untouched(tmp_path, monkeypatch):
    # Process 0 would write text and line end one after the other, and others in between.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=8 --b")
    say = (
        "import json, os, sys; e = os.environ;"
        "print(json.dumps([sys.argv[1:], e['XLA_FLAGS'], e['JAX_PLATFORMS']]));"
        "print('warning', file=sys.stderr)"
    )
    command = [sys.executable, "-S", "-c", say, *ODD]
    code, out, err = run(tmp_path, [*SCRIPT, "-n", "3", "--devices_each=4", *command])
    assert code == 0
    lines = sorted(out.splitlines(), reverse=True)  # "[[" of process 0 comes first
    assert [text[:4] for text in lines[1:]] == ["[2] ", "[1] "]
    assert sorted(err.splitlines()) == ["[1] warning", "[2] warning", "warning"]
    said = [json.loads(text.removeprefix("[2] ").removeprefix("[1] ")) for text in lines]
    (coordinator,) = {arguments[-3] for arguments, *_ in said}
    assert coordinator.startswith("--coordinator=127.0.0.1:")
    for rank, (arguments, flags, platform) in zip((0, 2, 1), said, strict=True):
        given = ["--distributed", coordinator, "--processes=3", f"--process={rank}"]
        assert arguments == [*ODD, *given]
        assert flags == "--a=1 --b --xla_force_host_platform_device_count=4"
        assert platform == "cpu"


KILLED = {"kill": signal.SIGKILL}


@pytest.mark.parametrize(
    "plans, ends",
    [
        ([{"exit": 75}, {"exit": 75}], 75),
        ([{"sleep": 0.4, "exit": 134}, KILLED], 137),
        ([{"exit": 1}, {"sleep": 0.4, "exit": 134}], 1),  # a mistake, not what it led to
        ([{"sleep": 0.4, "exit": 1}, {"kill": signal.SIGABRT}], 134),
        ([{"exit": 0}, {"sleep": 0.2, "exit": 75}], 75),
    ],
)
def test_the_first_failure_is_the_answer(tmp_path, plans, ends):
    assert run(tmp_path, line(plans))[0] == ends


def test_what_hangs_after_a_failure_is_killed_with_all_it_started(tmp_path):
    # Also who ignores SIGTERM, and the child that a process left behind when it ended.
    plans = [{"sleep": 60, "child": True}, KILLED, {"child": True}]
    code, _, err = run(tmp_path, line(plans, "--grace_secs=0.3"))
    assert code == 137
    assert "process 1 ended with 137" in err and "did not end in 0.3 s" in err
    assert len(pids(tmp_path)) == 5
    until(lambda: not any(map(alive, pids(tmp_path))))


@pytest.mark.parametrize(
    "sent, ends",
    [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGHUP, 75), (signal.SIGKILL, -9)],
)
def test_signals_reach_every_process_and_none_is_left(tmp_path, sent, ends):
    plan = {"sleep": 60, "term": 75, "int": 130, "child": True}
    launcher = start(tmp_path, [plan, plan])
    launcher.send_signal(sent)
    assert launcher.wait(20) == ends
    until(lambda: not any(map(alive, pids(tmp_path))))


def test_the_second_signal_kills(tmp_path):
    launcher = start(tmp_path, [{"sleep": 60, "term": 75}, {"sleep": 60, "int": 1}])
    launcher.send_signal(signal.SIGINT)  # process 0 has no handler: KeyboardInterrupt, or 130
    until(lambda: b"process" in launcher.stderr.readline())
    launcher.send_signal(signal.SIGINT)
    launcher.wait(20)
    until(lambda: not any(map(alive, pids(tmp_path))))


def test_a_dry_run_prints_lines_to_paste(tmp_path):
    options = ["--devices_each=2", "--port=1234", "--dry-run"]
    code, out, _ = run(tmp_path, [*SCRIPT, "-n", "2", *options, "touch", *ODD])
    assert code == 0 and not list(tmp_path.iterdir())
    setting = ["env", "JAX_PLATFORMS=cpu"]
    for rank, text in enumerate(out.splitlines()):
        *start, flags = words(text)[:3]
        assert start == setting
        assert flags.startswith("XLA_FLAGS=") and flags.endswith("device_count=2")
        where = ["--distributed", "--coordinator=127.0.0.1:1234", "--processes=2"]
        assert words(text)[3:] == ["touch", *ODD, *where, f"--process={rank}"]
    assert rank == 1


@pytest.mark.parametrize(
    "arguments, ends, said",
    [
        (["-n", "2"], 2, "it takes a command"),
        (["-n", "0", "true"], 2, "must be at least 1"),
        (["true"], 2, "required: -n"),
        (["-n", "2", "./missing"], 127, "local: ./missing cannot be run: No such file"),
        (["-n", "2", "/"], 126, "local: / cannot be run: Permission denied"),
        (["--help"], 0, "launch/local -n 2 --devices_each=4"),
    ],
)
def test_mistakes_and_help(tmp_path, arguments, ends, said):
    code, out, err = run(tmp_path, [*SCRIPT, *arguments])
    assert code == ends
    assert said in out + err
