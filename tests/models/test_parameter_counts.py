"""Sizes of the released models: exactly the official graphs', and rounded the published tables'."""

from __future__ import annotations

import functools
import json
import math
from typing import NamedTuple

import golden
import jax
import jax.numpy as jnp
import pytest

from simclr_jax.models.heads import Classifier, ProjectionHead
from simclr_jax.models.normalization import BatchNorm
from simclr_jax.models.resnet import ResNet

# Millions of parameters by depth, width and selective kernels.
SIMCLR = {(50, 1, False): 24, (50, 2, False): 94, (50, 4, False): 375}  # paper, table 6
SIMCLR_V2 = {  # paper, table 1
    **{(50, 1, False): 24, (50, 1, True): 35, (50, 2, False): 94, (50, 2, True): 140},
    **{(101, 1, False): 43, (101, 1, True): 65, (101, 2, False): 170, (101, 2, True): 257},
    **{(152, 1, False): 58, (152, 1, True): 89, (152, 2, False): 233, (152, 2, True): 354},
    (152, 3, True): 795,
}


class Encoder(NamedTuple):
    depth: int
    width: int
    sk_ratio: float = 0.0
    se_ratio: float = 0.0
    stem: str = "imagenet"


class Size(NamedTuple):
    trainable: int  # numbers
    everything: int  # with moving statistics
    tensors: int  # trainable ones
    variables: int  # with moving statistics


def size(module, *inputs) -> tuple[Size, tuple[int, ...]]:
    """Return the size of a module, and of its (last) output, without computing anything."""
    init = functools.partial(module.init_with_output, train=True)
    if isinstance(module, Classifier):
        init = module.init_with_output
    output, variables = jax.eval_shape(init, jax.random.key(0), *inputs)
    params, everything = jax.tree.leaves(variables["params"]), jax.tree.leaves(variables)
    counts = [sum(math.prod(x.shape) for x in leaves) for leaves in (params, everything)]
    output = output["h"] if isinstance(output, dict) else output
    output = output[-1] if isinstance(output, list) else output
    return Size(*counts, len(params), len(everything)), output.shape


@functools.cache  # the two flavours recorded the same encoders
def encoder(about: Encoder) -> tuple[Size, int]:
    """Return the size of an encoder and the length of `h`."""
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    found, (_, dim) = size(ResNet(**about._asdict(), norm=BatchNorm), images)
    return found, dim


def head(dim: int, layers: int, outputs: int) -> Size:
    h = jax.ShapeDtypeStruct((2, dim), jnp.float32)
    return size(ProjectionHead("nonlinear", layers, outputs, norm=BatchNorm), h)[0]


def recorded(flavour: str) -> dict:
    name = f"parameter_counts-{flavour}.json"
    path = next(folder / name for folder in golden.folders() if (folder / name).exists())
    if not path.exists():
        pytest.skip(f"no {path}", allow_module_level=True)
    return json.loads(path.read_text())


TF1, TF2 = recorded("tf1")["architectures"], recorded("tf2")


def deep_and_wide(depth, width, selective) -> bool:
    """Tell of encoders that take seconds to trace and combine what smaller ones have one by one."""
    return depth > 50 and (width > 1 or selective > 0)


def fewer(cases, about):
    """Mark as slow the cases whose `about` is that of a deep and wide encoder."""
    marks = {True: [pytest.mark.slow], False: []}
    return [
        pytest.param(*case, marks=marks[deep_and_wide(*about(*case))], id=name)
        for name, case in cases.items()
    ]


def official(want):
    return want["resnet_depth"], want["width_multiplier"], want["sk_ratio"]


@pytest.mark.parametrize("name", fewer({n: (n,) for n in TF1}, lambda n: official(TF1[n])))
def test_sizes_are_those_of_the_official_graphs(name):
    want = TF1[name]
    about = Encoder(want["resnet_depth"], want["width_multiplier"], want["sk_ratio"])
    found, dim = encoder(about)
    assert dim == want["feature_dim"]
    assert found.trainable == want["encoder_trainable"]
    assert found.everything == want["encoder_with_moving_statistics"]
    assert found.variables == want["encoder_variables"]

    projection = head(dim, want["num_proj_layers"], want["proj_out_dim"])
    assert projection.trainable == want["projection_head_trainable"]
    assert projection.everything == want["projection_head_with_moving_statistics"]
    for layers, count in want["projection_head_trainable_by_layers"].items():
        assert head(dim, int(layers), want["proj_out_dim"]).trainable == count
    classifier, _ = size(Classifier(1000), jax.ShapeDtypeStruct((2, dim), jnp.float32))
    assert classifier.trainable == want["supervised_head_1000"]


@pytest.mark.parametrize(
    "want",
    fewer({"-".join(map(str, list(w.values())[:5])): (w,) for w in TF2["encoders"]}, official),
)
def test_encoders_are_those_of_tensorflow_2(want):
    stem = "cifar" if want["cifar_stem"] else "imagenet"
    ratios = want["sk_ratio"], want["se_ratio"]
    found, dim = encoder(Encoder(want["resnet_depth"], want["width_multiplier"], *ratios, stem))
    assert dim == want["output_dim"]
    assert found.trainable == want["encoder_trainable"]
    assert found.everything == want["encoder_all"]
    assert found.tensors == want["trainable_tensors"]


@pytest.mark.parametrize("want", TF2["projection_heads"], ids=str)
def test_projection_heads_are_those_of_tensorflow_2(want):
    found = head(want["dim"], want["num_proj_layers"], want["proj_out_dim"])
    assert found.trainable == want["trainable"]


@pytest.mark.parametrize(
    "depth, width, selective",
    fewer({"-".join(map(str, about)): about for about in SIMCLR_V2}, lambda *about: about),
)
def test_millions_are_those_of_the_simclr_v2_paper(depth, width, selective):
    """It counts the encoder with its moving statistics, without heads."""
    found, _ = encoder(Encoder(depth, width, 0.0625 if selective else 0.0))
    assert round(found.everything / 1e6) == SIMCLR_V2[depth, width, selective]


@pytest.mark.parametrize("depth, width, selective", SIMCLR)
def test_millions_are_those_of_the_simclr_paper(depth, width, selective):
    """It counts trainable parameters of the encoder: 375 million at width 4, not 376."""
    found, _ = encoder(Encoder(depth, width))
    assert round(found.trainable / 1e6) == SIMCLR[depth, width, selective]
