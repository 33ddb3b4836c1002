"""Published accuracies to stand beside ours, for the data sets the papers report."""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Published:
    """A number somebody reported: top-1, a fraction, of `network` after `epochs` of pretraining."""

    network: str
    epochs: str
    batch: str
    judged: str
    top1: float
    source: str


_V1 = "SimCLR (arXiv 2002.05709)"
_V2 = "SimCLRv2 (arXiv 2006.10029), table 1"
_LINEAR = "linear classifier"

# By the name of the data set in TensorFlow Datasets.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "imagenet2012": (
        Published("ResNet-50 1x", "100", "4096", _LINEAR, 0.645, f"{_V1}, table B.1"),
        Published("ResNet-50 1x", "1000", "4096", _LINEAR, 0.693, f"{_V1}, table 6"),
        Published("ResNet-50 2x", "1000", "4096", _LINEAR, 0.742, f"{_V1}, table 6"),
        Published("ResNet-50 4x", "1000", "4096", _LINEAR, 0.765, f"{_V1}, table 6"),
        Published("ResNet-50 1x", "800", "4096", _LINEAR, 0.717, _V2),
        Published("ResNet-50 1x, SK", "800", "4096", _LINEAR, 0.746, _V2),
        Published("ResNet-101 1x", "800", "4096", _LINEAR, 0.736, _V2),
        Published("ResNet-152 1x", "800", "4096", _LINEAR, 0.745, _V2),
        Published("ResNet-152 3x, SK", "800", "4096", _LINEAR, 0.798, _V2),
    ),
    "cifar10": (
        Published("ResNet-50", "1000", "1024", _LINEAR, 0.940, f"{_V1}, appendix B.9"),
        Published("ResNet-18", "1000", "512", _LINEAR, 0.91, "README of google-research/simclr"),
        Published("ResNet-18", "800", "512", _LINEAR, 0.911, "SimSiam (arXiv 2011.10566), app. D"),
        Published("ResNet-18", "200", "512", "kNN, k = 200", 0.848, "Lightly's benchmarks"),
        Published("ResNet-18", "800", "512", "kNN, k = 200", 0.879, "Lightly's benchmarks"),
    ),
}


def data_set(name: str) -> str:
    """Return what `PUBLISHED` calls a data set that a recipe or a results file names.

    Both may add a version (`cifar10:3.0.2`), a results file also its source (`tfds:cifar10`).
    """
    return re.split("[:/]", name.removeprefix("tfds:"))[0]


def beside(data: str) -> tuple[Published, ...]:
    """Return the published numbers of a data set, named as in a recipe or a results file."""
    return PUBLISHED.get(data_set(data), ())
