"""Runs that come from one another, left as `main` leaves them but for their training.

Images say their number, so what was trained on is read off the pixels, not off our own lists.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from stages import taught
from train import tiny

from simclr_jax import documents
from simclr_jax.stages import heritage
from simclr_jax.stages.prepare import prepare
from simclr_jax.stages.run import said_beside
from simclr_jax.train.checkpoints import Checkpoints

COUNT, CLASSES, FEW = 60, 4, 2  # FEW: held out of images without labels


def archive(path, *splits, count=COUNT, first=0):
    """Write an archive whose images say their number, counted through all splits."""
    arrays = {}
    for place, split in enumerate(splits):
        number = first + place * count + np.arange(count)
        pixels = np.zeros((count, 10, 10, 3), np.uint8)
        pixels[..., 0], pixels[..., 1] = (x[:, None, None] for x in (number % 256, number // 256))
        arrays |= {f"{split}_images": pixels, f"{split}_labels": number * 7 % CLASSES}
    np.savez(path, **arrays)
    return path


def numbers(source):
    """Return the numbers that the images of a split say."""
    pixels = [source.example(i)[0][0, 0].astype(int) for i in range(len(source))]
    return {int(p[0]) + 256 * int(p[1]) for p in pixels}


def recipe(stage, path, **fields):
    on = {"data__source": "memory", "data__path": str(path), "train__batch_size": 2}
    if stage == "pretrain":
        return tiny.recipe(**on | {"eval__probe": False, "eval__knn": False} | fields)
    return taught.recipe(stage, **on | fields)


def made(workdir, config, sealed=False, **how):
    """Prepare a run as `main` does and leave what it would leave, but for its training.

    Only a checkpoint that is `sealed` holds the record of its run. `how` goes to `prepare`.
    """
    ready = prepare(config, 1, **how)
    record = config.to_dict() | ready.config.to_dict()
    record["images"] = [source.fingerprint() for source in (ready.train, ready.test)]
    record |= said_beside(ready, None)
    head = {"dense": {"kernel": np.zeros((32, CLASSES)), "bias": np.zeros(CLASSES)}}
    checkpoints = Checkpoints(workdir / "checkpoints", recipe=record if sealed else None)
    checkpoints.save(7, {"step": np.int32(7), "params": {"classifier": head}})
    checkpoints.close()
    documents.write(workdir / "config.json", record)
    return ready


def forget(workdir):
    """Make a run one that is older than what runs say of themselves."""
    record = documents.read(workdir / "config.json", dict)
    del record[heritage.KEY]
    record.pop(heritage.NOTES, None)
    documents.write(workdir / "config.json", record)


def of(run, **fields):
    return {"init__run": str(run), **fields}


def write_files(directory, count, first=0, side=10):
    directory.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        Image.new("RGB", (side, side), (i, 0, 0)).save(directory / f"{i:03}.png")


def in_folder(stage, path, **fields):
    return recipe(stage, path, data__source="folder", **fields)


def student(path, teacher, **fields):
    return recipe("distill", path, distill__teacher=str(teacher), **fields)
