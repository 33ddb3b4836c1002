"""The Cloud TPU scripts against a gcloud that writes down its calls and answers by a script."""

import os
import shutil
import subprocess

import pytest
from stand_ins import LAUNCH, ODD, StandIns, executable, words

pytestmark = pytest.mark.slow

WHERE = ("--name=pod", "--zone=z-b", "--project=p")
AT = ["--zone=z-b", "--project=p", "--quiet"]
TPUS = ["gcloud", "compute", "tpus"]
GONE = "echo 'ERROR: (gcloud) NOT_FOUND: no such slice' >&2; exit 1"
BUSY = "echo 'ERROR: 503, try again' >&2; exit 1"
TRAIN = ("python", "-m", "train")


@pytest.fixture
def worker(tmp_path):
    """Return the home directory of a worker, whose python writes its arguments down."""
    home = tmp_path / "worker"
    (home / "venv/bin").mkdir(parents=True)
    executable(
        home / "venv/bin/python", '#!/bin/bash\nprintf "%s\\0" "$@" >~/arguments\neval "$DO"\n'
    )
    (home / "simclr_jax").mkdir()
    (home / "simclr_jax/launch").symlink_to(LAUNCH)
    (home / "simclr_jax/.installed").touch()
    return home


ON_WORKER = 'always *tpu-vm ssh* => cd "$STAND_INS/worker"; HOME=$PWD exec bash -c "$remote"'


def asked(gcloud):
    """Return what gcloud was asked for, in two words each."""
    return [" ".join(call[3:5]) for call in gcloud.calls()]


def test_create_asks_waits_and_installs(tmp_path, worker):
    repository = tmp_path / "my code"
    shutil.copytree(LAUNCH, repository / "launch")
    for name in ("pyproject.toml", "README.md", "simclr_jax/__pycache__/x", "configs/a.py"):
        (repository / name).parent.mkdir(exist_ok=True, parents=True)
        (repository / name).write_text("of here")
    look = "*queued-resources describe*"
    states = [GONE, "echo WAITING_FOR_RESOURCES", "echo offline >&2; exit 1", "echo ACTIVE"]
    gcloud = StandIns(tmp_path, "gcloud", *(f"{look} => {state}" for state in states))
    options = (*WHERE, "--type=v4-32", "--spot")
    ended = gcloud.run("tpu_create", *options, launch=repository / "launch")
    assert ended.returncode == 0, ended.stderr
    assert "pod is WAITING_FOR_RESOURCES" in ended.stderr

    *waiting, scp, ssh = gcloud.calls()
    request = ["--node-id=pod", "--accelerator-type=v4-32", "--runtime-version=tpu-ubuntu2204-base"]
    create = [*TPUS, "queued-resources", "create", "pod", *request, "--spot", *AT]
    describe = [*TPUS, "queued-resources", "describe", "pod", "--format=value(state.state)", *AT]
    assert waiting == [describe, create, describe, describe, describe]
    archive = "build/simclr_jax.tar.gz"
    assert scp[3:] == ["tpu-vm", "scp", archive, "pod:simclr_jax.tar.gz", "--worker=all", *AT]
    assert ssh[3:7] == ["tpu-vm", "ssh", "pod", "--worker=all"]

    # What the workers run, with an older code there; uv stands in for what it would download.
    shutil.copy(repository / archive, worker)
    (worker / ".local/bin").mkdir(parents=True)
    executable(worker / ".local/bin/uv", '#!/bin/bash\necho "$*" >>~/uv\n')
    install = ssh[7].removeprefix("--command=")
    subprocess.run(["bash", "-c", install], cwd=worker, env=home_of(worker), check=True)
    installed = (worker / "uv").read_text().splitlines()[-1]
    assert installed.endswith("--python=venv/bin/python -e simclr_jax[tpu,images,tf,gcs]")
    files = {str(file.relative_to(worker)) for file in (worker / "simclr_jax").rglob("*")}
    assert "simclr_jax/.installed" in files and "simclr_jax/configs/a.py" in files
    assert not [name for name in files if "__pycache__" in name]


def home_of(worker):
    return os.environ | {"HOME": str(worker)}


@pytest.mark.parametrize(
    "state, ends, said",
    [
        ("SUSPENDED", 75, "taken away"),
        ("FAILED", 1, "queued-resources describe pod --zone=z-b says why"),
    ],
)
def test_create_says_when_there_will_be_none(tmp_path, state, ends, said):
    gcloud = StandIns(tmp_path, "gcloud", f"*describe* => {GONE}", f"*describe* => echo {state}")
    ended = gcloud.run("tpu_create", *WHERE, "--type=v5litepod-16")
    assert ended.returncode == ends and said in ended.stderr
    assert "--runtime-version=v2-alpha-tpuv5-lite" in gcloud.calls()[1]
    assert "--spot" not in gcloud.calls()[1]


