"""Damage the files of finished runs, one at a time, and look what their readers make of it.

    JAX_PLATFORMS=cpu PYTHONPATH=.:tests python -m reporting.damages --count=300 --seed=0

There is a pretraining run, and a pipeline of three. Each damage is done to a copy of them. All
readers that open the damaged file then run in this process, by the functions that the doors call.
What becomes of each is one of

    same        the same numbers and vectors as of the whole run
    one line    a `UserError`
    said        the rest of the numbers, all as they were, and a line about what is left out, or is
                made again; or those of an older checkpoint, and a line about the newest
    silent      a number or a vector is another, or is gone, and nothing was said
    traceback   any other exception

The last two must not be; a table of all is printed, and the exit code tells. `damage_kinds.py` says
what is damaged and how, `damage_readers.py` and `damaged_pipeline.py` who reads it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import hashlib
import io
import json
import logging
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from reporting import damage_readers, damaged_pipeline
from reporting.damage_kinds import KINDS, damage, files, group
from reporting.damage_readers import Read, curves

from simclr_jax import parallel
from simclr_jax.embedding import embed
from simclr_jax.errors import UserError
from simclr_jax.reporting import report
from simclr_jax.stages import run as runs
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved

__all__ = ["BAD", "Image", "curves", "make", "saved", "survey"]

BAD = ("silent", "traceback")
OUTCOMES = ("same", "one line", "said", *BAD)

# Whole runs ---------------------------------------------------------------------------------------


def make(root: Path) -> Path:
    """Train a tiny run in `root/run` and a pipeline, and leave there all that readers may read."""
    _write_images(root / "images", 60, 0)
    (root / "images" / "a" / "broken.png").write_bytes(b"\x89PNG no more")
    _write_images(root / "elsewhere" / "train", 48, 1, 25)
    _write_images(root / "elsewhere" / "test", 61, 2, 25)
    (root / "other").symlink_to(root / "elsewhere")  # of copies, too: results are named by it
    config = damage_readers.tiny()
    config.data.source, config.data.path = "folder", str(root / "images")
    config.data.max_bad_fraction = 0.2
    config.eval.every_epochs, config.checkpoint.every_steps = 1.0, 4
    config.train.steps, config.checkpoint.keep = 8, 2
    with contextlib.redirect_stdout(io.StringIO()):
        assert runs.run(config, str(root / "run"), "auto") == 0
    for tap in ("h", "z"):
        damage_readers.probed(root, tap)
    damage_readers.transferred(root)
    for suffix in (".npz", ".parquet"):
        embed.run(embed.Options(str(root / "run"), str(root / f"all{suffix}")), silent)
    damaged_pipeline.make(root)
    return root


def _write_images(place: Path, count: int, seed: int, apart: int = 110) -> None:
    """Write images of two classes, which their brightness tells if they are `apart` enough."""
    random = np.random.default_rng(seed)
    for i in range(count):
        path = place / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 110, (12, 12, 3)) + apart * (i % 2)
        pixels = pixels + (110 - apart) * random.random()
        Image.fromarray(pixels.astype(np.uint8)).save(path)


def silent(line: str) -> None:
    """Say nothing."""


# Who reads what -----------------------------------------------------------------------------------

R, P = damage_readers, damaged_pipeline
ALL = (R.page, R.loaded, R.embedded, R.probed, R.transferred, R.tuned)
OF_PIPELINE = (P.recorded, P.compared, P.continued)
DEAR = (R.planned, R.tuned, R.taught, P.completed)  # seconds each: they trace a step, or train
STARTED_FROM = r"(first|tuned)/(config|saved|checkpoints|index).*"  # by the last run
READERS: tuple[tuple[str, tuple[Callable[[Path], Read], ...]], ...] = (
    (r"all\.npz", (R.searched(".npz"),)),
    (r"all\.parquet", (R.searched(".parquet"),)),
    (r"pipeline/(log|results).*", (P.continued,)),
    (rf"pipeline/{STARTED_FROM}", (P.completed, *OF_PIPELINE)),
    (r"pipeline/.*", OF_PIPELINE),
    (r"run/config\.json", (R.curves, R.planned, *ALL, R.taught)),
    (r"run/checkpoints/.*manifest\.json", (R.curves, R.planned, *ALL, R.taught)),
    (r"run/checkpoints/.*", ALL),
    (r"run/saved\.json", (R.curves, *ALL)),
    (r"run/(features|index).*", (R.page, R.embedded, R.probed, R.transferred)),
    (r"run/results/knn.*", (R.curves, R.page, R.probed)),
    (r"run/results/transfer.*", (R.curves, R.page, R.transferred)),
    (r".*", (R.curves, R.page)),
)


def readers(file: str) -> tuple[Callable[[Path], Read], ...]:
    """Return who opens a file."""
    return next(found for law, found in READERS if re.fullmatch(law, file))


# What becomes of it -------------------------------------------------------------------------------


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Make each encoder, and the pairs of views of a report, once: compiling takes seconds."""
    encoders: dict[str, Encoder] = {}
    measured: dict[Any, Any] = {}
    of, pairs = Encoder.of, report._pairs

    def once(read, mesh=None):
        known = hashlib.sha256(f"{read.config.to_json()} {read}".encode())
        for name, leaf in sorted(read.leaves.items()):
            known.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
        key = known.hexdigest()
        if key not in encoders:
            encoders[key] = of(read, mesh)
        return encoders[key]

    def pairs_once(encoder, source):
        key = (encoder.fingerprint, encoder.config.to_json(), source.fingerprint())
        if key not in measured:
            measured[key] = pairs(encoder, source)
        return measured[key]

    Encoder.of, report._pairs = once, pairs_once  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        Encoder.of, report._pairs = of, pairs  # type: ignore[method-assign]


