"""Call all doors wrongly, and look how each says so.

    JAX_PLATFORMS=cpu PYTHONPATH=.:tests:tests/e2e python -m e2e.malformed --count=300 --seed=0

`malformed_calls.py` has the calls, of which `--count` are drawn, as many of each door as there is
room for. Each runs in a process forked from this one, as `python -m simclr_jax.DOOR` would: streams
and exit code included. What becomes of it is one of

    one line    exit code 1 (or 75), one line that begins with `error:` and names what is wrong
    unnamed     such a line, which does not name it
    late        such a line, but something was written before
    accepted    exit code 0, or still at work after a minute
    traceback   any other end

Only the first may be; a table is printed, and the exit code tells.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from doors import ROOT, write_images
from malformed_calls import TINY, Call, calls
from PIL import Image

from simclr_jax import entry, errors

OUTCOMES = ("one line", "unnamed", "late", "accepted", "traceback")
SECS = 60.0
# Imported before the first fork: each costs seconds. None of them starts a device.
PRELOADED = (
    *("stages.run", "pipeline.run", "judging.transfer", "embedding.search", "embedding.embed"),
    *("reporting.report", "planning.plan", "interop.export", "interop.convert"),
    *("data.packing.run", "checking.doctor"),
)
BESIDE = re.compile(r"note ")  # what a door says of checkpoints that it leaves aside
MAY_CHANGE = ("out", "err", "compiled", "home")  # streams, and what the machine keeps for all


def forked(place: Path, action: Callable[[], object], secs: float = SECS) -> int | None:
    """Run an action in a fork in `place`, its streams in files there; None: it did not end."""
    child = os.fork()
    if not child:
        code = 70
        try:
            os.chdir(place)
            for stream, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
            try:
                action()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
            errors.flush()
        finally:
            os._exit(code)
    end = time.monotonic() + secs
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def door(name: str, arguments: Sequence[str]) -> None:
    """Run a door in this process, to its end."""
    sys.argv = [f"simclr_jax/{name}.py", *arguments]
    sys.path.insert(0, "")
    entry.run(importlib.import_module(f"simclr_jax.{name}").main)


def make(place: Path) -> Path:
    """Make, in a directory, a run and everything else that calls name."""
    place.mkdir(parents=True, exist_ok=True)
    write_images(place / "images.npz")
    write_images(place / "unlabelled.npz", labels=False)
    for i in range(6):
        path = place / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 12, 3), 30 * i, np.uint8)).save(path)
    Image.new("RGB", (12, 12), "red").save(place / "one.png")
    (place / "text.txt").write_text("some words\n")
    for name in ("empty", "folder.npz", "folder.html"):
        (place / name).mkdir()
    os.mkfifo(place / "pipe")
    (place / "loop").symlink_to("loop")
    (place / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    (place / "no_function.py").write_text("x = 1\n")
    (place / "other_value.py").write_text("def get_config():\n    return 7\n")
    for name in ("torn.npz", "torn.pth", "torn.safetensors", "weights.safetensors"):
        (place / name).write_bytes(b"PK\x03\x04 no more")
    train = [f"--config={TINY}", "--config.data.path=images.npz", "--workdir=run"]
    _right(place, "main", [*train, "--config.eval.compare=False"])
    _right(place, "embed", ["--checkpoint=run", "--out=all.npz"])
    _damage(place)
    return place


def _right(place: Path, name: str, arguments: list[str]) -> None:
    code = forked(place, lambda: door(name, arguments), 5 * SECS)
    said = [(place / stream).read_text() for stream in ("out", "err")]
    assert code == 0, (code, *said)


def _damage(place: Path) -> None:
    """Make damaged copies of the run, of which nothing is left to go by."""
    for name in ("no_checkpoint", "torn_manifests"):
        shutil.copytree(place / "run", place / name)
    shutil.rmtree(place / "no_checkpoint" / "checkpoints")
    for path in (place / "torn_manifests" / "checkpoints").rglob("manifest.json"):
        path.write_text("{")


def there(place: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file and directory that a refused call may not touch."""
    found = {}
    for path in place.rglob("*"):
        inside = path.relative_to(place)
        if inside.parts[0] not in MAY_CHANGE:
            stat = path.lstat()
            found[str(inside)] = (stat.st_size if path.is_file() else 0, stat.st_mode)
    return found


def outcome(place: Path, call: Call, whole: dict[str, tuple[int, int]]) -> tuple[str, str]:
    """Return what becomes of a call, and what it said."""
    code = forked(place, lambda: door(call.door, call.arguments))
    said = (place / "err").read_text(errors="replace")
    found = there(place)
    changed = sorted(name for name in found if found[name] != whole.get(name))
    for name in changed:
        if name not in whole:
            path = place / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(True)
    if code in (0, None):
        return "accepted", said or "still at work" * (code is None)
    lines = [line for line in said.splitlines() if not BESIDE.match(line)]
    if code not in (1, 75) or len(lines) != 1 or not lines[0].startswith("error: "):
        return "traceback", f"exit code {code}: {said}"
    if changed:
        return "late", f"{said}, and wrote {changed[:5]}"
    missing = [word for word in call.named if word not in lines[0]]
    return ("unnamed", f"{said} does not name {missing}") if missing else ("one line", lines[0])


def drawn(count: int, seed: int) -> list[Call]:
    """Return so many of the calls, the doors in turn."""
    random, by_door = np.random.default_rng(seed), collections.defaultdict(list)
    for call in calls():
        by_door[call.door].append(call)
    for some in by_door.values():
        random.shuffle(some)  # type: ignore[arg-type]
    found: list[Call] = []
    while len(found) < count and any(by_door.values()):
        found += [some.pop() for some in by_door.values() if some]
    return found[:count]


def survey(place: Path, count: int, seed: int, say: Callable[[str], object] = print):
    """Make so many calls; return `[(call, outcome, what it said)]`."""
    for name in PRELOADED:
        importlib.import_module(f"simclr_jax.{name}")
    os.environ["XDG_CACHE_HOME"] = str(place / "home")
    whole, found = there(make(place)), []
    for call in drawn(count, seed):
        result, said = outcome(place, call, whole)
        found.append((call, result, said))
        if result != "one line":
            given = " ".join(call.arguments).encode("utf-8", "backslashreplace").decode()
            say(f"{result}: {call.door} {given[:400]}\n    {said.strip()[-1500:]}")
    return found


def table(found) -> str:
    """Count outcomes by door and by kind."""
    lines = [f"{'':18}" + "".join(f"{name:>11}" for name in OUTCOMES)]
    for of in (lambda call: call.door, lambda call: call.kind):
        for name in dict.fromkeys(of(call) for call, _, _ in found):
            counts = collections.Counter(result for call, result, _ in found if of(call) == name)
            lines.append(f"{name:18}" + "".join(f"{counts[o]:>11}" for o in OUTCOMES))
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Make as many calls as asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", action="store_true", help="print every line that was said")
    asked = parser.parse_args()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as directory:
        found = survey(Path(directory) / "place", asked.count, asked.seed)
    if asked.lines:
        for call, _, said in found:
            print(f"{call.door} {call.kind}: {said.strip()[:300]}")
    print(table(found))
    bad = sum(result != "one line" for _, result, _ in found)
    print(f"{len(found)} calls, {bad} not refused in one right line")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