def test_workers_get_the_arguments_untouched(tmp_path, worker):
    gcloud = StandIns(tmp_path, "gcloud", ON_WORKER)
    ended = gcloud.run("tpu_run", *WHERE, "--", *TRAIN, *ODD, DO="echo loss 1; exit 0")
    assert (ended.returncode, ended.stdout) == (0, "loss 1\n"), ended.stderr
    (ssh,) = gcloud.calls()
    assert ssh[3:7] == ["tpu-vm", "ssh", "pod", "--worker=all"] and ssh[-3:] == AT
    arguments = (worker / "arguments").read_text().split("\0")[:-1]
    assert arguments == ["-m", "train", *ODD, "--distributed"]


@pytest.mark.parametrize(
    "ends, said",
    [
        (75, "ended 10.5 75\\nended 10.6 75\\n"),
        (1, "noise\\nended 9.9 134\\nended 9.25 1\\nended 8 0\\n"),  # the mistake came first
        (134, "ended 10.5 134\\nended 11.5 1\\n"),
        (133, ""),
        (69, "ended 10.5 134\\nended 0 69\\n"),  # the others waited for one without the code
        (76, "ended 10.5 75\\nended 0 76\\n"),
    ],
)
def test_the_worker_that_failed_first_is_the_answer(tmp_path, ends, said):
    gcloud = StandIns(tmp_path, "gcloud", "*ssh* => exit 133", f"*--ended* => printf '{said}'")
    assert gcloud.run("tpu_run", *WHERE, "--", *TRAIN).returncode == ends
    first, second = (call[-4].split("--id=")[1].split()[0] for call in gcloud.calls())
    assert first == second


@pytest.mark.parametrize("code, ends", [(75, 75), (134, 134), (1, 70)])
def test_the_code_stays_where_no_worker_says_how_it_ended(tmp_path, code, ends):
    gcloud = StandIns(tmp_path, "gcloud", f"*ssh* => exit {code}", "*--ended* => " + BUSY)
    assert gcloud.run("tpu_run", *WHERE, "--", *TRAIN).returncode == ends


def test_what_reachable_workers_say_counts_without_the_others(tmp_path):
    said = "*--ended* => echo ended 10.5 1; exit 255"
    gcloud = StandIns(tmp_path, "gcloud", "*ssh* => exit 134", said)
    assert gcloud.run("tpu_run", *WHERE, "--", *TRAIN).returncode == 1


def test_a_worker_without_the_code_says_so(tmp_path, worker):
    (worker / "simclr_jax/.installed").unlink()
    gcloud = StandIns(tmp_path, "gcloud", "*ssh* => exit 134", ON_WORKER)  # 134: of worker 0
    ended = gcloud.run("tpu_run", *WHERE, "--", *TRAIN)
    assert ended.returncode == 69 and "lacks the code" in ended.stderr
    assert gcloud.run("tpu_run", *WHERE, "--", *TRAIN).returncode == 69
    assert gcloud.run("tpu_run", *WHERE, "--stop").returncode == 69


def test_a_worker_says_how_its_command_ended(tmp_path, worker):
    gcloud = StandIns(tmp_path, "gcloud", ON_WORKER)
    assert gcloud.run("tpu_run", *WHERE, "--", *TRAIN, DO="exit 1").returncode == 1
    assert asked(gcloud) == ["tpu-vm ssh"] * 2
    assert gcloud.run("tpu_run", *WHERE, "--stop").stdout.split()[::2] == ["ended", "1"]


