"""The model behind a set of variables is found by names and shapes, or the nearest is named."""

from __future__ import annotations

import dataclasses
import re

import pytest
from interop import official_files as files

from simclr_jax.errors import UserError
from simclr_jax.interop.infer import describe, infer
from simclr_jax.interop.official_names import Architecture
from simclr_jax.interop.tensorflow_files import Checkpoint

SMALL = Architecture(depth=18, width=1 / 64, stem="cifar")


def checkpoint(shapes, unknown=(), flavour="tf1"):
    return Checkpoint("model.ckpt-1", flavour, 1, dict(shapes), {}, list(unknown), {}, None)


@pytest.mark.parametrize("layers", [0, 2, 3])
@pytest.mark.parametrize("classes", [0, 3])
def test_a_model_that_is_spelt_out(layers, classes):
    model = infer(checkpoint(files.shapes(classes, layers)))
    assert model.architecture == SMALL
    assert (model.head_kind, model.head_layers) == (
        ("nonlinear", layers) if layers else ("none", 0)
    )
    assert (model.head_dim, model.classes) == (5 if layers else 0, classes)
    # A classifier of 8 inputs may read h, or any layer of the head but the last, of 5.
    assert model.taps() == (list(range(max(1, layers))) if classes else [])


def test_the_imagenet_stem_is_known_by_its_kernel():
    shapes = files.shapes() | {"base_model/conv2d/kernel": (7, 7, 3, 1)}
    assert infer(checkpoint(shapes)).architecture == dataclasses.replace(SMALL, stem="imagenet")


def _without(pattern):
    return lambda shapes: {n: s for n, s in shapes.items() if not re.search(pattern, n)}


@pytest.mark.parametrize(
    "change, unknown, message",
    [
        (
            _without(r"conv2d_7/"),
            (),
            r"nearest is ResNet-18, width 0.015625, cifar stem, but base_model/conv2d_7/kernel is "
            r"missing: convert",
        ),
        (lambda s: s, ["base_model_2/x"], "but base_model_2/x is unknown: convert"),
        (
            lambda s: s | {"base_model/conv2d_21/kernel": (3, 3, 8, 8)},
            (),
            "nearest is ResNet-18.* but base_model/conv2d_21/kernel is unknown",
        ),
        (
            lambda s: s | {"base_model/conv2d_3/kernel": (5, 5, 1, 1)},
            (),
            r"base_model/conv2d_3/kernel is \[5, 5, 1, 1\] and not \[3, 3, 1, 1\]",
        ),
        (_without("normalization_(3|17)/"), (), r"ResNet-18.*is missing; and 4 more: convert"),
        (_without("nl_0/dense"), (), "nl_"),
    ],
    ids=["missing", "unknown section", "unknown layer", "shape", "many", "head"],
)
def test_what_differs_from_the_nearest_model_is_named(change, unknown, message):
    with pytest.raises(UserError, match=message):
        infer(checkpoint(change(files.shapes(layers=2)), unknown))


@pytest.mark.parametrize(
    "shapes",
    [
        {"head_supervised/linear_layer/dense/kernel": (1, 1, 8, 3)},
        {"head_supervised/linear_layer/dense/bias": (3,)},
        {"head_contrastive/dense/kernel": (8, 8)},
        {"head_contrastive/nl_0/dense/kernel": ()},
        {"base_model/conv2d/kernel": ()},
        {"base_model/conv2d_1/kernel": ()},
    ],
    ids=str,
)
def test_foreign_variables_under_known_names_are_named(shapes):
    for others in (files.shapes(), {}):
        with pytest.raises(UserError, match="nearest is ResNet-") as raised:
            infer(checkpoint(others | shapes))
        assert len(str(raised.value)) < 600


def test_a_variable_of_no_numbers_is_named():
    with pytest.raises(UserError, match=r"conv2d/kernel of .* is \[3, 3, 3, 0\], which no"):
        infer(checkpoint(files.shapes() | {"base_model/conv2d/kernel": (3, 3, 3, 0)}))


def test_an_architecture_in_words():
    largest = Architecture(152, 3.0, "imagenet", 0.0625, 0.25)
    words = "ResNet-152, width 3, selective kernels 0.0625, squeeze-excitation 0.25, imagenet stem"
    assert describe(largest) == words
