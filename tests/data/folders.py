"""Folders of images for tests: writing small ones, and opening them as a recipe would."""

from __future__ import annotations

from data import awkward

from simclr_jax import recipes
from simclr_jax.data.sources import folder

IMAGE = awkward.encode(awkward.RGB, "PNG")


def options(path, **fields):
    """Return `config.data` of a folder."""
    data = recipes.base().data
    data.update({"source": "folder", "path": str(path)} | fields)
    return data


def make(root, *names):
    """Write the same image under each name, and return `root`."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(IMAGE)
    return root


def opened(path, split="train", kept=None, **fields):
    """Open a split."""
    return folder.splits(options(path, **fields), kept)[split]()
