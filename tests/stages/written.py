"""Runs on disk that nobody trained: random weights, a recipe and small images, for the doors."""

from __future__ import annotations

import jax
import numpy as np
from train import tiny

from simclr_jax import documents
from simclr_jax.stages import build
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.stage import TrainState


def write_run(workdir, step=7, **fields):
    """Write a run whose every weight and statistic is random, and return its workdir."""
    random, config = np.random.default_rng(fields.get("seed", 0)), tiny.recipe(**fields)
    first = build.first_variables(config, 3)
    dense = {"kernel": np.zeros((8 * 4, tiny.CLASSES)), "bias": np.zeros(tiny.CLASSES)}
    first["params"]["probe"] = {"dense": dense}

    def perturbed(leaf):
        return (leaf + 0.3 * random.normal(size=leaf.shape)).astype(np.float32)

    params = jax.tree.map(perturbed, first["params"])
    stats = jax.tree.map(lambda leaf: np.abs(perturbed(leaf) + 0.2), first["batch_stats"])
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(step, TrainState(np.int32(step), params, stats, {}))
    checkpoints.close()
    documents.write(workdir / "config.json", config.to_dict())
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
