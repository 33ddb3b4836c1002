"""What two processes do and agree on; each prints what it found. See test_processes.py.

launch/local -n 2 -- python tests/train/agreeing.py DIRECTORY
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags

from simclr_jax import entry, parallel, processes
from simclr_jax.data.decode import BadImage
from simclr_jax.data.held_out import HeldOut
from simclr_jax.data.reader import Unreadable
from simclr_jax.errors import Unreachable, UserError
from simclr_jax.train import workdir as workdirs
from simclr_jax.train.checkpoints import Checkpoints

for kind, name in (
    (flags.DEFINE_boolean, "distributed"),
    (flags.DEFINE_string, "coordinator"),
    (flags.DEFINE_integer, "processes"),
    (flags.DEFINE_integer, "process"),
):
    kind(name, None, "")
directory = Path(sys.argv.pop(1))
found: dict[str, object] = {}


def attempt(name, action):
    """Note what an action returns, or the error it ends in."""
    try:
        found[name] = action()
    except UserError as error:
        found[name] = f"{type(error).__name__}: {error}"


def refuse():
    raise UserError("no")


def not_answer():
    raise Unreachable("later")


def code_of_what_does_not_answer():
    try:
        processes.on_first(not_answer)
    except UserError as error:
        return error.code


def save_and_restore():
    mesh = parallel.make_mesh()
    state = parallel.replicate(mesh, {"a": np.arange(6.0), "n": np.int32(7)})
    checkpoints = Checkpoints(directory / "saved", keep=2, say=lambda _: None)
    for step in (1, 2):
        checkpoints.save(step, state)
    checkpoints.wait()
    (directory / "saved" / "2" / "manifest.json").write_text("{}") if processes.rank() == 0 else 0
    processes.everyone(None)
    step, again = checkpoints.restore(parallel.describe(mesh, state))
    checkpoints.close()
    left = sorted(path.name for path in (directory / "saved").iterdir())
    return [step, np.asarray(again["a"]).tolist(), left]


def read_what_another_cannot():
    """Process 1 looks into a directory of its own, where the checkpoint is not."""
    own = directory / ("saved" if processes.rank() == 0 else "elsewhere")
    checkpoints = Checkpoints(own, say=lambda _: None)
    target = {"a": jax.ShapeDtypeStruct((6,), np.float32), "n": jax.ShapeDtypeStruct((), np.int32)}
    try:
        checkpoints.restore(target)
    finally:
        checkpoints.close()


def open_workdirs_of_their_own():
    own = directory / f"workdir{processes.rank()}"
    with workdirs.open_workdir(str(own), {"seed": 1}, "auto", keep=1, keep_period=None):
        pass


class Broken:
    """Four images, of which the second and the third cannot be read."""

    channels = 1
    name = staticmethod(str)

    def __len__(self):
        return 4

    def example(self, row):
        if row in (1, 2):
            raise BadImage("broken")
        return np.zeros((8, 8, 1), np.uint8), None


def evaluate_own_rows(limit):
    unreadable = Unreadable("held_out", 4, max_fraction=limit)
    with HeldOut(Broken(), lambda image: image, unreadable, threads=1) as images:
        images[slice(2 * processes.rank(), 2 * processes.rank() + 2)]
        return images.readable().tolist()


def main():
    f = flags.FLAGS
    with processes.joined(True, f.coordinator, f.processes, f.process, heartbeat_secs=10):
        rank = processes.rank()
        mesh = parallel.make_mesh()
        found["rows"] = np.arange(8)[parallel.local_rows(mesh, 8)].tolist()
        found["everyone"] = processes.everyone({"rank": rank, "text": "ä" * 300 * rank})
        attempt("first", lambda: processes.on_first(lambda: f"by {rank}"))
        attempt("refused", lambda: processes.on_first(refuse))
        attempt("code", code_of_what_does_not_answer)
        attempt("same", lambda: processes.check_same("recipe", {"seed": 1}))
        attempt("other", lambda: processes.check_same("recipe", {"seed": rank}))
        attempt("readable", lambda: evaluate_own_rows(1.0))
        attempt("too many", lambda: evaluate_own_rows(0.25))  # one of four is not, in each
        attempt("restored", save_and_restore)
        attempt("not shared", read_what_another_cannot)
        workdirs.VISIBLE_SECS = 0.1
        attempt("own workdirs", open_workdirs_of_their_own)
        (directory / f"found{rank}.json").write_text(json.dumps(found))
        if rank == 1:
            refuse()
        processes.everyone(None)  # which never comes about
    return 0


entry.run(main)
