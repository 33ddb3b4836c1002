"""PCL: an image must find its key, and the prototype of its cluster (arXiv 2005.04966).

As salesforce/PCL runs it (`pcl/builder.py`, `main_pcl.py`): MoCo, whose loss alone trains the first
epochs. Before each epoch from then on the average embeds all training images, without augmentation
and in inference mode; k-means groups them at several granularities; and to MoCo's loss comes
ProtoNCE's, the mean over granularities. What was made lies in the state until the next epoch, so
that a run that was interrupted goes on with the same clusters.

What differs: the batch whose prototypes are compared is the global one, there that of a GPU; any
cluster may be drawn as a negative, there only those numbered up to the last that has an image;
`queue` and `negatives` are one number there; an empty cluster and a concentration of 0, by which
the loss would divide, are dealt with (`frame/clusters.py`, `LEAST`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from simclr_jax import parallel
from simclr_jax.declaration import Chart, Declaration, Field
from simclr_jax.errors import UserError
from simclr_jax.frame import clusters
from simclr_jax.frame.keys import Keys, root
from simclr_jax.frame.method import Encode, Method, Setting, Views
from simclr_jax.frame.net import Net
from simclr_jax.losses import batch as batches
from simclr_jax.losses.prototypes import Clustering, proto_nce
from simclr_jax.losses.unit import l2_normalize
from simclr_jax.methods import moco
from simclr_jax.train.stage import Batch, Extra, Metrics, Outputs

LEAST = 1e-3  # a concentration, over the mean: that of images that are all one point is 0
FOUND = (
    "How often the prototype of an image's cluster is the likeliest of those it is compared with: "
    "those of the batch and those drawn. 0 until there are clusters."
)


def recipe(config: ConfigDict) -> None:
    """Set head, groups, views and optimiser of PCL v2, which are those of MoCo v2."""
    moco.recipe(config)


def granularities(config: ConfigDict) -> tuple[int, ...]:
    """Return the numbers of clusters of the field `pcl.clusters`."""
    return tuple(int(part) for part in config.pcl.clusters.split(","))


def _are_numbers(text: str) -> bool:
    parts = text.split(",")
    return all(part.isascii() and part.isdecimal() and int(part) > 1 for part in parts)


def check(config: ConfigDict) -> None:
    """Raise `UserError` where MoCo would, or if there are too few clusters to draw from."""
    moco.check(config)
    if config.head.kind == "none":
        raise UserError(
            "head.kind is none, but pcl clusters what the head makes of every image: set "
            "--config.head.kind=mlp"
        )
    drawn, size, fewest = config.pcl.negatives, config.train.batch_size, min(granularities(config))
    if size is not None and drawn > fewest - size:
        many = f"set --config.pcl.negatives={fewest - size} or less, or " if fewest > size else ""
        raise UserError(
            f"pcl.negatives is {drawn}, but of pcl.clusters={config.pcl.clusters} as few as "
            f"{max(fewest - size, 0)} may be no image's of a batch of {size}: {many}ask for "
            f"{drawn + size} clusters or more"
        )


def chance(config: ConfigDict, examples: int) -> float:
    """Return the loss of embeddings that are all equal, at the end.

    Their prototypes are equal too, and so are concentrations.

    Args:
      config: a whole recipe.
      examples: images to learn from.
    """
    c = config.train
    last = (c.steps or round(c.epochs * examples / c.batch_size)) - 1
    return moco.chance(config) + float(_of_prototypes(config, np.array(last), examples))


def chance_at(config: ConfigDict, steps: np.ndarray, examples: int) -> np.ndarray:
    """Return the same after so many steps, `[n]`: MoCo's, and from some epoch on prototypes'."""
    return moco.chance_at(config, steps) + _of_prototypes(config, steps, examples)


def _of_prototypes(config: ConfigDict, steps: np.ndarray, examples: int) -> np.ndarray:
    size = config.train.batch_size
    clustered = steps * size // examples >= config.pcl.warmup_epochs
    return np.where(clustered, math.log(size + config.pcl.negatives), 0.0)


def floor(config: ConfigDict, examples: int) -> float:
    """Return the loss of an image that is its key and its prototype, at right angles to all others.

    Images of a batch that share a cluster keep the loss above this.
    """
    del examples
    others = config.train.batch_size - 1 + config.pcl.negatives
    return moco.floor(config) + math.log1p(others * math.exp(-1 / config.loss.temperature))


def between_epochs(config: ConfigDict, examples: int) -> int:
    """Return the bytes of k-means, over what the head makes of all images."""
    return clusters.held(examples, config.head.dim, max(granularities(config)))


DECLARATION = Declaration(
    title="PCL",
    recipe=recipe,
    reads=("head", "loss.temperature"),
    check=check,
    fields={
        "queue": moco.FIELDS["queue"]._replace(default=16384),
        "momentum": moco.FIELDS["momentum"],
        "clusters": Field(
            "25000,50000,100000",
            "of all images, at each granularity",
            "whole numbers of 2 or more with commas between them, such as 250,500",
            _are_numbers,
        ),
        "negatives": Field(
            16384,
            "prototypes drawn that are no image's of the batch",
            "0 or more",
            lambda x: x >= 0,
        ),
        "warmup_epochs": Field(20, "without prototypes", "0 or more", lambda x: x >= 0),
        "iterations": Field(20, "of k-means", "1 or more", lambda x: x > 0),
        "starts": Field(5, "of k-means, the best of which counts", "1 or more", lambda x: x > 0),
    },
    of_images=True,
    between_epochs=between_epochs,
    chance=chance,
    chance_at=chance_at,
    floor=floor,
    charts=(
        moco.KEY_FOUND,
        Chart("Prototype found", {"prototype_accuracy": "prototype found"}, True, FOUND),
    ),
)


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build PCL.

    Raises:
      UserError: if there are more clusters than images.
    """
    c, sizes, plain = config.pcl, granularities(config), moco.make(config, setting)
    _check_images(max(sizes), setting.examples, "images")

    def forward(net: Net, views: Views, extra: Extra, batch: Batch, keys: Keys) -> Outputs:
        return plain.forward(net, views, extra, batch, keys) | {"example": batch["example"]}

    def first(outputs: Outputs, key: jax.Array) -> Extra:
        dim = outputs["key"].shape[-1]
        dtype = jnp.promote_types(outputs["key"].dtype, jnp.float32)
        sets = {
            str(g): {
                "prototypes": jnp.zeros((k, dim), dtype),
                "concentration": jnp.ones(k, dtype),
                "assigned": jnp.zeros(setting.examples, jnp.int32),
            }
            for g, k in enumerate(sizes)
        }
        made = {"epoch": jnp.asarray(-1, jnp.int32), "sets": sets}  # -1: none yet
        return plain.first(outputs, key) | {"clusters": made}

    def before_epoch(extra: Extra, epoch: int, encode: Encode) -> dict[str, Any]:
        if epoch < c.warmup_epochs:
            return {}
        features, numbers = encode("average", "z")
        _check_images(max(sizes), len(features), "images that can be read")
        features = np.asarray(jax.jit(l2_normalize)(features))
        found = {}
        for g, k in enumerate(sizes):
            # The same starts before every epoch, as there.
            key = jax.random.fold_in(root(config.seed, "clusters"), g)
            old = extra["clusters"]["sets"][str(g)]
            centroids = clusters.kmeans(
                features, k, key, parallel.make_mesh(), iterations=c.iterations, starts=c.starts
            )
            new = described(features, centroids, config.loss.temperature, LEAST)
            assigned = np.zeros(setting.examples, np.int32)
            assigned[numbers] = new["assigned"]
            new["assigned"] = assigned
            found[str(g)] = {name: np.asarray(new[name], old[name].dtype) for name in old}
        return {"clusters": {"epoch": np.asarray(epoch, np.int32), "sets": found}}

    def loss(
        outputs: Outputs, extra: Extra, keys: Keys, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        instances, metrics = plain.loss(outputs, extra, keys, axis_name)

        def of_prototypes(query: jax.Array) -> tuple[jax.Array, Metrics]:
            sets = extra["clusters"]["sets"].values()
            assigned = [of["assigned"][outputs["example"]] for of in sets]
            clusterings = [
                Clustering(
                    of["prototypes"],
                    of["concentration"],
                    own,
                    negatives(keys, g, batches.of_everyone(own, axis_name), k, c.negatives),
                )
                for g, (k, of, own) in enumerate(zip(sizes, sets, assigned, strict=True))
            ]
            share, found = proto_nce(query, clusterings, axis_name=axis_name)
            return share, found | {"prototype_loss": lax.stop_gradient(share)}

        def none_yet(query: jax.Array) -> tuple[jax.Array, Metrics]:
            shapes = jax.eval_shape(of_prototypes, query)
            nothing = 0 * jnp.sum(query)  # of this device, as those shares are
            return jax.tree.map(lambda x: nothing.astype(x.dtype), shapes)

        prototypes, found = lax.cond(
            extra["clusters"]["epoch"] >= 0, of_prototypes, none_yet, outputs["query"]
        )
        return instances + prototypes, metrics | jax.tree.map(lax.stop_gradient, found)

    return dataclasses.replace(
        plain,
        forward=forward,
        loss=loss,
        formats={
            **plain.formats,
            "prototype_loss": "prototypes {:.3f}",
            "prototype_accuracy": "found {:.1%}",
        },
        first=first,
        before_epoch=before_epoch,
    )


def described(
    features: np.ndarray, centroids: np.ndarray, temperature: float, least: float = 0.0
) -> dict[str, np.ndarray]:
    """Return what the loss needs of clusters: `prototypes`, `concentration` and `assigned`.

    Args:
      features: `[n, d]`.
      centroids: `[k, d]`, not of length 1, from which distances are measured.
      temperature: the mean of concentrations.
      least: of them, over the temperature.
    """
    assigned, distances = clusters.nearest(features, centroids, parallel.make_mesh())
    phi = clusters.concentration(distances, assigned, len(centroids), temperature)
    length = np.linalg.norm(centroids, axis=1, keepdims=True)
    return {
        "prototypes": centroids / np.maximum(length, 1e-12),
        "concentration": np.maximum(phi, least * temperature),
        "assigned": assigned,
    }


def negatives(keys: Keys, g: int, taken: jax.Array, size: int, count: int) -> jax.Array:
    """Return the prototypes drawn at a granularity, which are no image's, int32 `[count]`.

    Args:
      keys: of the step.
      g: number of the granularity.
      taken: int `[N]`, the clusters of the images of the global batch.
      size: clusters there are.
      count: how many.
    """
    return clusters.draw_others(keys.of_batch(f"prototypes{g}"), taken, size, count)


def _check_images(most: int, images: int, what: str) -> None:
    """Raise `UserError` if there are more clusters than images."""
    if most > images:
        raise UserError(
            f"pcl.clusters asks for {most} clusters, but there are {images} {what}: ask for fewer"
        )