def test_requeue_creates_again_after_a_preemption_and_goes_on(tmp_path):
    node, request = "*tpu-vm describe*", "*queued-resources describe*"
    run = "*tpu-vm ssh*detached*"
    gcloud = StandIns(
        tmp_path,
        "gcloud tar",
        # Round 1: there, and the run dies with it.
        f"{node} => echo READY",
        f"{run} => exit 255",
        f"{run} => exit 255",
        # Round 2: gone; deleted, asked for, taken away again before it was ready.
        f"{node} => echo PREEMPTED",
        f"{request} => echo SUSPENDED",
        f"{request} => {GONE}",
        f"{request} => echo SUSPENDED",
        # Round 3: asked for anew; the run is stopped after a save.
        f"{node} => {GONE}",
        f"{request} => {GONE}",
        f"{request} => {GONE}",
        f"{request} => echo ACTIVE",
        f"{run} => exit 75",
        f"{run} => echo ended 1.5 75",
        # Round 4: still there, and the code is not: it was interrupted.
        f"{node} => echo READY",
        f"{run} => exit 134",
        f"{run} => echo ended 9.5 134; echo ended 0 69",
        f"{node} => echo READY",
        f"{request} => echo ACTIVE",
        f"{request} => echo ACTIVE",
        # Round 5: done.
        f"{node} => echo READY",
    )
    options = (*WHERE, "--type=v4-32", "--spot", "--delete")
    ended = gcloud.run("tpu_requeue", *options, "--", *TRAIN, *ODD)
    assert ended.returncode == 0, ended.stderr
    node, request = "tpu-vm describe", "queued-resources describe"
    run, ask, delete = "tpu-vm ssh", "queued-resources create", "queued-resources delete"
    install = ["tpu-vm scp", run]
    assert [two for two in asked(gcloud) if "tpu" in two or "queued" in two] == [
        *(node, run, run),
        *(node, request, delete, request, ask, request),
        *(node, request, request, ask, request, *install, run, run),
        *(node, run, run, node, request, request, *install),
        *(node, run, delete),
    ]
    removals = [call for call in gcloud.calls() if "delete" in call]
    assert removals == [[*TPUS, "queued-resources", "delete", "pod", "--force", *AT]] * 2
    last = gcloud.calls()[-2]
    assert words(last[-4].split(" -- ")[1]) == [*TRAIN, *ODD, "--distributed"]


REQUEUE = ("tpu_requeue", *WHERE, "--type=v4-32", "--", *TRAIN)
READY = "always *tpu-vm describe* => echo READY"
DELETES = "gcloud compute tpus queued-resources delete pod --force --zone=z-b --project=p --quiet"


def test_requeue_stops_at_a_mistake_and_says_how_to_delete_the_slice(tmp_path):
    said = "*--ended* => echo ended 5.5 1"
    gcloud = StandIns(tmp_path, "gcloud", READY, said, "always *ssh* => exit 1")
    ended = gcloud.run("tpu_requeue", *WHERE, "--type=v4-32", "--delete", "--", *TRAIN)
    assert ended.returncode == 1
    assert asked(gcloud) == ["tpu-vm describe", "tpu-vm ssh", "tpu-vm ssh", "tpu-vm describe"]
    assert ended.stderr.splitlines()[-1].endswith(DELETES)


def test_requeue_gives_up_in_the_end(tmp_path):
    gcloud = StandIns(tmp_path, "gcloud", "always *describe* => echo offline >&2; exit 1")
    ended = gcloud.run(*REQUEUE, TRIES="2")
    assert ended.returncode == 75 and ended.stderr.count("offline") == 2
    assert ended.stderr.splitlines()[-1].endswith(DELETES)


NONE, ACTIVE = (f"*queued-resources describe* => {said}" for said in (GONE, "echo ACTIVE"))


@pytest.mark.parametrize(
    "answers, ends",
    [
        (["*describe* => " + BUSY], 75),
        ([NONE, "*create* => " + BUSY, "*tpu-vm describe* => " + GONE], 75),
        ([ACTIVE, ACTIVE, "*scp* => exit 1", "*tpu-vm describe* => echo PREEMPTED"], 75),
        ([ACTIVE, ACTIVE, "*tpu-vm ssh* => exit 255", READY], 75),
        ([ACTIVE, ACTIVE, "*tpu-vm ssh* => exit 1", "*tpu-vm describe* => " + BUSY], 75),
        ([ACTIVE, ACTIVE, "*tpu-vm ssh* => exit 1", "*tpu-vm describe* => echo READY"], 1),
    ],
)
def test_create_ends_with_75_where_it_may_do_better_later(tmp_path, answers, ends):
    gcloud = StandIns(tmp_path, "gcloud tar", *answers)
    assert gcloud.run("tpu_create", *WHERE, "--type=v4-32").returncode == ends
    left = (tmp_path / "answers").read_text().splitlines()
    assert not [answer for answer in left if not answer.startswith(("- =>", "always"))]


@pytest.mark.parametrize(
    "answers",
    [
        # Installing: the slice is taken away, then gcloud fails, with the slice there.
        ["*tpu-vm describe* => " + GONE, NONE, NONE, ACTIVE, "*ssh* => exit 255", READY],
        ["*tpu-vm describe* => " + GONE, NONE, NONE, ACTIVE, "*scp* => exit 1", READY],
        # Asking for the slice.
        ["*tpu-vm describe* => " + GONE, NONE, "*describe* => " + BUSY, READY],
        ["*tpu-vm describe* => " + GONE, NONE, NONE, "*create* => " + BUSY, READY],
        # The command: gcloud says 1, and no worker does.
        [READY, "*ssh* => " + BUSY],
        [READY, "*ssh* => " + BUSY, "*ssh* => " + BUSY],
    ],
)
def test_requeue_goes_on_after_a_failure_that_passes(tmp_path, answers):
    ended = StandIns(tmp_path, "gcloud tar", *answers).run(*REQUEUE)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("going on") == 1


