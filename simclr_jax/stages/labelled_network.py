"""The network that labels teach: encoder, projection head up to a tap, linear classifier.

SimCLRv2 fine-tunes from a middle layer of the projection head (arXiv 2006.10029, section 3): layers
up to `finetune.tap` become part of the encoder. What is frozen, and how its batch normalisation
runs, differs between the two official programs; docs/fidelity.md has the fields.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import parallel
from simclr_jax.frame import modules
from simclr_jax.frame.net import Net, Rows
from simclr_jax.recipes import head_layers
from simclr_jax.stages import build
from simclr_jax.stages.encoder import embedder, tap_name
from simclr_jax.train.stage import Params, Stats, TrainState

PART = "classifier"


class LabelledNetwork:
    """Images in, logits out.

    Args:
      config: a recipe, whose group `finetune` says where the classifier sits and what learns.
      classes: that it tells apart.
    """

    def __init__(self, config: ConfigDict, classes: int):
        self._config, self._classes = config, classes
        self._modules = {
            "encoder": modules.encoder(config),
            "head": modules.projection_head(config),
            PART: modules.classifier(config, classes),
        }
        layers = head_layers(config)
        self._tap = config.finetune.tap % (layers + 1)
        self.tap = tap_name(config, self._tap)
        self._tapped = embedder(config, (self.tap,))

    def first(self, channels: int) -> dict[str, Any]:
        """Return first `params` and `batch_stats`, each by part."""
        made = build.first_parts(self._config, channels, (PART, self._tap, self._classes))
        if self._config.finetune.zero_classifier:
            made["params"][PART] = jax.tree.map(lambda x: 0 * x, made["params"][PART])
        return made

    def first_state(
        self, channels: int, optimizer: optax.GradientTransformation, mesh: Mesh
    ) -> TrainState:
        """Return the state that training starts from, on every device."""

        @jax.jit
        def first() -> TrainState:
            made = self.first(channels)
            params, step = made["params"], jnp.zeros((), jnp.int32)
            return TrainState(step, params, made["batch_stats"], optimizer.init(params))

        return parallel.replicate(mesh, first())

    def learns(self, path: tuple[str, ...]) -> bool:
        """Tell whether the parameter at a path, such as `("head", "dense1", "kernel")`, learns."""
        part, module, *_ = path
        f = self._config.finetune
        if part == "encoder":
            group = re.match(r"group(\d+)_", module)
            return (int(group[1]) if group else 0) >= f.train_from_block
        if part == "head":
            (layer,) = re.findall(r"\d+$", module)
            return f.train_head and int(layer) <= self._tap
        return True

    def in_training(
        self, params: Params, batch_stats: Stats, images: jax.Array, row: jax.Array
    ) -> tuple[jax.Array, Stats]:
        """Return logits `[n, classes]` of images `[n, h, w, c]`, and moved statistics.

        `row` `[n]` is the place of each image in the global batch.

        No gradient reaches what does not learn; blocks below the first that learns are not
        differentiated at all.
        """
        params = jax.tree_util.tree_map_with_path(
            lambda path, p: p if self.learns(_names(path)) else lax.stop_gradient(p), params
        )
        net = Net(self._modules, params, batch_stats, Rows.of(self._config, row))
        ends = net("encoder", images, train=self._config.finetune.encoder_bn == "batch")
        # The whole head, as officially: statistics above the tap move too.
        hiddens = net("head", ends["h"])
        return net(PART, hiddens[self._tap]), net.stats

    def __call__(self, variables: Any, images: jax.Array) -> jax.Array:
        """Return logits `[n, classes]` of prepared images `[n, h, w, c]` in inference mode."""
        tapped = self._tapped(variables, images)[self.tap]
        return Net(self._modules, variables["params"], {})(PART, tapped, train=False)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(str(key.key) for key in path)
