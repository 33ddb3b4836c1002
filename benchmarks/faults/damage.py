"""What happens in `table.py` to checkpoints and disks while nobody looks."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

DISK = "16m"  # of the small disk; a run needs 9

How = Callable[[Path, random.Random], None]


def truncate(path: Path, draw: random.Random) -> None:
    """Cut a file somewhere."""
    os.truncate(path, draw.randrange(max(1, path.stat().st_size)))


def empty(path: Path, _: random.Random) -> None:
    """Leave nothing in a file."""
    os.truncate(path, 0)


def flip(path: Path, draw: random.Random) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def delete(path: Path, _: random.Random) -> None:
    """Delete a file."""
    path.unlink()


def empty_directory(path: Path, _: random.Random) -> None:
    """Delete all that a file's checkpoint holds."""
    checkpoint = next(parent for parent in path.parents if parent.name.isdecimal())
    for entry in checkpoint.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def damage(checkpoint: Path, how: How, draw: random.Random) -> str:
    """Damage one file of a checkpoint, of each sort with equal chance; return its name."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size]
    sorts: dict[str, list[Path]] = {}
    for path in sorted(files):
        sort = "data" if path.parent.name == "d" else path.name
        sorts.setdefault(sort if sort in ("data", "manifest.json") else "metadata", []).append(path)
    chosen = draw.choice(sorts[draw.choice(sorted(sorts))])
    how(chosen, draw)
    return os.fspath(chosen.relative_to(checkpoint))


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """Mount a small file system in memory."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)
