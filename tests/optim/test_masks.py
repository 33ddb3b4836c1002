"""Roles of parameters, on the tree of a real model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from simclr_jax.models.heads import Classifier, ProjectionHead
from simclr_jax.models.normalization import BatchNorm
from simclr_jax.models.resnet import ResNet
from simclr_jax.optim import masks


def model():
    """Return the parameters, as shapes, of an encoder with all that may sit on it."""

    def init(key):
        encoder = ResNet(50, 0.125, "imagenet", norm=BatchNorm)
        ends, variables = encoder.init_with_output(key, jnp.zeros((2, 32, 32, 3)), True)
        head = ProjectionHead("nonlinear", 3, 16, norm=BatchNorm).init(key, ends["h"], True)
        linear = Classifier(10).init(key, ends["h"])["params"]
        return {
            "encoder": variables["params"],
            "head": head["params"],
            "probe": linear,
            "classifier": linear,
        }

    return jax.eval_shape(init, jax.random.key(0))


def paths(tree, chosen):
    return {path for path, value in flatten_dict(tree).items() if chosen(path, value)}


def test_each_role_holds_exactly_its_parameters():
    params = model()
    classifiers = {"probe", "classifier"}
    # Told from shapes: kernels are the arrays of two dimensions and more.
    want = {
        "kernel": paths(params, lambda p, x: x.ndim > 1 and p[0] not in classifiers),
        "classifier": paths(params, lambda p, x: x.ndim > 1 and p[0] in classifiers),
        "bias": {("probe", "dense", "bias"), ("classifier", "dense", "bias")},
    }
    want["norm"] = paths(params, lambda p, x: x.ndim == 1) - want["bias"]
    assert set(want) == set(masks.ROLES)
    for role, members in want.items():
        assert members
        assert paths(masks.mask(params, (role,)), lambda p, x: x) == members


def test_lars_adapts_exactly_the_kernels_outside_classifiers():
    params = model()
    adapted = paths(masks.mask(params, masks.LARS_ADAPTED), lambda p, x: x)
    # 53 convolutions and 3 layers of the projection head.
    assert len(adapted) == 56
    assert {path[-1] for path in adapted} == {"kernel"}
    assert {path[0] for path in adapted} == {"encoder", "head"}


DECLARED = {"predictor/temperature": "bias", "predictor": "norm", "codes": "kernel"}


@pytest.mark.parametrize(
    "path, role",
    [
        ("predictor/temperature", "bias"),  # the longest says, whichever was declared first
        ("predictor/temperature/scale", "bias"),
        ("predictor/temperatures", "norm"),  # whole names alone
        ("predictor/dense1/kernel", "norm"),  # before what its name would say
        ("codes", "kernel"),
        ("encoder/stem_bn/scale", "norm"),
        ("codebook/kernel", "kernel"),
    ],
)
def test_a_declared_role_says_more_than_a_name(path, role):
    names = tuple(path.split("/"))
    backwards = dict(reversed(DECLARED.items()))
    assert masks.role(names, DECLARED) == masks.role(names, backwards) == role


def test_declared_roles_reach_the_mask():
    params = {"codes": 0.0, "head": {"dense1": {"kernel": 0.0, "bias": 0.0}}}
    found = masks.mask(params, ("kernel",), {"codes": "kernel"})
    assert found == {"codes": True, "head": {"dense1": {"kernel": True, "bias": False}}}


def test_a_declared_role_is_one_that_there_is():
    with pytest.raises(ValueError, match="codes is declared weight: its role must be of kernel,"):
        masks.role(("codes",), {"codes": "weight"})


@pytest.mark.parametrize("path", ["encoder/stem_bn/gamma", "encoder/conv/weights", "ema/scale"])
def test_an_unknown_path_is_an_error_that_names_it(path):
    tree = {"encoder": {"stem_bn": {"scale": 0}}}
    node = tree
    *modules, name = path.split("/")
    for module in modules:
        node = node.setdefault(module, {})
    node[name] = 0
    with pytest.raises(ValueError, match=path):
        masks.mask(tree, ("kernel",))
