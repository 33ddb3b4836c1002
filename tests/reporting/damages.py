"""Damage the files of a finished run, one at a time, and look what its readers make of it.

    JAX_PLATFORMS=cpu PYTHONPATH=.:tests python -m reporting.damages --count=300 --seed=0

Each damage is done to a copy of the run. All readers that open the damaged file then run in this
process, by the functions that the doors call. What becomes of each is one of

    same        the same numbers and vectors as of the whole run
    one line    a `UserError`
    said        the rest of the numbers, all as they were, and a line about what is left out; or
                those of an older checkpoint, and a line about the newest
    silent      a number or a vector is another, or is gone, and nothing was said
    traceback   any other exception

The last two must not be; a table of all is printed, and the exit code tells.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import re
import runpy
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

from simclr_jax import parallel, recipes
from simclr_jax.data import decode
from simclr_jax.embedding import embed, search
from simclr_jax.errors import UserError
from simclr_jax.judging import linear_probe, results
from simclr_jax.judging.datasets import Wanted
from simclr_jax.planning import plan
from simclr_jax.reporting import record, report
from simclr_jax.stages import run as runs
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved

Numbers = dict[str, Any]
BAD = ("silent", "traceback")
OUTCOMES = ("same", "one line", "said", *BAD)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3)).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Read:
    """What a reader found: numbers by name, the step they are of, and what it said."""

    numbers: Numbers
    step: int = 0
    said: tuple[str, ...] = ()


# A whole run --------------------------------------------------------------------------------------


def make(root: Path) -> Path:
    """Train a tiny run in `root/run`, and leave there all that readers may read."""
    images = np.random.default_rng(0)
    for i in range(60):
        path = root / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = images.integers(0, 110, (12, 12, 3)) + 110 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    (root / "images" / "a" / "broken.png").write_bytes(b"\x89PNG no more")
    config = tiny()
    config.data.source, config.data.path = "folder", str(root / "images")
    config.data.max_bad_fraction = 0.2
    config.eval.every_epochs, config.checkpoint.every_steps = 1.0, 4
    config.train.steps, config.checkpoint.keep = 8, 2
    with contextlib.redirect_stdout(io.StringIO()):
        assert runs.run(config, str(root / "run"), "auto") == 0
    for tap in ("h", "z"):
        probed(root, tap)
    for suffix in (".npz", ".parquet"):
        embed.run(embed.Options(str(root / "run"), str(root / f"all{suffix}")), silent)
    return root


def tiny() -> Any:
    """Return the recipe of `tests/e2e/tiny.py`; other folders have modules of that name."""
    return runpy.run_path(str(Path(__file__).parents[1] / "e2e" / "tiny.py"))["get_config"]()


def silent(line: str) -> None:
    """Say nothing."""


def files(root: Path) -> list[str]:
    """Return the files that are damaged, by their paths below `root`.

    Of checkpoints it is the newest, which is what is read.
    """
    older = min(root.glob("run/checkpoints/[0-9]*"), key=lambda path: int(path.name))
    found = sorted(p for p in (root / "run").rglob("*") if p.is_file())
    names = [
        str(path.relative_to(root))
        for path in found
        if "tensorboard" not in path.parts and older not in path.parents
    ]
    return [*names, "all.npz", "all.parquet"]


def group(file: str) -> str:
    """Return what a file is one of: groups are damaged in turn, however many files they have."""
    known = re.match(r"run/(checkpoints/\d+/manifest|checkpoints|results|features|index)", file)
    return re.sub(r"\d+", "STEP", known[1]) if known else file


# Readers ------------------------------------------------------------------------------------------


def curves(root: Path) -> Read:
    """Read all that a report takes from files, and count what was left out."""
    one = record.read(str(root / "run"))
    numbers: Numbers = {f"recipe {name}": value for name, value in one.recipe.items()}
    for name, curve in one.curves.items():
        steps = zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
        numbers |= {f"{name} at {step:g}": repr(value) for step, value in steps}
    for result in one.results:
        numbers |= record.flatten(result, f"result {result['name']} ")
    for name, arrays in one.outputs.items():
        numbers |= {f"array {name} {key}": x.tobytes() for key, x in arrays.items()}
    numbers |= record.flatten(one.summary or {}, "summary ")
    pixels = one.views and decode.decode(one.views).tobytes()  # whatever follows them in the file
    numbers |= {"views": pixels, "devices": one.devices, "saved": str(one.saved)}
    numbers["unreadable"] = one.unreadable  # at least so many, which is true of fewer
    return Read(numbers, 0, tuple(one.damaged))


def page(root: Path) -> Read:
    """Write a report: the numbers that it has computed, and the problems that stand in it."""
    said: list[str] = []
    one = record.read(str(root / "run"))
    found = report._examine(one, said.append)
    text = report._page([one], {one.name: found})
    assert "Traceback" not in text
    said += re.findall(r'<li class="problem">([^<]*)<', text)
    if isinstance(found, str):
        return Read({}, 0, (*said, found))
    numbers: Numbers = {
        f"{t} {n}": x for t, p in found.pairs.items() for n, x in p.indicators.items()
    }
    numbers["points"] = found.points.tobytes() if found.points is not None else b""
    if found.judged:
        numbers[f"counts of {found.judged.what}"] = found.judged.counts.tobytes()
    near = [(tile.said, tile.similarity) for row in found.neighbours for tile in row]
    return Read(numbers | {"near": str(near)}, saved.split(found.checkpoint)[1] or 0, tuple(said))


def loaded(root: Path) -> Read:
    """Encode images by the Python API."""
    encoder = Encoder.of(saved.read(str(root / "run"), "run"))
    found = {tap: encoder(IMAGES, tap).tobytes() for tap in ("h", "z")}
    return Read(found, encoder.step)


def embedded(root: Path) -> Read:
    """Embed the run's own images."""
    said: list[str] = []
    out = root / "again.npz"
    embed.run(embed.Options(str(root / "run"), str(out)), said.append)
    with np.load(out) as archive:
        about = json.loads(str(archive["about"]))
        rows = zip(archive["names"].tolist(), archive["features"], strict=True)
        return Read({name: x.tobytes() for name, x in rows}, about["step"], notes(said))


