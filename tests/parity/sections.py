"""Our encoder, projection head and classifier for the settings of a recording."""

from __future__ import annotations

import dataclasses
import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from simclr_jax import recipes
from simclr_jax.interop import official_names as official
from simclr_jax.models.heads import Classifier, ProjectionHead
from simclr_jax.models.normalization import BatchNorm
from simclr_jax.models.resnet import ResNet
from simclr_jax.optim import masks


def architecture(recording: golden.Recording) -> official.Architecture:
    flags = recording.flags
    return official.Architecture(
        depth=flags.get("resnet_depth", 50),
        width=flags.get("width_multiplier", 1),
        stem="cifar" if recording.cifar_stem else "imagenet",
        sk_ratio=flags.get("sk_ratio", 0.0),
        se_ratio=flags.get("se_ratio", 0.0),
    )


def encoder(recording: golden.Recording, dtype=jnp.float32) -> ResNet:
    # Unsynchronised normalisation of images is the fused kernel of TensorFlow 1.
    unbiased = recording.tf1 and not recording.flags.get("global_bn", True)
    return ResNet(
        **dataclasses.asdict(architecture(recording)),
        norm=functools.partial(_norm(recording), unbiased_moving=unbiased, param_dtype=dtype),
        param_dtype=dtype,
    )


def head(recording: golden.Recording) -> ProjectionHead:
    flags = recording.flags
    return ProjectionHead(
        kind=(kind := head_kind(recording)),
        layers=recipes.layer_count(kind, flags.get("num_proj_layers", 3)),
        dim=flags.get("proj_out_dim", 128),
        norm=_norm(recording),
    )


def head_kind(recording: golden.Recording) -> str:
    """Return the kind of projection head; TensorFlow 2 recorded some of its layers alone."""
    alone = {"SupervisedHead": "none", "LinearLayer": "linear"}
    layer = recording.settings.get("layer")
    return alone.get(layer, recording.flags.get("proj_head_mode", "nonlinear"))


def classifier(recording: golden.Recording) -> Classifier | None:
    classes = recording.settings.get("num_classes", recording.flags.get("num_classes"))
    return Classifier(classes) if classes else None


def _norm(recording: golden.Recording):
    decay = recording.flags.get("batch_norm_decay", 0.9)
    # TensorFlow makes the rate of the moving averages in float32, also in a float64 program.
    return functools.partial(BatchNorm, momentum=1 - float(np.float32(1 - decay)))


def names(recording: golden.Recording, *sections: str) -> official.Names:
    """Return the official names of the variables of these sections of a model."""
    flags = recording.flags
    namer = official.namer(recording.tf1, flags.get("global_bn", True))
    found: official.Names = {}
    if "encoder" in sections:
        found |= namer.encoder(architecture(recording))
    if "head" in sections:
        alone = {"scope": ""} if recording.settings.get("layer") == "LinearLayer" else {}
        module = head(recording)
        found |= namer.head(module.kind, module.layers, **alone)
    if "classifier" in sections and classifier(recording):
        found |= namer.classifier()
    return found


def init(recording: golden.Recording, key: jax.Array) -> dict:
    """Draw initial values of a whole model, as `{params: ..., batch_stats: ...}` of sections."""
    size, keys = recording.flags["image_size"], jax.random.split(key, 3)
    resnet = encoder(recording)
    images = jnp.zeros((2, size, size, 3))
    ends, variables = resnet.init_with_output(keys[0], images, True)
    sections = {"encoder": variables, "head": head(recording).init(keys[1], ends["h"], True)}
    if module := classifier(recording):
        sections["classifier"] = module.init(keys[2], ends["h"])
    return {
        collection: {s: tree[collection] for s, tree in sections.items() if collection in tree}
        for collection in ("params", "batch_stats")
    }


def decay_term(params: dict, optimizer: str, weight_decay: float) -> float:
    """Return what the official loss adds: weight_decay / 2 times the squares of what it decays.

    LARS decays inside the optimiser, but for the classifiers, whose decay stands in the loss: what
    LARS here decays and does not adapt. The other optimisers have all of it in the loss.
    """
    if optimizer == "lars":
        roles = set(masks.LARS_DECAYED) - set(masks.LARS_ADAPTED)
    else:
        roles = set(masks.SGD_DECAYED)
    counted = flatten_dict(masks.mask(params, roles))
    squares = [
        np.sum(np.square(np.asarray(value, np.float64)))
        for path, value in flatten_dict(params).items()
        if counted[path]
    ]
    return 0.5 * weight_decay * sum(squares)
