"""Runs of one command for `table.py`: started, struck, waited for, compared."""

from __future__ import annotations

import collections
import dataclasses
import gc
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
import warnings
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import strikes
from strikes import Strike

ROOT = Path(__file__).parents[1]
HEARTBEAT_SECS = 10
GRACE_SECS = 90  # as launch/local
LONGEST_RUN = 400.0
XLA_FLAGS = (  # a second process compiles all anew each time: JAX keeps what the first one did
    "--xla_force_host_platform_device_count=1",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
CLOCK = ("images_per_second", "input_wait", "crc32")  # of metrics.jsonl, that no two runs share
AGAIN = (75, 134, 137, 139, 143)  # as launch/until_done

_ONE_READER = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Ended:
    """How all processes of a run ended.

    Attributes:
      code: of the process that failed first, as a shell would see it.
      out: what the first process printed.
      err: what all printed on stderr.
      survived: seconds from the first end to the last.
      hit: whether the strike took place.
    """

    code: int
    out: str
    err: str
    survived: float
    hit: bool

    @property
    def one_line(self) -> bool:
        """Tell whether it ended by telling the user one thing to put right."""
        said = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return self.code == 1 and len(said) == 1 and "Traceback" not in self.err


def use_small_compiles(cache: Path) -> None:
    """Set what JAX and XLA read when a run starts; compiled programs are shared by all runs."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = " ".join(XLA_FLAGS)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.fspath(cache))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def write_images(path: Path) -> None:
    """Write 60 random images, each of four classes of another brightness."""
    drawn = np.random.RandomState(0)
    label = np.arange(60) % 4
    pixels = drawn.randint(0, 100, (60, 12, 12, 1)) + 40 * label[:, None, None, None]
    np.savez(path, images=pixels.astype(np.uint8), labels=label)


class Running:
    """A run under way.

    Args:
      workdir: of the run; files of this class go beside it, into `notes`.
      arguments: of `simclr_jax.main`, without --workdir.
      processes: how many.
      strike: what happens to it, or None.
      process: to which of them.
      survey: write down how long each span of process N lasts, to `notes/survey.N`.
    """

    def __init__(
        self,
        workdir: Path,
        notes: Path,
        arguments: tuple[str, ...],
        processes: int = 1,
        strike: Strike | None = None,
        process: int = 0,
        survey: bool = False,
    ):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["ml_collections.config_flags", "simclr_jax.pipeline.run", "tensorboardX"]
        )
        notes.mkdir(parents=True, exist_ok=True)
        self._notes = notes
        (notes / "hit").unlink(missing_ok=True)
        arguments = (*arguments, f"--workdir={workdir}")
        if processes > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            arguments += ("--distributed", f"--coordinator=127.0.0.1:{port}")
            arguments += (f"--processes={processes}", f"--heartbeat_secs={HEARTBEAT_SECS}")
        self._processes: list[BaseProcess] = []
        for rank in range(processes):
            own = (*arguments, f"--process={rank}") if processes > 1 else arguments
            args = (own, workdir, notes, rank, strike if rank == process else None, survey)
            self._processes.append(context.Process(target=_run, args=args))
            self._processes[-1].start()

    @property
    def running(self) -> bool:
        """Tell whether any process has not ended yet."""
        return any(process.exitcode is None for process in self._processes)

    def wait(self) -> Ended:
        """Wait for all processes; those that outlive a failed one too long are killed."""
        began = time.monotonic()
        ends: dict[int, float] = {}
        first, deadline = 0, began + LONGEST_RUN
        while len(ends) < len(self._processes):
            for rank, process in enumerate(self._processes):
                if rank not in ends and process.exitcode is not None:
                    ends[rank] = time.monotonic()
                    if process.exitcode and not first:
                        first, deadline = process.exitcode, time.monotonic() + GRACE_SECS
            if time.monotonic() > deadline:
                for process in self._processes:
                    process.kill()
                raise TimeoutError(f"a run did not end; see {self._notes}")
            time.sleep(0.05)
        streams = {
            kind: [(self._notes / f"{kind}.{rank}").read_text() for rank in ends]
            for kind in ("out", "err")
        }
        survived = max(ends.values()) - min(ends.values())
        hit = (self._notes / "hit").exists()
        code = first if first >= 0 else 128 - first
        return Ended(code, streams["out"][0], "".join(streams["err"]), survived, hit)


def _run(
    arguments: tuple[str, ...],
    workdir: Path,
    notes: Path,
    rank: int,
    strike: Strike | None,
    survey: bool,
) -> None:
    """Be one process of a run."""
    gc.disable()  # tracing, most of such a small run, takes less time
    for stream, name in ((1, "out"), (2, "err")):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(notes / f"{name}.{rank}", flags), stream)
    os.chdir(ROOT)
    sys.argv = ["simclr_jax/main.py", *arguments]
    from simclr_jax import entry, main

    if rank == 0:
        strikes.count_steps(notes / "steps")
    hit = strikes.Hit(strike, workdir, notes / "hit") if strike else None
    spans = strikes.Spans(
        strike, hit or (lambda: None), notes / f"survey.{rank}" if survey else None
    )
    strikes.watch(spans)
    if hit and "--distributed" in arguments:
        strikes.slow_down(hit)
    entry.run(main.main)


def steps_again(notes: Path) -> int:
    """Return how many steps all runs of a point computed more than once."""
    steps = (notes / "steps").read_text().split()
    return len(steps) - len(set(steps))


def metrics(workdir: Path) -> list[str]:
    """Return the lines of `metrics.jsonl` without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({k: v for k, v in line.items() if k not in CLOCK}) for line in lines]


