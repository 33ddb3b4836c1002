"""Runs on disk that nobody trained: random weights, a recipe and small images, for the doors."""

from __future__ import annotations

import numpy as np
from train import tiny

from simclr_jax import files
from simclr_jax.train.checkpoints import Checkpoints


def write_run(workdir, step=7, **fields):
    """Write a run whose every weight and statistic is random, and return its workdir."""
    stage, _ = tiny.make_stage(tiny.recipe(), 8)
    state = tiny.perturbed(stage.init())
    stats = {part: _positive(tree) for part, tree in state.batch_stats.items()}
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(step, state._replace(batch_stats=stats, step=np.int32(step)))
    checkpoints.close()
    files.write_json(workdir / "config.json", tiny.recipe(**fields).to_dict())
    return workdir


def write_images(path, count=48, classes=4, side=10, channels=3, several=False):
    """Write an archive of images, brighter from class to class; return its arrays."""
    random = np.random.RandomState(0)
    arrays = {}
    for split, images in (("train", count), ("test", count // 2)):
        label = np.arange(images) % classes
        noise = random.randint(0, 60, (images, side, side, channels))
        pixels = (noise + 40 * label[:, None, None, None]).astype(np.uint8)
        if several:
            label = (np.arange(classes) <= label[:, None]).astype(np.int8)
        arrays |= {f"{split}_images": pixels, f"{split}_labels": label}
    np.savez(path, **arrays)
    return arrays


def _positive(tree):
    if isinstance(tree, dict):
        return {name: _positive(leaf) for name, leaf in tree.items()}
    return np.abs(np.asarray(tree) + np.float32(0.2))
