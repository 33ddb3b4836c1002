"""Few open files, a full cache of programs, an output that nobody takes: one line each."""

import os
import resource
import sys

import disks
import doors
import pytest

pytestmark = pytest.mark.e2e

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")


@pytest.mark.parametrize("limit", [12, 24, pytest.param(32, marks=pytest.mark.slow)])
def test_few_open_files(limit, finished, tmp_path):
    arguments = (*doors.MAIN, *finished.arguments, f"--workdir={tmp_path / 'run'}")
    line = ["bash", "-c", f'ulimit -n {limit}; exec "$@"', "bash", *arguments]
    ended = doors.run_fresh(*line)
    if limit == 32 and ended.code == 0:
        assert not ended.err and doors.metrics(tmp_path / "run") == doors.metrics(finished.workdir)
        return
    assert ended.code == 1 and ended.err.count("\n") == 1, ended
    assert ended.err.startswith("error: ") and "ulimit -n" in ended.err


def test_the_limit_is_raised_as_far_as_we_may():
    code = "import resource; from simclr_jax import entry; entry._allow_files(); "
    code += "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    hard = min(900, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    line = ["bash", "-c", f'ulimit -Sn 100; ulimit -Hn {hard}; exec "$@"', "bash"]
    done = doors.run_fresh(*line, sys.executable, "-c", code)
    assert done.out.split() == [str(hard), str(hard)], done


CACHE = """
import os, sys, warnings
import jax, numpy as np
from simclr_jax import parallel
parallel.use_compilation_cache()
for i in (2, 3):
    print(jax.jit(lambda x: (x * i).sum())(np.arange(64.0)))
print(len(os.listdir(os.environ["JAX_COMPILATION_CACHE_DIR"])))
"""


def compiled(directory):
    done = doors.run_fresh(
        sys.executable,
        "-c",
        CACHE,
        JAX_COMPILATION_CACHE_DIR=os.fspath(directory),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    assert done.code == 0 and done.out.split()[:2] == ["4032.0", "6048.0"], done
    return done


@root
@pytest.mark.slow
def test_a_full_cache_of_programs_is_a_note_and_what_is_half_written_is_made_anew(tmp_path):
    with disks.mounted(tmp_path / "disk") as disk:
        disks.fill(disk)
        done = compiled(disk)
        assert done.err.count("\n") == 1, done.err
        assert "cannot be kept in" in done.err and "No space left" in done.err
        disks.empty(disk)
        done = compiled(disk)
        assert not done.err and int(done.out.split()[2]) >= 2
        for path in disk.iterdir():
            os.truncate(path, path.stat().st_size // 2)  # killed while it was written
        done = compiled(disk)
        assert done.err.count("\n") == 1 and "cannot be read from" in done.err, done.err
        assert not compiled(disk).err


@root
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_output_that_is_full(stream, finished, tmp_path):
    line = [*doors.MAIN, *finished.arguments, f"--workdir={tmp_path / 'run'}"]
    line += ["--config.train.batch_size=0"] if stream == "stderr" else []
    shell = f'exec "$@" {"2" if stream == "stderr" else ""}>/dev/full'
    ended = doors.run_fresh("bash", "-c", shell, "bash", *line)
    assert ended.code == 1 and "Traceback" not in ended.err, ended
    if stream == "stdout":
        assert ended.err.count("\n") == 1 and "No space left" in ended.err, ended.err
