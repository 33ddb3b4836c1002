"""Names and shapes of arrays in PyTorch, by torchvision's and timm's own where they are installed.

Of `torchvision.models.resnet18` and `resnet50` the names that decide are here as well.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from interop import official_files, torch_packages

from simclr_jax import recipes
from simclr_jax.interop import official_names, torch_names
from simclr_jax.interop.infer import infer
from simclr_jax.interop.official_names import Architecture
from simclr_jax.interop.tensorflow_files import Checkpoint


def state(module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a module's arrays, without the counters of batches."""
    found = {name: tuple(x.shape) for name, x in module.state_dict().items()}
    return {name: shape for name, shape in found.items() if not name.endswith(torch_names.COUNTER)}


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_torchvision_has_the_same(depth):
    models = torch_packages.torchvision().models
    theirs = state(getattr(models, f"resnet{depth}")())
    assert theirs.pop("fc.weight") and theirs.pop("fc.bias")
    assert torch_names.shapes(Architecture(depth, variant="torchvision")) == theirs
    # In the official variant the first group of basic blocks has a shortcut of its own.
    official = torch_names.shapes(Architecture(depth))
    more = official.keys() - theirs.keys()
    assert {name.rpartition(".")[0] for name in more} == (
        {"layer1.0.downsample.0", "layer1.0.downsample.1"} if depth < 50 else set()
    )


@pytest.mark.parametrize(
    "model, ours",
    [
        ("resnet200", Architecture(200)),
        ("seresnet50", Architecture(50, se_ratio=0.25)),
    ],
)
def test_timm_has_the_same(model, ours):
    timm = torch_packages.timm()
    assert torch_names.shapes(ours) == state(timm.create_model(model, num_classes=0))


def test_the_deep_stem_is_timms():
    """And its shortcuts, but for that of the first group, which only we have."""
    timm = torch_packages.timm()
    theirs = state(timm.create_model("resnet18d", num_classes=0))
    ours = torch_names.shapes(Architecture(18, sk_ratio=0.0625))
    assert {name for name, _ in ours.items() ^ theirs.items()} == {
        "layer1.0.downsample.1.weight",
        *(
            f"layer1.0.downsample.2.{leaf}"
            for leaf in ("weight", "bias", "running_mean", "running_var")
        ),
    }


def test_names_that_are_known_by_heart():
    small = torch_names.shapes(Architecture(18, variant="torchvision"))
    assert len(small) == 5 * (1 + 16 + 3)  # of a convolution and its normalisation
    assert small["layer2.0.downsample.0.weight"] == (128, 64, 1, 1)
    assert small["layer4.1.bn2.running_var"] == (512,)
    large = torch_names.shapes(Architecture(50))
    assert len(large) == 5 * (1 + 48 + 4)
    assert large["conv1.weight"] == (64, 3, 7, 7)
    assert large["layer3.5.conv3.weight"] == (1024, 256, 1, 1)
    selective = torch_names.shapes(Architecture(50, sk_ratio=0.0625, se_ratio=0.25))
    assert selective["layer1.0.sk2.conv.weight"] == (128, 64, 3, 3)
    assert selective["layer1.0.se.fc1.bias"] == (16,)


def test_there_and_back():
    """A head and a classifier too; every name is of one array, and laid out as PyTorch has it."""
    shapes = official_files.shapes(classes=3, layers=2)
    model = infer(Checkpoint("model.ckpt-1", "tf1", 1, shapes, {}, [], {}, None))
    built = model.architecture
    tree = official_names.to_tree(official_files.values(shapes), model.names)
    named = torch_names.to_torch(tree, built, batches=7)
    assert named["head.dense1.weight"].shape == (8, 8) and named["fc.weight"].shape == (3, 8)
    assert named["bn1.num_batches_tracked"] == 7
    kernel = tree["params"]["encoder"]["stem_conv"]["conv"]["kernel"]
    np.testing.assert_array_equal(named["conv1.weight"][0, 2, 1, 0], kernel[1, 0, 2, 0])
    dense = tree["params"]["classifier"]["dense"]["kernel"]
    np.testing.assert_array_equal(named["fc.weight"], dense.T)
    leaves = [
        tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    names = torch_names.paths(leaves, built)
    assert len(names) == len(leaves)
    jax.tree.map(np.testing.assert_array_equal, torch_names.to_tree(named, names), tree)


def test_the_architecture_is_that_of_the_recipe():
    config = recipes.base()
    config.model.update(depth=18, width=0.5, stem="cifar", se_ratio=0.5, variant="torchvision")
    said = dataclasses.asdict(torch_names.architecture(config))
    assert said == {name: config.model[name] for name in said}
    assert said.keys() == {*config.model} - {"input"}
