"""Our encoder, projection head and classifier for the settings of a recording."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from simclr_jax import recipes
from simclr_jax.interop import official_names as official
from simclr_jax.models.heads import Classifier, ProjectionHead
from simclr_jax.models.normalization import BatchNorm
from simclr_jax.models.resnet import ARCHITECTURES, ResNet
from simclr_jax.optim import masks


def architecture(recording: golden.Recording) -> official.Architecture:
    flags = recording.flags
    return official.Architecture(
        depth=flags["resnet_depth"],
        width=float(flags["width_multiplier"]),
        stem="cifar" if recording.cifar_stem else "imagenet",
        sk_ratio=float(flags["sk_ratio"]),
        se_ratio=float(flags["se_ratio"]),
    )


def knowable(made: official.Architecture) -> dict[str, Any]:
    """Return what the variables of an encoder show of its architecture.

    Ratios show as sizes of what is squeezed, which are whole and have a least one.
    """
    bottleneck, _ = ARCHITECTURES[made.depth]
    stem = int(64 * made.width)

    def squeezed(ratio: float, least: int) -> list[int]:
        sizes = [stem * 2**group for group in range(4)]
        return [max(int(size * ratio), least) for size in sizes] if ratio > 0 else []

    sk = squeezed(made.sk_ratio, 32)
    if not bottleneck:  # pooled shortcuts have no variables of their own; the larger stem has
        sk = [made.stem == "imagenet" and made.sk_ratio > 0]
    se = squeezed(made.se_ratio, 1)
    return {"depth": made.depth, "width": stem, "stem": made.stem, "sk": sk, "se": se}


def encoder(recording: golden.Recording, dtype=jnp.float32) -> ResNet:
    # Unsynchronised normalisation of images is the fused kernel of TensorFlow 1.
    unbiased = recording.tf1 and not recording.flags["global_bn"]
    return ResNet(
        **dataclasses.asdict(architecture(recording)),
        norm=functools.partial(_norm(recording), unbiased_moving=unbiased, param_dtype=dtype),
        param_dtype=dtype,
    )


def head(recording: golden.Recording) -> ProjectionHead:
    flags = recording.flags
    return ProjectionHead(
        kind=(kind := head_kind(recording)),
        layers=recipes.layer_count(kind, flags["num_proj_layers"]),
        dim=flags["proj_out_dim"],
        norm=_norm(recording),
    )


def head_kind(recording: golden.Recording) -> str:
    """Return the kind of projection head; TensorFlow 2 recorded some of its layers alone."""
    official_kind = recording.flags["proj_head_mode"]
    layer = recording.settings.get("layer", "ProjectionHead")
    return {"SupervisedHead": "none", "LinearLayer": "linear", "ProjectionHead": official_kind}[
        layer
    ]


def tap(recording: golden.Recording) -> int:
    """Return the layer of the projection head that a classifier reads; 0 is h."""
    layers = recipes.layer_count(head_kind(recording), recording.flags["num_proj_layers"])
    selector = recording.flags["ft_proj_selector"]
    assert -layers - 1 <= selector <= layers, f"{recording.name}: ft_proj_selector = {selector}"
    return selector % (layers + 1)


def classes(recording: golden.Recording) -> int | None:
    """Return how many classes the official supervised head has or would have; None: not said."""
    said = {group.get("num_classes") for group in (recording.settings, recording.flags)}
    said |= {recording.settings.get("classes")}
    said |= {shape[-1] for name, (shape, _) in recording.variables.items() if "supervised" in name}
    assert len(said - {None}) < 2, f"{recording.name}: classes are {said}"
    return next(iter(said - {None}), None)


def classifier(recording: golden.Recording) -> Classifier | None:
    found = classes(recording)
    return Classifier(found) if found else None


def _norm(recording: golden.Recording):
    settings, flags = recording.settings, recording.flags
    layer = settings.get("batch_norm", {})
    epsilon = layer.get("epsilon", settings.get("batch_norm_epsilon", 1e-5))
    decay = flags["batch_norm_decay"]
    assert layer.get("momentum", decay) == decay, recording.name
    assert layer.get("sync", flags["global_bn"]) == flags["global_bn"], recording.name
    # TensorFlow makes the rate of the moving averages in float32, also in a float64 program.
    return functools.partial(BatchNorm, momentum=1 - float(np.float32(1 - decay)), epsilon=epsilon)


def names(recording: golden.Recording, *sections: str) -> official.Names:
    """Return the official names of the variables of these sections of a model."""
    namer = official.namer(recording.tf1, recording.flags["global_bn"])
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
    keys = jax.random.split(key, 3)
    resnet, projection = encoder(recording), head(recording)
    # Variables do not depend on the size of the images.
    ends, variables = resnet.init_with_output(keys[0], jnp.zeros((2, 16, 16, 3)), True)
    hiddens, projecting = projection.init_with_output(keys[1], ends["h"], True)
    sections = {"encoder": variables, "head": projecting}
    if module := classifier(recording):
        sections["classifier"] = module.init(keys[2], hiddens[tap(recording)])
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