@pytest.mark.parametrize(
    "answers, ends, installs",
    [
        # The request fails each time; the worker cannot install; gcloud cannot run commands.
        (["always *tpu-vm describe* => echo FAILED", "always *describe* => echo FAILED"], 1, 0),
        ([READY, "always *describe* => echo ACTIVE", "always *.installed* => exit 69"], 69, 4),
        ([READY, "always *ssh* => " + BUSY], 70, 0),
    ],
)
def test_requeue_gives_up_on_a_failure_that_stays(tmp_path, answers, ends, installs):
    gcloud = StandIns(tmp_path, "gcloud tar", *answers)
    ended = gcloud.run(*REQUEUE)
    assert ended.returncode == ends
    assert ended.stderr.count("going on") == 4
    assert asked(gcloud).count("tpu-vm scp") == installs
    assert ended.stderr.splitlines()[-1].endswith(DELETES)


def test_requeue_forgets_failures_that_have_passed(tmp_path):
    failure, preemption = "*ssh* => " + BUSY, "*ssh* => exit 75"
    answers = [*[failure] * 2 * 4, *[preemption] * 2, *[failure] * 2 * 4]
    ended = StandIns(tmp_path, "gcloud", READY, *answers).run(*REQUEUE)
    assert ended.returncode == 0 and ended.stderr.count("going on") == 9


def test_requeue_leaves_a_run_alone_that_was_stopped(tmp_path, worker):
    stopping = f'HOME={worker} bash "{LAUNCH}/detached" --stop >/dev/null & echo; sleep 60; exit 75'
    gcloud = StandIns(tmp_path, "gcloud", READY, ON_WORKER)
    ended = gcloud.run(*REQUEUE, DO=f"trap 'exit 75' TERM; {stopping}")
    assert ended.returncode == 76, ended.stderr
    assert "was stopped" in ended.stderr and ended.stderr.splitlines()[-1].endswith(DELETES)
    assert gcloud.run(*REQUEUE, DO="").returncode == 0  # a new start forgets it


def test_requeue_deletes_the_slice_only_when_done(tmp_path):
    gcloud = StandIns(tmp_path, "gcloud", READY, "*delete* => " + BUSY)
    ended = gcloud.run("tpu_requeue", *WHERE, "--type=v4-32", "--delete", "--", *TRAIN)
    assert ended.returncode == 0 and DELETES not in ended.stderr
    assert asked(gcloud)[2:] == ["queued-resources delete"] * 2


def test_a_dry_run_prints_what_would_run(tmp_path):
    gcloud = StandIns(tmp_path, "gcloud tar")
    options = (*WHERE, "--type=v6e-32", "--extras=", "--dry-run")
    ended = gcloud.run("tpu_requeue", *options, "--", *TRAIN, *ODD)
    assert ended.returncode == 0 and not gcloud.calls()
    lines = [words(line) for line in ended.stdout.splitlines()]
    assert all(line[0] in ("gcloud", "mkdir", "tar") for line in lines)
    create = next(line for line in lines if "create" in line)
    assert "--runtime-version=v2-alpha-tpuv6e" in create and create[-3:] == AT
    assert words(lines[-1][-4].split(" -- ")[1]) == [*TRAIN, *ODD, "--distributed"]
    assert "-e 'simclr_jax[tpu]'" in lines[-2][-4]


@pytest.mark.parametrize(
    "script, arguments, said",
    [
        ("tpu_create", ["--name=pod", "--zone=z"], "--type must be given"),
        ("tpu_create", ["--name=a b", "--zone=z", "--type=v4-8"], '--name is "a b": it takes'),
        ("tpu_create", [*WHERE, "--type=v4-8", "--extras=x]; id"], "write it like images,tf"),
        ("tpu_create", ["pod"], "pod is no option"),
        ("tpu_run", ["--name=pod", "python"], "--name and --zone must be given"),
        ("tpu_run", ["--stopp", "python"], "--stopp is no option"),
        ("tpu_requeue", [*WHERE, "--batch=1", "python"], "--batch=1 is no option"),
        ("tpu_requeue", [*WHERE, "python"], "--type must be given"),
    ],
)
def test_mistakes(tmp_path, script, arguments, said):
    gcloud = StandIns(tmp_path, "gcloud")
    ended = gcloud.run(script, *arguments)
    assert ended.returncode == 1 and not gcloud.calls()
    assert said in ended.stderr and len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", ["tpu_create", "tpu_run", "tpu_requeue"])
def test_help(tmp_path, script):
    ended = StandIns(tmp_path, "gcloud").run(script, "--help")
    assert ended.returncode == 0 and f"launch/{script} --name=pod" in ended.stdout