class Heard(logging.Handler):
    """Keeps what is logged, such as that a checkpoint is skipped."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def hearing() -> Iterator[list[str]]:
    """Yield what is logged meanwhile."""
    heard = Heard()
    logger = logging.getLogger("absl")
    logger.addHandler(heard)
    try:
        yield heard.lines
    finally:
        logger.removeHandler(heard)


def outcome(reader: Callable[[Path], Read], root: Path, whole: dict[int, Read]) -> tuple[str, str]:
    """Return what becomes of a reader, and what there is to say of it.

    Args:
      reader: one of `READERS`.
      root: where the damaged run lies.
      whole: what the reader finds of the whole run, by the step of the checkpoint.
    """
    with hearing() as heard:
        try:
            found = reader(root)
        except UserError as error:
            text = str(error)
            return ("one line", text) if text.isprintable() else ("traceback", text)
        except Exception:
            return "traceback", traceback.format_exc()
    newest = max(whole)
    before = whole.get(found.step if found.numbers else newest)
    if before is None:
        return "silent", f"a step {found.step} that there never was"
    said = [*(line for line in found.said if line not in before.said), *heard]
    others = {
        name: value
        for name, value in (found.numbers | found.beside).items()
        if not _same(name, value, (before.numbers | before.beside).get(name))
        # Where one result is left out, the next is shown, of which `curves` sees that it is whole.
        and not (said and name.startswith("counts of the result") and name not in before.numbers)
    }
    if others:
        return "silent", f"{str(others)[:300]}; said: {said}"
    alike = {**found.numbers, "unreadable": 0} == {**before.numbers, "unreadable": 0}
    if found.numbers and found.step == newest and alike:
        return "same", "; ".join(said)
    if not said:
        gone = before.numbers.keys() - found.numbers.keys()
        return "silent", f"nothing was said, and gone is {str(sorted(gone))[:300]}"
    return "said", "; ".join(said)


def _same(name: str, value: Any, before: Any) -> bool:
    """Tell whether a number is as it was, or missing, or true as well."""
    if name == "unreadable":
        return value <= before
    return value == before or value in (None, "", b"", [])


def baseline(reader: Callable[[Path], Read], whole: Path, work: Path) -> dict[int, Read]:
    """Return what a reader finds in `work` of the whole run, and of its older checkpoint."""
    _copy(whole, work)
    read = reader(work)
    found = {read.step: read}
    if read.step:
        newest = max(whole.glob("run/checkpoints/[0-9]*"), key=lambda path: int(path.name))
        _copy(whole, work)
        shutil.rmtree(work / newest.relative_to(whole))
        read = reader(work)
        found[read.step] = read
    return found


def _copy(whole: Path, work: Path) -> None:
    """Make `work` a copy, where all copies lie: some of what is said of a run is its path."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(whole, work, symlinks=True)


def survey(
    root: Path, count: int, seed: int, say: Callable[[str], object] = silent, dear: float = 0.2
):
    """Do `count` damages to copies of the runs; return `[(file, kind, reader, outcome, about)]`.

    Those of `DEAR` read a damaged file with the probability `dear`.
    """
    random, found = np.random.default_rng(seed), []
    with remembering(), tempfile.TemporaryDirectory(dir=root.parent) as apart:
        whole, work = Path(apart) / "whole", Path(apart) / "work"
        _copy(root, whole)
        known = functools.cache(functools.partial(baseline, whole=whole, work=work))
        groups = collections.defaultdict(list)
        for name in files(whole):
            groups[group(name)].append(name)
        names = sorted(groups)
        for number in range(count):
            some = groups[names[number % len(names)]]
            file = some[random.integers(len(some))]
            those = [r for r in readers(file) if r not in DEAR or random.random() < dear]
            sound, done = {reader: known(reader) for reader in those}, False
            while not done:
                _copy(whole, work)
                kind = KINDS[random.integers(len(KINDS))]
                done = damage(work, file, kind, random)
            for reader in those:
                name = reader.__qualname__.partition(".")[0]
                result, about = outcome(reader, work, sound[reader])
                found.append((file, kind, name, result, about))
                if result in BAD:
                    say(f"{result}: {name} after {kind} of {file}: {about}")
    return found


def table(found) -> str:
    """Count outcomes by reader and by kind of damage."""
    lines = [f"{'':16}" + "".join(f"{name:>11}" for name in OUTCOMES)]
    for column in (2, 1):
        for name in sorted({row[column] for row in found}):
            counts = collections.Counter(row[3] for row in found if row[column] == name)
            lines.append(f"{name:16}" + "".join(f"{counts[o]:>11}" for o in OUTCOMES))
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Survey as many damages as asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dear", type=float, default=0.2, help="how often the dear readers read")
    parser.add_argument(
        "--run", help="where the run is, or is to be made: the next time it is there"
    )
    parser.add_argument("--log", help="a file for a line of JSON about each outcome")
    asked = parser.parse_args()
    parallel.use_compilation_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    with tempfile.TemporaryDirectory() as place:
        root = Path(asked.run or place) / "first"
        found = survey(
            root if root.exists() else make(root), asked.count, asked.seed, print, asked.dear
        )
    if asked.log:
        fields = ("file", "damage", "reader", "outcome", "about")
        rows = [json.dumps(dict(zip(fields, row, strict=True))) + "\n" for row in found]
        Path(asked.log).write_text("".join(rows))
    print(table(found))
    bad = sum(row[3] in BAD for row in found)
    print(f"{asked.count} damages, {len(found)} readings, {bad} silent or with a traceback")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
