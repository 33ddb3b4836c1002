"""What `damages.py` damages, and how."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

# What the files of a run, or of a run of a pipeline, are one of.
KINDS_OF_FILES = r"checkpoints/\d+/manifest|checkpoints|features|index"
RESULTS = r"results/transfer|results/seen|results/summary|results"


def files(root: Path) -> list[str]:
    """Return the files that are damaged, by their paths below `root`.

    Of checkpoints it is the newest, which is what is read.
    """
    names = ["all.npz", "all.parquet"]
    for run in (root / "run", *sorted(root.glob("pipeline/*"))):
        if run.name == "results" or not run.is_dir():
            continue
        older = sorted(run.glob("checkpoints/[0-9]*"), key=lambda path: int(path.name))[:-1]
        names += [
            str(path.relative_to(root))
            for path in sorted(run.rglob("*"))
            if path.is_file() and "tensorboard" not in path.parts and not {*older} & {*path.parents}
        ]
    beside = [*root.glob("pipeline/*.*"), *root.glob("pipeline/results/*")]
    return [*names, *sorted(str(path.relative_to(root)) for path in beside if path.is_file())]


def group(file: str) -> str:
    """Return what a file is one of: groups are damaged in turn, however many files they have."""
    place, name = re.fullmatch(r"(run|pipeline/\w+(?=/)|pipeline)?/?(.*)", file).groups()
    place = re.sub(r"/(?!results).+", "/RUN", place or "")
    known = re.match(f"{KINDS_OF_FILES}|{RESULTS}", name)
    return f"{place}/{re.sub(r'[0-9]+', 'STEP', known[0] if known else name)}"


def damage(root: Path, file: str, kind: str, random: np.random.Generator) -> bool:
    """Damage one file of a run; False if this kind of damage would not change it."""
    path = root / file
    before = path.read_bytes()
    if kind == "swap":
        return _swap(root, file, random)
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


def _swap(root: Path, file: str, random: np.random.Generator) -> bool:
    """Exchange a file with another: each second time one of the same name, if there is any."""
    path = root / file
    if path.suffix == ".png":  # a picture of views does not tell of which run it is
        return False
    others = [name for name in files(root) if name != file and Path(name).suffix == path.suffix]
    namesakes = [name for name in others if Path(name).name == path.name]
    if namesakes and random.integers(2):
        others = namesakes
    if not others:
        return False
    other = root / others[random.integers(len(others))]
    before = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(before)
    return path.read_bytes() != before


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
