"""A pipeline that was made at one go, and its images."""

import numpy as np
import pytest
from pipeline.short import runs_of
from stages import noisy

from simclr_jax.pipeline import run as pipeline


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """An archive whose classes are of one size, and whose images are often those of another."""
    path, random = tmp_path_factory.mktemp("images") / "images.npz", np.random.RandomState(0)
    arrays = {}
    for split, count in (("train", 48), ("test", 91)):
        labels = np.arange(count) % noisy.CLASSES
        wrong = random.rand(count) < 0.2
        truth = np.where(wrong, random.randint(0, noisy.CLASSES, count), labels)
        arrays |= {f"{split}_images": noisy.pixels(truth, count), f"{split}_labels": labels}
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def piped(images, tmp_path_factory):
    """A pipeline that was made at one go."""
    workdir = tmp_path_factory.mktemp("piped") / "pipeline"
    assert pipeline.run(runs_of(images), str(workdir)) == 0
    return workdir
