"""The published accuracies, number by number, as the papers and projects report them.

SimCLR: tables B.1 and 6, appendix B.9. SimCLRv2: table 1. SimSiam: appendix D. Lightly's page of
benchmarks on CIFAR-10.
"""

from __future__ import annotations

import pytest

from simclr_jax.reporting import published

V1, V2 = "2002.05709", "2006.10029"
IMAGENET = {  # network, epochs: batch, top-1 in per cent, source
    ("ResNet-50 1x", "100"): ("4096", 64.5, (V1, "table B.1")),
    ("ResNet-50 1x", "1000"): ("4096", 69.3, (V1, "table 6")),
    ("ResNet-50 2x", "1000"): ("4096", 74.2, (V1, "table 6")),
    ("ResNet-50 4x", "1000"): ("4096", 76.5, (V1, "table 6")),
    ("ResNet-50 1x", "800"): ("4096", 71.7, (V2, "table 1")),
    ("ResNet-50 1x, SK", "800"): ("4096", 74.6, (V2, "table 1")),
    ("ResNet-101 1x", "800"): ("4096", 73.6, (V2, "table 1")),
    ("ResNet-152 1x", "800"): ("4096", 74.5, (V2, "table 1")),
    ("ResNet-152 3x, SK", "800"): ("4096", 79.8, (V2, "table 1")),
}
CIFAR10 = {  # network, epochs, judged by: batch, top-1 in per cent, source
    ("ResNet-50", "1000", "linear classifier"): ("1024", 94.0, (V1, "B.9")),
    ("ResNet-18", "1000", "linear classifier"): ("512", 91.0, ("google-research/simclr",)),
    ("ResNet-18", "800", "linear classifier"): ("512", 91.1, ("2011.10566", "app. D")),
    ("ResNet-18", "200", "kNN, k = 200"): ("512", 84.8, ("Lightly",)),
    ("ResNet-18", "800", "kNN, k = 200"): ("512", 87.9, ("Lightly",)),
}


def check(row, batch, per_cent, source):
    assert row.batch == batch and 100 * row.top1 == pytest.approx(per_cent)
    assert all(word in row.source for word in source), row.source


def test_imagenet():
    rows = {(row.network, row.epochs): row for row in published.beside("imagenet2012")}
    assert rows.keys() == IMAGENET.keys() and len(published.beside("imagenet2012")) == 9
    for key, want in IMAGENET.items():
        check(rows[key], *want)
        assert rows[key].judged == "linear classifier"


def test_cifar10():
    rows = {(row.network, row.epochs, row.judged): row for row in published.beside("cifar10")}
    assert rows.keys() == CIFAR10.keys() and len(published.beside("cifar10")) == 5
    for key, want in CIFAR10.items():
        check(rows[key], *want)


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar10:3.0.2", "tfds:cifar10", "tfds:cifar10:3.0.2", "cifar10/3.0.2"]
)
def test_a_version_or_a_source_does_not_hide_the_data_set(name):
    assert published.data_set(name) == "cifar10" and len(published.beside(name)) == 5


@pytest.mark.parametrize("name", ["cifar100", "cifar10_corrupted", "imagenet", "digits", ""])
def test_other_data_sets_have_none(name):
    assert published.beside(name) == ()