def leaves(workdir: Path) -> dict[int, dict[str, np.ndarray]]:
    """Return the arrays of each checkpoint as Orbax finds them, which knows of no manifest."""
    import jax
    import orbax.checkpoint as ocp

    warnings.filterwarnings("ignore", message="Sharding info not provided")
    found: dict[int, dict[str, np.ndarray]] = {}
    with _ONE_READER, ocp.PyTreeCheckpointer() as reader:
        for path in sorted((workdir / "checkpoints").iterdir()):
            if path.name.isdecimal():
                pairs = jax.tree_util.tree_leaves_with_path(reader.restore(path))
                arrays = {jax.tree_util.keystr(place): np.asarray(leaf) for place, leaf in pairs}
                found[int(path.name)] = arrays
    return found


@dataclasses.dataclass(frozen=True)
class Compared:
    """What a finished run has that its reference has not, and the other way round."""

    same_bits: bool
    lost: int
    repeated: int
    changed: int

    @property
    def same(self) -> bool:
        """Tell whether nothing differs."""
        return self.same_bits and not self.lost + self.repeated + self.changed


def compare(workdir: Path, reference: Path) -> Compared:
    """Compare the checkpoints of the same steps bit by bit, and `metrics.jsonl` line by line.

    The last step must be there. A run that was asked to stop has kept that step for another.
    """
    expected, found = leaves(reference), leaves(workdir)
    same = max(expected) == max(found) and all(
        _same_bits(found[step], expected[step]) for step in expected.keys() & found.keys()
    )
    wanted, there = collections.Counter(metrics(reference)), collections.Counter(metrics(workdir))
    repeated = sum(count - 1 for count in there.values())
    changed = len(there.keys() - wanted.keys())
    lost = len(wanted.keys() - there.keys()) - changed
    in_order = metrics(reference) == metrics(workdir) or lost or repeated or changed
    return Compared(same, max(lost, 0), repeated, changed if in_order else 1)


def _same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        leaf.dtype == found[name].dtype
        and leaf.shape == found[name].shape
        and leaf.tobytes() == found[name].tobytes()
        for name, leaf in expected.items()
    )
