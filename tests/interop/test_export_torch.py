"""Exports that PyTorch and its relatives run, where they are installed."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from flax import traverse_util
from interop import torch_packages
from stages.written import write_run
from train import tiny

import simclr_jax
from simclr_jax.errors import UserError
from simclr_jax.interop import export, libraries, network, to_torch
from simclr_jax.interop.export import Options
from simclr_jax.stages import build
from simclr_jax.train import saved

IMPORT = re.compile(r"(import|from) ")

torch = pytest.importorskip("torch", reason="torch is not installed")

# Every way to build a block, a stem, a shortcut, an input; sides that pools meet even and odd.
NETWORKS = {
    "official pool, even": {"model__stem": "imagenet", "data__image_size": 20},
    "official pool, odd": {"model__stem": "imagenet", "data__image_size": 18},
    "torchvision": {
        "model__depth": 18,
        "model__stem": "imagenet",
        "model__variant": "torchvision",
        "data__image_size": 20,
        "model__input": "normalised",
    },
    "selective kernels": {
        "model__depth": 50,
        "model__stem": "imagenet",
        "model__sk_ratio": 0.0625,
        "data__image_size": 36,
        "model__input": "standardised",
    },
    "pooled shortcuts": {"model__sk_ratio": 0.0625, "data__image_size": 9},
    "excitation": {"model__se_ratio": 0.25, "model__input": "lightness", "bn__epsilon": 1e-3},
    "another head": {"head__kind": "mlp", "head__norm": "all_plain", "head__bias": "last"},
}


def leaving(taps=("h", "z", "head1", "group1", "group3"), **fields):
    """Return a network with random weights and statistics, without a run on disk."""
    config, random = tiny.recipe(**fields), np.random.default_rng(0)
    first = build.first_variables(config, 3)
    leaves = {}
    for name, x in traverse_util.flatten_dict(first, sep="/").items():
        noisy = np.asarray(x) + 0.2 * random.normal(size=x.shape)
        leaves[name] = (np.abs(noisy) + 0.2 if name.endswith("var") else noisy).astype(np.float32)
    read = saved.Saved("random", 3, config.to_dict(), leaves)  # type: ignore[arg-type]
    return network.of_saved(read, taps)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_module_computes_what_we_compute(name, tmp_path):
    made = leaving(**NETWORKS[name])
    to_torch.write(made, tmp_path / "x")
    images = made.reference(5)
    found = to_torch.run(tmp_path / "x", made, images)
    assert list(found) == list(made.taps)
    shares = network.differences(found, made.expected(images))
    assert max(shares.values()) < 2e-5, shares


def test_the_module_needs_nothing_of_ours(tmp_path):
    made = leaving(("h",))
    to_torch.write(made, tmp_path / "x")
    text = (tmp_path / "x" / "encoder.py").read_text()
    imported = {line.split()[1].split(".")[0] for line in text.splitlines() if IMPORT.match(line)}
    assert imported == {"__future__", "json", "typing", "torch"}
    state = torch.load(tmp_path / "x" / "weights.pt", weights_only=True)
    assert state["bn1.num_batches_tracked"] == 3
    assert not any(name.startswith(("head", "fc")) for name in state)


def test_the_module_can_be_trained_on(tmp_path):
    """Its statistics move as ours do: a tenth of the way, for a momentum of 0.9."""
    made = leaving(("h",))
    to_torch.write(made, tmp_path / "x")
    model = to_torch.model_of(tmp_path / "x").train()
    before = model.bn1.running_mean.clone()
    images = torch.from_numpy(made.reference(4).transpose(0, 3, 1, 2).copy())
    model(images)["h"].sum().backward()
    with torch.no_grad():
        seen = model.conv1(images).mean((0, 2, 3))
    torch.testing.assert_close(model.bn1.running_mean, 0.9 * before + 0.1 * seen)
    assert model.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_library_loads_it_strictly_with_equal_features(library, tmp_path):
    getattr(torch_packages, library)()
    fields = {"model__depth": 18, "model__width": 1.0, "model__stem": "imagenet"}
    made = leaving(
        ("h",),
        **fields,
        model__variant="torchvision",
        model__input="normalised",
        data__image_size=40,
    )
    to_torch.write(made, tmp_path / "x")
    match = libraries.demand(made, library)
    images = made.reference(3)
    state = to_torch.load_state(tmp_path / "x")
    found = libraries.run(match, state, made, images)
    shares = network.differences(found, made.expected(images))
    assert shares["h"] < 2e-5
    # Not by its own pool: the same arrays in the official variant give other features.
    other = leaving(("h",), **{**fields, "model__depth": 50}, data__image_size=40)
    with pytest.raises(UserError, match="max-pool pads on both sides: train"):
        libraries.demand(other, library)


def test_the_door_of_torch_says_where_it_loads(tmp_path):
    run = write_run(tmp_path / "run", model__stem="imagenet", data__image_size=16)
    said: list[str] = []
    export.run(Options(str(run), "torch", str(tmp_path / "x"), ("h", "logits")), said.append)
    assert sum(line.startswith("differs   by ") for line in said) == 2
    assert any(
        line.startswith("loads     not by timm: it has no ResNet-10: use enc") for line in said
    )
    about = json.loads((tmp_path / "x" / "about.json").read_text())
    assert about["classifier"] == {"tap": "h", "classes": tiny.CLASSES}


def test_onnx_runs_with_any_number_of_bytes(tmp_path):
    """Through onnxruntime, preprocessing inside: what `load` makes of the same images."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    run = write_run(tmp_path / "run", data__image_size=12)
    out = tmp_path / "x.onnx"
    options = Options(str(run), "onnx", str(out), ("h", "z"), preprocess="17x23")
    export.run(options, lambda line: None)
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert [(x.name, x.type) for x in session.get_inputs()] == [("images", "tensor(uint8)")]
    images = np.random.RandomState(0).randint(0, 256, (4, 17, 23, 3), np.uint8)
    encoder = simclr_jax.load(run)
    for count in (1, 4):
        found = session.run(["h", "z"], {"images": images[:count]})
        for x, tap in zip(found, ("h", "z"), strict=True):
            wanted = encoder(images[:count], tap=tap)
            np.testing.assert_allclose(x, wanted, atol=1e-4 * np.abs(wanted).max())
    about = json.loads(session.get_modelmeta().custom_metadata_map["about"])
    assert about["preprocessing"]["view"]["inside"] is True