def probed(root: Path, tap: str = "h") -> Read:
    """Score the run's features by kNN."""
    said: list[str] = []
    options = linear_probe.Options(solvers=("knn",), taps=(tap,))
    options = dataclasses.replace(
        options, settings=dataclasses.replace(options.settings, knn=((3, None),))
    )
    linear_probe.run([str(root / "run")], Wanted(), options, said.append)
    found = results.read(results.epath.Path(root / "run" / "results" / f"knn3-{tap}.json"))
    step = found["checkpoint"]["step"]
    return Read({"row": [line for line in said if line.startswith("knn3")]}, step, notes(said))


def searched(suffix: str) -> Callable[[Path], Read]:
    """Return what searches a file of embeddings."""

    def read(root: Path) -> Read:
        said: list[str] = []
        options = search.Options(str(root / f"all{suffix}"), query=["a/0.png"], k=5)
        search.run(options, said.append)
        return Read(
            {"said": [line for line in said if not line.startswith("note")]}, 0, notes(said)
        )

    return read


def planned(root: Path) -> Read:
    """Plan a fine-tuning that starts from the run."""
    config = tiny()
    with config.unlocked():
        config.stage, config.init.run = "finetune", str(root / "run")
        config.data.source, config.loss.temperature = None, 0.1
        config.eval.probe = config.eval.knn = False
        recipes.crop_and_flip(config)
    with contextlib.redirect_stdout(io.StringIO()):
        found = plan.run(config, plan.Asked("h100", 1, images=60, classes=2, compile=False))
    return Read({"plan": json.dumps(found, sort_keys=True)})


def notes(said: list[str]) -> tuple[str, ...]:
    """Return the lines that say what is not as it should be."""
    return tuple(line for line in said if line.startswith("note"))


ALL = (page, loaded, embedded, probed)
READERS: tuple[tuple[str, tuple[Callable[[Path], Read], ...]], ...] = (
    (r"all\.npz", (searched(".npz"),)),
    (r"all\.parquet", (searched(".parquet"),)),
    (r"run/config\.json", (curves, planned, *ALL)),
    (r"run/checkpoints/.*manifest\.json", (curves, planned, *ALL)),
    (r"run/checkpoints/.*", ALL),
    (r"run/(features|index).*", (page, embedded, probed)),
    (r".*", (curves, page)),
)


def readers(file: str) -> tuple[Callable[[Path], Read], ...]:
    """Return who opens a file."""
    return next(found for law, found in READERS if re.fullmatch(law, file))


# Damages ------------------------------------------------------------------------------------------


def damage(root: Path, file: str, kind: str, random: np.random.Generator) -> bool:
    """Damage one file of a run; False if this kind of damage would not change it."""
    path = root / file
    before = path.read_bytes()
    if kind == "swap":
        others = [name for name in files(root) if name != file and Path(name).suffix == path.suffix]
        if not others:
            return False
        other = root / others[random.integers(len(others))]
        path.write_bytes(other.read_bytes())
        other.write_bytes(before)
        return path.read_bytes() != before
    if kind in ("directory", "missing", "loop"):
        path.unlink()
        if kind == "directory":
            path.mkdir()
        if kind == "loop":
            path.symlink_to(path)
        return True
    after, times = CHANGES[kind](before, random), path.stat()
    path.write_bytes(after)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # by which results are ordered
    return after != before


