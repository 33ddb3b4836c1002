"""SLURM, Kubernetes and a machine with GPUs: what they run, and what they make of how it ends."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from stand_ins import LAUNCH, ODD, StandIns, executable, until, words

pytestmark = pytest.mark.slow

TRAIN = ("python", "-m", "train", *ODD)

# srun runs the tasks one after the other, each with its SLURM_PROCID, and gives the highest code.
SRUN = (
    "srun* => while [[ $1 == -* ]]; do shift; done; highest=0;"
    " for SLURM_PROCID in 0 1 2; do export SLURM_PROCID; code=0; $* || code=$?;"
    " ((code <= highest)) || highest=$code; done; exit $highest"
).replace("$* ||", '"$@" ||')

# This one runs one task, and once the process says so signals what it has itself started.
SIGNALLING_SRUN = (
    "srun* => while [[ $1 == -* ]]; do shift; done; export SLURM_PROCID=0;"
    ' "$@" & task=$!; until [[ -e $STAND_INS/started ]]; do sleep .02; done;'
    " kill -TERM $task; wait $task"
)


@pytest.fixture
def job(tmp_path):
    """Return the variables of a SLURM job that was submitted from a copy of this repository."""
    submitted = tmp_path / "my code"
    submitted.mkdir()
    (submitted / "launch").symlink_to(LAUNCH)
    return {"SLURM_JOB_ID": "42", "SLURM_SUBMIT_DIR": str(submitted), "SLURM_CPUS_PER_TASK": "8"}


def slurm(tmp_path, job, *arguments):
    """Run the job; the I-th process of `python` ends with the I-th of $CODES."""
    stand_ins = StandIns(tmp_path, "srun scontrol", SRUN)
    executable(
        stand_ins.programs / "python",
        '#!/bin/bash\nprintf "%s\\0" "$@" >"$STAND_INS/arguments.$SLURM_PROCID"\n'
        'codes=($CODES); exit "${codes[SLURM_PROCID]}"\n',
    )
    return stand_ins, stand_ins.run("slurm.sbatch", *arguments, **job)


@pytest.mark.parametrize(
    "codes, ends, requeued",
    [
        ("0 0 0", 0, False),
        ("75 75 75", 75, True),
        ("0 137 1", 137, True),  # the first failure decides, not srun's highest code
        ("1 134 134", 1, False),
        ("130 134 0", 130, False),
    ],
)
def test_slurm_requeues_what_was_preempted_or_killed(tmp_path, job, codes, ends, requeued):
    stand_ins, ended = slurm(tmp_path, job | {"CODES": codes}, *TRAIN)
    assert ended.returncode == ends, ended.stderr
    srun, *scontrol = stand_ins.calls()
    assert srun[:3] == ["srun", "--kill-on-bad-exit=0", "--cpus-per-task=8"]
    assert scontrol == [["scontrol", "requeue", "42"]] * requeued
    for rank in range(3):
        arguments = (tmp_path / f"arguments.{rank}").read_text().split("\0")[:-1]
        assert arguments == [*TRAIN[1:], "--distributed"]
    assert not list(Path(job["SLURM_SUBMIT_DIR"]).glob("*.ends"))


def test_slurm_does_not_requeue_for_ever(tmp_path, job):
    tired = job | {"CODES": "75 75 75", "SLURM_RESTART_COUNT": "3", "TRIES": "3"}
    stand_ins, ended = slurm(tmp_path, tired, *TRAIN)
    assert ended.returncode == 75 and len(stand_ins.calls()) == 1


def test_slurm_warns_the_processes_in_time(tmp_path, job):
    text = (LAUNCH / "slurm.sbatch").read_text()
    header = text[: text.index("set -euo")]
    options = re.findall(r"^#SBATCH (\S+)$", header, re.MULTILINE)
    assert {"--signal=TERM@120", "--requeue", "--open-mode=append"} <= set(options)
    # Where SLURM tracks processes by cgroups it signals only what it has itself started.
    stand_ins = StandIns(tmp_path, "srun scontrol", SIGNALLING_SRUN)
    save = "sleep .2; touch saved; exit 75"
    waiting = f"trap '{save}' TERM; touch started; while :; do sleep .05; done"
    executable(stand_ins.programs / "python", f"#!/bin/bash\ncd $STAND_INS; {waiting}\n")
    ended = stand_ins.run("slurm.sbatch", "python", **job)
    assert ended.returncode == 75 and (tmp_path / "saved").exists(), ended.stderr
    assert ["scontrol", "requeue", "42"] in stand_ins.calls()


def test_slurm_keeps_the_code_of_a_process_that_ends_as_the_signal_comes(tmp_path, job):
    many = (
        "srun* => while [[ $1 == -* ]]; do shift; done; for SLURM_PROCID in {1..24}; do"
        ' export SLURM_PROCID; { "$@"; echo $? >>"$STAND_INS/codes"; } & done; wait; exit 3'
    )
    stand_ins = StandIns(tmp_path, "srun scontrol", many)
    script = "#!/bin/bash\ntrap '' TERM; kill -TERM $PPID; exit 3\n"
    executable(stand_ins.programs / "python", script)
    assert stand_ins.run("slurm.sbatch", "python", **job).returncode == 3
    assert (tmp_path / "codes").read_text().split() == ["3"] * 24


def test_slurm_requeues_when_no_process_lived_to_say_how_it_ended(tmp_path, job):
    stand_ins = StandIns(tmp_path, "srun scontrol", "srun* => exit 137")
    ended = stand_ins.run("slurm.sbatch", "python", **job)
    assert ended.returncode == 137, ended.stderr
    assert stand_ins.calls()[1:] == [["scontrol", "requeue", "42"]]
    assert not list(Path(job["SLURM_SUBMIT_DIR"]).glob("*.ends"))


@pytest.mark.parametrize("given, seen", [({}, "cuda,cpu"), ({"JAX_PLATFORMS": "cpu"}, "cpu")])
def test_slurm_insists_on_gpus(tmp_path, job, monkeypatch, given, seen):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    stand_ins = StandIns(tmp_path, "srun", 'srun* => echo "$JAX_PLATFORMS"')
    assert stand_ins.run("slurm.sbatch", "python", **job, **given).stdout == f"{seen}\n"


@pytest.mark.parametrize(
    "node, tasks, ends",
    [
        ({"SLURM_GPUS_PER_NODE": "8"}, "8", 0),
        ({"SLURM_GPUS_PER_NODE": "a100:8"}, "8", 0),
        ({"SLURM_GPUS_ON_NODE": "8"}, "8", 0),
        ({}, "8", 0),
        ({"SLURM_GPUS_PER_NODE": "8"}, "", 0),
        ({"SLURM_GPUS_PER_NODE": "a100:4"}, "8", 1),
        ({"SLURM_GPUS_ON_NODE": "4"}, "8", 1),
    ],
)
def test_slurm_has_a_task_for_each_gpu(tmp_path, job, node, tasks, ends):
    stand_ins = StandIns(tmp_path, "srun")
    allocation = job | node | {"SLURM_NTASKS_PER_NODE": tasks}
    ended = stand_ins.run("slurm.sbatch", "python", **allocation)
    assert ended.returncode == ends and len(stand_ins.calls()) == 1 - ends
    assert ended.stderr.count("\n") == ends
    assert ("a node has 4 GPUs and 8 tasks" in ended.stderr) == bool(ends)


def test_slurm_dry_run_mistakes_and_help(tmp_path, job):
    stand_ins, ended = slurm(tmp_path, job, "--dry-run", *TRAIN)
    assert ended.returncode == 0 and not stand_ins.calls()
    srun = words(ended.stdout.splitlines()[-1])
    assert srun[0] == "srun" and srun[-len(TRAIN) - 1 :] == [*TRAIN, "--distributed"]
    ended = stand_ins.run("slurm.sbatch", *TRAIN)
    assert ended.returncode == 1 and "submit it: sbatch launch/slurm.sbatch" in ended.stderr
    ended = stand_ins.run("slurm.sbatch", "--help")
    assert "sbatch --nodes=4 launch/slurm.sbatch" in ended.stdout and "#" not in ended.stdout


@pytest.fixture
def kubernetes():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    return service, job


def test_kubernetes_processes_find_one_another(kubernetes, tmp_path):
    service, job = kubernetes
    name, domain = job["metadata"]["name"], service["metadata"]["name"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert service["spec"]["clusterIP"] == "None" and pod["subdomain"] == domain
    assert service["spec"]["selector"] == {"job-name": name}
    count = job["spec"]["completions"]
    assert job["spec"]["parallelism"] == count and job["spec"]["completionMode"] == "Indexed"

    # Kubernetes replaces $(NAME) and nothing else; there is no shell.
    stand_ins = StandIns(tmp_path, "python")
    (variable,) = [entry["name"] for entry in container["env"] if "valueFrom" in entry]
    for index in range(count):
        line = [*container["command"], *container["args"]]
        line = [word.replace(f"$({variable})", str(index)) for word in line]
        subprocess.run(line, env=stand_ins.environment, check=True)
    where = ["--distributed", f"--coordinator={name}-0.{domain}:8476", f"--processes={count}"]
    for index, call in enumerate(stand_ins.calls()):
        assert call[:3] == ["python", "-m", "simclr_jax.main"]
        assert call[-4:] == [*where, f"--process={index}"]
        known = (LAUNCH.parent / "simclr_jax/main.py").read_text()
        given = {word.removeprefix("--").partition("=")[0] for word in call[3:]}
        flag = r'flags\.DEFINE\w*\(\s*(?:flag_kinds\.\w+\([^)]*\),\s*)?"(\w+)"'
        config = {name for name in given if name.startswith("config")}
        assert given - config <= set(re.findall(flag, known))


@pytest.mark.parametrize(
    "code, disrupted, action",
    [
        (75, 0, "Ignore"),
        (75, 1, "Ignore"),
        (1, 0, "FailJob"),
        (1, 1, "Ignore"),
        (137, 1, "Ignore"),
        (134, 0, "Count"),
        (139, 0, "Count"),  # an abort of a container's first process
    ],
)
def test_kubernetes_knows_the_exit_codes(kubernetes, code, disrupted, action):
    def matches(rule):
        codes = rule.get("onExitCodes", {"values": []})
        conditions = [condition["type"] for condition in rule.get("onPodConditions", [])]
        return code in codes["values"] or (disrupted and "DisruptionTarget" in conditions)

    spec = kubernetes[1]["spec"]
    rules = spec["podFailurePolicy"]["rules"]
    assert next((rule["action"] for rule in rules if matches(rule)), "Count") == action
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_kubernetes_limits_crashes_in_proportion_to_the_machines(kubernetes):
    spec = kubernetes[1]["spec"]
    assert spec["backoffLimit"] == 100 * spec["completions"]
    assert "CHANGE" in re.search("backoffLimit:.*", (LAUNCH / "kubernetes.yaml").read_text())[0]


def test_a_signal_to_gpu_single_reaches_the_training(tmp_path):
    stand_ins = StandIns(tmp_path, "nvidia-smi")
    waiting = "trap 'touch saved; exit 75' TERM; touch started; while :; do sleep .05; done"
    script = subprocess.Popen(
        [LAUNCH / "gpu_single", "bash", "-c", waiting], env=stand_ins.environment, cwd=tmp_path
    )
    until((tmp_path / "started").exists)
    script.terminate()
    assert script.wait(20) == 75 and (tmp_path / "saved").exists()


def test_gpu_single_insists_on_gpus_and_starts_again(tmp_path):
    stand_ins = StandIns(tmp_path, "nvidia-smi train", "train* => exit 75")
    report = 'always train* => env >"$STAND_INS/env"; exit 1'
    (tmp_path / "answers").write_text(f"train* => exit 75\n{report}\n")
    ended = stand_ins.run("gpu_single", "--gpus=1,3", "train", *ODD, PAUSE="0")
    assert ended.returncode == 1
    assert stand_ins.calls() == [["nvidia-smi"], ["train", *ODD], ["train", *ODD]]
    seen = (tmp_path / "env").read_text().splitlines()
    assert {"JAX_PLATFORMS=cuda,cpu", "CUDA_VISIBLE_DEVICES=1,3"} <= set(seen)


def test_gpu_single_mistakes_dry_run_and_help(tmp_path):
    stand_ins = StandIns(tmp_path, "nvidia-smi", "nvidia-smi* => echo broken >&2; exit 9")
    ended = stand_ins.run("gpu_single", "train")
    assert ended.returncode == 1 and "finds no GPU" in ended.stderr
    ended = stand_ins.run("gpu_single", "--gpus=a", "train")
    assert ended.returncode == 1 and "write it like 0,1" in ended.stderr
    ended = stand_ins.run("gpu_single", "--dry-run", "train", *ODD)
    assert words(ended.stdout)[-len(ODD) - 1 :] == ["train", *ODD]
    assert "launch/gpu_single [--gpus=0,1]" in stand_ins.run("gpu_single", "--help").stdout


@pytest.mark.parametrize(
    "script",
    sorted(
        f.name
        for f in LAUNCH.iterdir()
        if f.suffix not in (".sh", ".py", ".yaml", ".sbatch") and f.is_file()
    ),
)
def test_scripts_are_executable(script):
    assert os.access(LAUNCH / script, os.X_OK)
