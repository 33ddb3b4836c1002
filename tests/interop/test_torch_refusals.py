"""Weights of PyTorch that this program has no encoder for, or cannot read: one line each."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from interop import here, record_torch

from simclr_jax.errors import UserError
from simclr_jax.interop import convert, convert_torch, torch_files
from simclr_jax.interop.written import Options

safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")

RECORDED = np.load(record_torch.RECORDED)
SHAPES = {case: record_torch.shapes_of(RECORDED, case) for case in record_torch.CASES}
R18, R50 = SHAPES["resnet18"], SHAPES["resnet50"]


def without(shapes, *parts):
    return {name: shape for name, shape in shapes.items() if not any(p in name for p in parts)}


def named(shapes, before):
    return {f"{before}{name}": shape for name, shape in shapes.items()}


def lightly_in_a_row():
    """Children of lightly's ResNetGenerator: between bn1 and layer1 there is no module."""
    place = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "linear")
    small = SHAPES["resnet18_small"]
    return {
        f"backbone.{place.index(name.partition('.')[0])}.{name.partition('.')[2]}": shape
        for name, shape in without(small, "fc.").items()
    }


DEEP = without(R50, "conv1.weight") | {
    **{name: R50[name] for name in R50 if name.startswith("layer")},
    **{"conv1.0.weight": (4, 3, 3, 3), "conv1.3.weight": (4, 4, 3, 3)},
    "conv1.6.weight": (8, 4, 3, 3),
}

REFUSED = {
    "missing": (
        without(R18, "layer3.1.bn2.running_var", "layer4.0.conv1"),
        r"nearest is ResNet-18, width 0.125, .*layer3.1.bn2.running_var is missing",
    ),
    "no stem": (without(R18, "conv1.weight") | {"layer1.0.conv1.weight": (8, 8, 3, 3)}, "missing"),
    "unknown": (R18 | {"layer4.1.gate.weight": (8,)}, r"but layer4.1.gate.weight is unknown"),
    "unknown beside": (
        named(R18, "module.") | {"module.attnpool.weight": (8, 8)},
        r"beside the layers of a ResNet module.attnpool.weight, which are unknown",
    ),
    "shape": (
        R18 | {"layer2.0.conv2.weight": (16, 16, 5, 5)},
        r"layer2.0.conv2.weight is \[16, 16, 5, 5\] and not \[16, 16, 3, 3\]",
    ),
    "bias": (R18 | {"conv1.bias": (8,)}, "conv1.bias is unknown"),
    "deep stem": (DEEP, "deep stem of three 3x3 convolutions, as timm's resnet50d"),
    "pooled shortcuts": (
        R50 | {"layer2.0.downsample.2.weight": (64,)},
        "shortcuts that are pooled first",
    ),
    "attention": (R50 | {"layer1.0.se.conv.weight": (1, 1, 3)}, "attention inside its blocks"),
    "group normalisation": (without(R50, "running_", "num_batches"), "without moving statistics"),
    "ResNeXt": (R50 | {"layer1.0.conv2.weight": (8, 1, 3, 3)}, r"convolutions in groups"),
    "wide": (R50 | {"layer1.0.conv1.weight": (16, 8, 1, 1)}, r"\(wide_resnet\)"),
    "channels": (R18 | {"conv1.weight": (8, 5, 7, 7)}, "a stem for images of 5 channels"),
    "stem of 5": (R18 | {"conv1.weight": (8, 3, 5, 5)}, "a stem of 5x5 pixels"),
    "stem of nothing": (R18 | {"conv1.weight": (0, 3, 7, 7)}, "which no array can be"),
    "stem, flat": (R18 | {"conv1.weight": (8,)}, "which no array can be"),
    "depth": (without(R50, "layer3.5."), "3, 4, 5, 3 bottlenecks in its groups, which no depth"),
    "lightly in a row": (lightly_in_a_row(), "no activation after its first normalisation"),
    "solo-learn for CIFAR": (
        named(without(SHAPES["resnet18_small"], "fc."), "backbone.")
        | {"classifier.weight": (10, 64)},
        r"a stem padded by 2 pixels \(solo-learn for CIFAR\)",
    ),
    "ViT": (
        {"cls_token": (1, 1, 8), "patch_embed.proj.weight": (8, 3, 16, 16)},
        r"a vision transformer and no ResNet \(names are cls_token, patch_embed.proj.weight\)",
    ),
    "ConvNeXt": ({"stages.0.blocks.0.conv_dw.weight": (8, 1, 7, 7)}, "a ConvNeXt and no ResNet"),
    "ResNet of transformers": (
        {"encoder.stages.0.layers.0.layer.0.convolution.weight": (8, 8, 1, 1)},
        "a network of another kind",
    ),
    "text": ({"embeddings.weight": (8, 8)}, r"no ResNet \(names are embeddings.weight\)"),
    "nothing": ({}, "holds no tensors"),
}


