"""Folders to pack, and packing them as the door does."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from simclr_jax import recipes
from simclr_jax.data import sources
from simclr_jax.data.packing import run

SIDE = 16


def photographs(root: Path, count: int = 13) -> Path:
    """Write images of two classes and of many sizes, 12 to 39 pixels, of which two are none."""
    random = np.random.RandomState(0)
    for i in range(count):
        path = root / ("train" if i % 4 else "test") / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.randint(0, 256, (*random.randint(12, 40, 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        if i % 6 == 5:
            path.write_bytes(path.read_bytes()[:-60])
        os.utime(path, (1e9, 1e9))
    # Each class is there in each split, so that both can be labelled.
    for split in ("train", "test"):
        for name in "ab":
            (root / split / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / split / name / "last.png")
            os.utime(root / split / name / "last.png", (1e9, 1e9))
    return root


def recipe(path, source="folder", **fields):
    """Return a recipe of images that may be unreadable by a third."""
    config = recipes.base()
    config.data.update({"source": source, "path": str(path), "image_size": 8})
    config.data.max_bad_fraction = 0.34
    config.data.update(fields)
    return config


def pack(path, out, lines=None, source="folder", fields=None, **options):
    """Pack a data set, by one process, and return the store."""
    say = (lambda line: None) if lines is None else lines.append
    given = run.Options(str(out), **{"side": SIDE, "workers": 1} | options)
    run.pack(recipe(path, source, **(fields or {})), given, say)
    return Path(out)


def opened(store, split="train", **fields):
    """Open a split of a store."""
    return sources.find(recipe(store, "packed", **fields).data)[split]()


def content(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory, by its path."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {os.fspath(path.relative_to(directory)): path.read_bytes() for path in files}
