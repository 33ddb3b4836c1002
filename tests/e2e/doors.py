"""Run the doors as a user would, on a recipe small enough for a test.

A process that imports JAX takes seconds to get anywhere. So most tests fork a server that has
imported everything once (and started no device); what they meet from `entry.run` on, arguments,
streams and exit code included, is what `python -m simclr_jax.main` does.
"""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import logged
import numpy as np

ROOT = Path(__file__).parents[2]
MAIN = (sys.executable, "-m", "simclr_jax.main")

TINY = ("--config=tests/e2e/tiny.py",)
UNLABELLED = ("--config.eval.probe=False", "--config.eval.knn=False")


def write_images(path: Path, labels: bool = True, side: int = 12) -> Path:
    """Write an archive of random images, each class of another brightness."""
    random = np.random.RandomState(0)
    label = np.arange(60) % 4
    pixels = random.randint(0, 100, (60, side, side, 1)) + 40 * label[:, None, None, None]
    arrays = {"images": pixels.astype(np.uint8)} | ({"labels": label} if labels else {})
    np.savez(path, **arrays)
    return path


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a user sees of a door: its exit code and what it printed."""

    code: int
    out: str
    err: str


@dataclasses.dataclass(frozen=True)
class Blow:
    """A signal that a run gets when it logs a step, once a file exists."""

    signal: int
    step: int
    file: Path | None = None

    def arm(self) -> None:
        from simclr_jax.train.metrics import MetricsWriter

        write = MetricsWriter.write

        def struck(writer, step, values):
            if step == self.step and "loss" in values:
                while self.file and not self.file.exists():
                    time.sleep(0.005)
                os.kill(os.getpid(), self.signal)
            write(writer, step, values)

        MetricsWriter.write = struck  # type: ignore[method-assign]


@dataclasses.dataclass(frozen=True)
class Move:
    """A directory that is moved away when a run logs a step."""

    directory: Path
    to: Path
    step: int

    def arm(self) -> None:
        from simclr_jax.train.metrics import MetricsWriter

        write = MetricsWriter.write

        def moved(writer, step, values):
            if step == self.step and "loss" in values:
                self.directory.rename(self.to)
            write(writer, step, values)

        MetricsWriter.write = moved  # type: ignore[method-assign]


@dataclasses.dataclass(frozen=True)
class SlowCompile:
    """A signal that a run gets while its step is compiled, for a minute and deaf to all signals."""

    signal: int
    marker: Path  # written when compiling is over

    def arm(self) -> None:
        import hashlib

        import jax

        def compile_slowly(lowered, *_):
            os.kill(os.getpid(), self.signal)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)  # outside Python, as XLA is
            self.marker.touch()

        jax.stages.Lowered.compile = compile_slowly  # type: ignore[method-assign]


def _run(
    door: str,
    arguments: tuple[str, ...],
    directory: str,
    environment: dict[str, str],
    blow: Blow | Move | SlowCompile | None,
) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.path.insert(0, "")  # as `python -m` does
    sys.argv = [f"simclr_jax/{door}.py", *arguments]

    from simclr_jax import entry

    # As in a terminal: a shell's jobs in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if blow:
        blow.arm()
    entry.run(importlib.import_module(f"simclr_jax.{door}").main)


def run(
    tmp_path: Path,
    *arguments: str,
    door: str = "main",
    devices: int | None = 1,
    blow: Blow | Move | SlowCompile | None = None,
) -> Ended:
    """Run `python -m simclr_jax.DOOR` to its end, on some CPU devices or those that it chooses."""
    forced = "--xla_force_host_platform_device_count="
    own = "" if devices is None else f"{forced}{devices}"
    flags = os.environ["XLA_FLAGS"].replace(f"{forced}8", own)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["ml_collections.config_flags", "simclr_jax.stages.pretrain", "PIL.Image"]
    )
    process = context.Process(
        target=_run, args=(door, arguments, os.fspath(tmp_path), {"XLA_FLAGS": flags}, blow)
    )
    process.start()
    process.join(300)
    assert process.exitcode is not None, "still running after five minutes"
    out, err = ((tmp_path / name).read_text() for name in ("out", "err"))
    return Ended(process.exitcode, out, err)


def run_fresh(*command: str, **environment: str) -> Ended:
    """Run a command in an interpreter of its own."""
    one_device = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": one_device} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def block(directory: Path, *packages: str) -> dict[str, str]:
    """Return an environment in which importing any of `packages` fails."""
    # None is how Python marks a module that is not there, for imports and for who asks beforehand.
    code = f"import sys\nsys.modules.update(dict.fromkeys({packages!r}))\n"
    (directory / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.fspath(directory)}


def metrics(workdir: Path) -> list[dict]:
    """Read `metrics.jsonl`, without what depends on the clock."""
    return logged.lines(workdir)


def losses(workdir: Path) -> dict[int, float]:
    """Read the loss of each logged step."""
    return {line["step"]: line["loss"] for line in metrics(workdir) if "loss" in line}


def content(workdir: Path) -> dict[str, bytes]:
    """Read every file of a run."""
    files = [path for path in workdir.rglob("*") if path.is_file()]
    return {os.fspath(path.relative_to(workdir)): path.read_bytes() for path in files}


def leaves(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Read the arrays of a checkpoint as Orbax finds them."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(workdir / "checkpoints" / str(step))
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