def _flip(content: bytes, random: np.random.Generator) -> bytes:
    if not content:
        return content
    flipped = bytearray(content)
    flipped[random.integers(len(content))] ^= 1 << random.integers(8)
    return bytes(flipped)


def _scatter(content: bytes, random: np.random.Generator) -> bytes:
    for _ in range(16):
        content = _flip(content, random)
    return content


def _cut(content: bytes, random: np.random.Generator) -> bytes:
    return content[: random.integers(max(1, len(content)))]


def _lines(change: Callable[[list[bytes], int], object]) -> Callable:
    def changed(content: bytes, random: np.random.Generator) -> bytes:
        lines = content.splitlines(keepends=True)
        if len(lines) < 2:
            return content
        change(lines, int(random.integers(len(lines) - 1)))
        return b"".join(lines)

    return changed


def _number(content: bytes, random: np.random.Generator) -> bytes:
    """Change a digit as a hand might."""
    places = [m.start() for m in re.finditer(rb"(?<![\w.])\d(?=[\d.]*)", content)]
    if not places:
        return content
    place = places[random.integers(len(places))]
    digit = (content[place] - 48 + random.integers(1, 10)) % 10 + 48
    return content[:place] + bytes([digit]) + content[place + 1 :]


def _nulls(content: bytes, random: np.random.Generator) -> bytes:
    at = int(random.integers(max(1, len(content))))
    return content[:at] + b"\0" * len(content[at : at + 512]) + content[at + 512 :]


CHANGES: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "flip": _flip,
    "scatter": _scatter,
    "cut": _cut,
    "empty": lambda content, _: b"",
    "line twice": _lines(lambda lines, i: lines.insert(i, lines[i])),
    "line deleted": _lines(lambda lines, i: lines.pop(i)),
    "lines swapped": _lines(lambda lines, i: lines.insert(i, lines.pop(i + 1))),
    "number": _number,
    "null bytes": _nulls,
    "utf-16": lambda content, _: content.decode("latin-1").encode("utf-16"),
    "junk": lambda content, random: random.bytes(max(1, len(content))),
    "appended": lambda content, random: content + content[: random.integers(1, 99)],
}
KINDS = (*CHANGES, "swap", "directory", "missing", "loop")


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
        for name, value in found.numbers.items()
        if not _same(name, value, before.numbers.get(name))
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


def baselines(whole: Path, work: Path) -> dict[Callable, dict[int, Read]]:
    """Return what each reader finds in `work` of the whole run, and of its older checkpoint."""
    found: dict[Callable, dict[int, Read]] = collections.defaultdict(dict)
    newest = max(whole.glob("run/checkpoints/[0-9]*"), key=lambda path: int(path.name))
    for reader in {reader: None for _, some in READERS for reader in some}:
        for older in (True, False):
            _copy(whole, work)
            if older:
                shutil.rmtree(work / newest.relative_to(whole))
            read = reader(work)
            if read.step or not older:
                found[reader][read.step] = read
    return found


def _copy(whole: Path, work: Path) -> None:
    """Make `work` a copy, where all copies lie: some of what is said of a run is its path."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(whole, work, symlinks=True)


def survey(root: Path, count: int, seed: int, say: Callable[[str], object] = silent):
    """Do `count` damages to copies of a run; return `[(file, kind, reader, outcome, about)]`."""
    random, found = np.random.default_rng(seed), []
    with remembering(), tempfile.TemporaryDirectory(dir=root.parent) as apart:
        whole, work = Path(apart) / "whole", Path(apart) / "work"
        _copy(root, whole)
        known = baselines(whole, work)
        groups = collections.defaultdict(list)
        for name in files(whole):
            groups[group(name)].append(name)
        names = sorted(groups)
        for number in range(count):
            done = False
            while not done:
                _copy(whole, work)
                some = groups[names[number % len(names)]]
                file, kind = some[random.integers(len(some))], KINDS[random.integers(len(KINDS))]
                done = damage(work, file, kind, random)
            for reader in readers(file):
                name = reader.__qualname__.partition(".")[0]
                result, about = outcome(reader, work, known[reader])
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
    parser.add_argument(
        "--run", help="where the run is, or is to be made: the next time it is there"
    )
    parser.add_argument("--log", help="a file for a line of JSON about each outcome")
    asked = parser.parse_args()
    parallel.use_compilation_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    with tempfile.TemporaryDirectory() as place:
        root = Path(asked.run or place) / "first"
        found = survey(root if root.exists() else make(root), asked.count, asked.seed, print)
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