def write(directory, arrays, name="weights.safetensors"):
    safetensors.save_file(arrays, directory / name)
    return directory / name


def zeros(shapes):
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("shapes, message", REFUSED.values(), ids=REFUSED)
def test_another_network_is_named_with_what_differs(shapes, message, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        convert.run(str(write(tmp_path, zeros(shapes))), str(tmp_path / "run"), here.NONE)
    assert str(raised.value).isprintable()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (
            Options(tap=1),
            "--tap=1 is where a classifier reads, and none is taken from weights of P",
        ),
        (Options(prefix="encoder_k"), "--prefix=encoder_k names no encoder of .*: give --prefix="),
        (Options(input="normalized"), '--input is "normalized".*did you mean "normalised"'),
    ],
)
def test_options_that_contradict_the_file(options, message, tmp_path):
    path = write(tmp_path, zeros(named(R18, "module.")))
    with pytest.raises(UserError, match=message):
        convert_torch.open_model(path, options)


@pytest.mark.parametrize(
    "value, message",
    [
        (np.full(8, np.nan, np.float32), "bn1.bias of .* is not finite"),
        (np.zeros(8, np.int64), "bn1.bias of .* is int64, but weights are floats"),
    ],
)
def test_values_that_are_no_weights(value, message, tmp_path):
    path = write(tmp_path, record_torch.values(R18) | {"bn1.bias": value})
    with pytest.raises(UserError, match=message):
        convert_torch.open_model(path, here.NONE).read()


def test_no_damaged_file_is_taken_for_another(tmp_path):
    path = write(tmp_path, zeros({"conv1.weight": (8, 3, 7, 7)}))
    content = path.read_bytes()
    for damaged in (b"", b"\0", content[:20], content[:-1], b"\xff" * 9 + content[9:], b"PK" * 99):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged or no file of weights") as raised:
            torch_files.open_weights(path)
        assert str(raised.value).isprintable()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no\.pth cannot be read \(No such file or directory\)"):
        convert.run(str(tmp_path / "no.pth"), str(tmp_path / "run"), here.NONE)
    (tmp_path / "weights.safetensors").mkdir()
    with pytest.raises(UserError, match=r"weights\.safetensors is to hold a TensorFlow checkpoint"):
        convert.run(str(tmp_path / "weights.safetensors"), str(tmp_path / "run"), here.NONE)


@pytest.mark.parametrize(
    "name, package", [("weights.safetensors", "safetensors"), ("weights.pth", "torch")]
)
def test_a_missing_package_is_named_with_what_installs_it(name, package, tmp_path, monkeypatch):
    path = write(tmp_path, zeros(R18), name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{package}, which is not installed: pip install .+"):
        torch_files.open_weights(path)


@pytest.mark.parametrize(
    "source, found",
    [
        ("a/model.ckpt-7", False),
        ("a/checkpoint_0199.pth.tar", True),
        ("a/last.CKPT", True),
        ("a/resnet50.torch", True),
        ("gs://bucket/weights.pth", False),
    ],
)
def test_files_are_known_by_their_endings(source, found):
    assert (torch_files.find(source) is not None) == found
