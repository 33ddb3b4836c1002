"""From a recipe to the modules that networks are made of."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from simclr_jax import recipes
from simclr_jax.models.heads import Classifier, ProjectionHead
from simclr_jax.models.normalization import BatchNorm
from simclr_jax.models.resnet import Norm, ResNet
from simclr_jax.parallel import AXIS


def encoder(config: ConfigDict) -> ResNet:
    """Build the encoder; in train mode it must run inside the mesh."""
    return ResNet(
        depth=config.model.depth,
        width=config.model.width,
        stem=config.model.stem,
        sk_ratio=config.model.sk_ratio,
        se_ratio=config.model.se_ratio,
        norm=norm(config, unbiased_moving=config.bn.unbiased_moving and config.bn.groups != 1),
        dtype=jnp.dtype(config.train.dtype),
        param_dtype=param_dtype(config),
        remat=config.train.remat == "block",
        inputs=config.model.input,
        variant=config.model.variant,
    )


def projection_head(config: ConfigDict) -> ProjectionHead:
    """Build the projection head."""
    c = config.head
    return _head(
        config,
        kind=c.kind,
        layers=recipes.head_layers(config),
        hidden=c.hidden,
        dim=c.dim,
        biased=c.bias,
        normalised=c.norm,
    )


def mlp(
    config: ConfigDict,
    hidden: int,
    dim: int,
    layers: int = 2,
    bias: str = "hidden",
    norm: str = "hidden",
) -> ProjectionHead:
    """Build what a method predicts with: `layers` layers, all but the last of width `hidden`.

    `bias` and `norm` say which layers have a bias and which are normalised, as `head.bias` and
    `head.norm` do of the projection head; of that head's they know nothing.
    """
    return _head(
        config,
        kind="mlp",
        layers=layers,
        hidden=hidden,
        dim=dim,
        biased=bias,
        normalised=norm,
    )


def _head(config: ConfigDict, **shape: Any) -> ProjectionHead:
    return ProjectionHead(
        norm=norm(config),
        dtype=jnp.dtype(config.train.dtype),
        param_dtype=param_dtype(config),
        **shape,
    )


def classifier(config: ConfigDict, classes: int) -> Classifier:
    """Build a linear classifier on `h` or on a layer of the projection head."""
    return Classifier(classes, param_dtype=param_dtype(config))


def norm(config: ConfigDict, **fields: Any) -> Norm:
    """Return what makes the normalisation layers of a recipe."""
    return functools.partial(
        BatchNorm,
        momentum=config.bn.momentum,
        epsilon=config.bn.epsilon,
        groups=recipes.groups_at_once(config),
        axis_name=AXIS,
        param_dtype=param_dtype(config),
        **fields,
    )


def param_dtype(config: ConfigDict) -> jnp.dtype:
    """Return the dtype of parameters and statistics: never narrower than float32."""
    return jnp.promote_types(config.train.dtype, jnp.float32)
