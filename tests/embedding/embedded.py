"""A folder of small images, and a run that was never trained, for tests of embed and search."""

from __future__ import annotations

import functools

import jax
import numpy as np
from flax import traverse_util
from PIL import Image
from train import tiny

from simclr_jax.embedding import embed, embeddings
from simclr_jax.stages import build
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved


def write_folder(path, count=12, side=10):
    """Write `count` images of each of two classes, `a` and `b`, as PNGs in `path/CLASS`."""
    random = np.random.RandomState(0)
    for name in "ab":
        (path / name).mkdir(parents=True)
        for i in range(count):
            colour = random.randint(0, 256, 3)
            pixels = np.clip(colour + random.randint(-40, 40, (side, side, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(path / name / f"{i}.png")
    return path


def about(**fields):
    """Return what a file of embeddings says beside its rows."""
    return {
        "format": embeddings.FORMAT,
        "checkpoint": "run@7",
        "step": 7,
        "tap": "h",
        "weights": "none",
        "data": {"data": "", "data_dir": "", "split": ""},
        "parts": ["train"],
        "fingerprints": [""],
        "directory": "",
        "class_names": [],
    } | fields


def read_run(folder, workdir):
    """Return a run on the images of a folder, as it would be read from the disk."""
    record = tiny.recipe(data__source="folder", data__path=str(folder)).to_dict()
    return saved.Saved(workdir, 7, record, _leaves())


@functools.cache
def _leaves():
    variables = jax.device_get(build.first_variables(tiny.recipe(), 3))
    return traverse_util.flatten_dict(variables, sep="/")


@functools.cache
def encoder():
    """Return the encoder of every run that `read_run` gives."""
    return Encoder.of(read_run("", "run"))


def embed_folder(monkeypatch, folder, out, workdir, **fields):
    """Embed the images of a folder and return what was said."""
    monkeypatch.setattr(saved, "read", lambda *_: read_run(folder, workdir))
    # One compiled encoder for all tests; its run would differ in the workdir alone.
    known = encoder()
    monkeypatch.setattr(Encoder, "of", lambda *_: known)
    said = []
    embed.run(embed.Options("run", str(out), **fields), said.append)
    return said
