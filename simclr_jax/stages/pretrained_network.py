"""The network of a method, with a probe beside it that watches, as functions of its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from simclr_jax import declaration, recipes
from simclr_jax.frame import modules
from simclr_jax.frame.average import Variables
from simclr_jax.frame.keys import Keys, root
from simclr_jax.frame.method import Method, Views
from simclr_jax.frame.net import Averages, Net, Recorder, Rows, image_major, project, view_major
from simclr_jax.losses.cross_entropy import cross_entropy
from simclr_jax.stages import build
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.views import view_maker
from simclr_jax.train.stage import (
    Batch,
    Extra,
    Metrics,
    Outputs,
    Params,
    Seen,
    Stats,
    Update,
    joined,
)

# Names of parts that the frame gives to every method, or that a stage with labels has.
TAKEN = {"encoder", "head", "probe", "classifier"}


class PretrainedNetwork:
    """A method's network with the probe beside it, as functions over explicit state.

    Args:
      config: a recipe.
      method: built by `pretrain.make_method`.
      inputs: the images.

    Raises:
      ValueError: if the method has a part of a name that is taken.
    """

    def __init__(self, config: ConfigDict, method: Method, inputs: Inputs):
        self._config, self._method, self._train = config, method, inputs.train
        self._said = declaration.find(config.method)
        self._make_views = view_maker(config)
        if taken := TAKEN & method.modules.keys():
            raise ValueError(f"method {config.method} has parts {sorted(taken)}: rename them")
        self._modules = {
            "encoder": modules.encoder(config),
            "head": modules.projection_head(config),
            **method.modules,
        }
        self._probe = config.eval.probe
        if self._probe:
            self._modules["probe"] = modules.classifier(config, inputs.train.classes)

    def look(self, batch: Batch) -> Views:
        """Return what the network looks at in the first step, `[n, v, h, w, c]` by group."""
        return self._looked_at(self._make_views(batch), batch, jnp.zeros((), jnp.int32))

    def show(self, views: Views, batch: Batch) -> Seen:
        """Return what people are shown of what `look` has made; see `Stage.show`."""
        return self._method.show(views, self._keys(batch, jnp.zeros((), jnp.int32)))

    def paint(self, variables: Variables, batch: Batch) -> Mapping[str, jax.Array]:
        """Return what the network makes of the images of a batch; see `Stage.paint`."""
        assert self._method.paint is not None, "asked of methods that answer with pictures"
        net = Net(self._modules, variables["params"], variables["batch_stats"])
        views, first = self._make_views(batch), jnp.zeros((), jnp.int32)
        keys = self._keys(batch, first)
        return self._method.paint(net, self._looked_at(views, batch, first), keys)

    def watch(
        self, extra: Extra, batch: Batch, step: jax.Array
    ) -> tuple[Outputs, Mapping[str, Stats]]:
        """Pass one device's images through the averages; see `Stage.watch`."""
        averages = Averages(self._modules, extra, Rows.of(self._config, batch["row"]))
        return self._seen(averages, self._make_views(batch), extra, batch, step), averages.moved

    def forward(
        self, params: Params, batch_stats: Stats, extra: Extra, batch: Batch, step: jax.Array
    ) -> tuple[Outputs, Stats]:
        """Pass one device's images through the network; see `Stage.forward`."""
        net = Net(self._modules, params, batch_stats, Rows.of(self._config, batch["row"]))
        return self._outputs(net, self._make_views(batch), extra, batch, step), net.stats

    def objective(
        self, outputs: Outputs, extra: Extra, step: jax.Array, axis_name: str
    ) -> tuple[jax.Array, Metrics]:
        """Return this device's share of loss and metrics; see `Stage.objective`."""
        keys = Keys(self._config.seed, step)
        loss, metrics = self._method.loss(outputs, extra, keys, axis_name)
        metrics = joined({"loss": loss}, metrics)
        if self._probe:
            logits = outputs["probe"]["logits"]  # [n, v, classes]
            label = jnp.tile(outputs["probe"]["label"], logits.shape[1])  # [v * n]
            probe_loss, accuracy = cross_entropy(view_major(logits), label, axis_name=axis_name)
            own = {"probe_loss": probe_loss, "train_probe_accuracy": accuracy}
            loss, metrics = loss + probe_loss, joined(metrics, own)
        return loss, metrics

    def after_update(self, extra: Extra, update: Update) -> Extra:
        """Move averages, and what else the method keeps; see `Stage.after_update`."""
        moved = {
            name: average.next(
                extra[name],
                update.params,
                update.watched.get(name, {}),
                update.batch_stats,
                update.step,
            )
            for name, average in self._method.averages.items()
        }
        made = self._method.next(extra, update)
        check_like(made, extra, f"`next` of method {self._config.method}")
        return extra | joined(made, moved)

    def first(self) -> tuple[dict[str, Any], Extra]:
        """Return first parameters and statistics, and what is kept beside them.

        Raises:
          ValueError: if the method names parts that its network does not have.
        """
        net, outputs = self._record(jax.random.key(self._config.seed))
        self._check_names(net)
        averages = {}
        for name, average in self._method.averages.items():
            start = net.variables
            if average.other_start:
                start = self._record(root(self._config.seed, f"average:{name}"))[0].variables
            averages[name] = average.first(start)
        made = self._method.first(outputs, root(self._config.seed, "first:"))
        return net.variables, joined(made, averages)

    @property
    def views_per_image(self) -> int:
        """Return how many views of an image pass through the network."""

        def look() -> Views:
            views, batch = self._zeros()
            return self._looked_at(views, batch, jnp.zeros((), jnp.int32))

        looked_at = sum(views.shape[1] for views in jax.eval_shape(look).values())
        probed = self._probe and self._method.probed
        return looked_at + (len(build.policies(self._config)[probed]) if probed else 0)

    def _record(self, key: jax.Array) -> tuple[Recorder, Outputs]:
        """Make the parts of the network by passes over two images of zeros."""
        net = Recorder(self._modules, key, Rows.of(self._config, jnp.arange(2)))
        (views, batch), step = self._zeros(), jnp.zeros((), jnp.int32)
        outputs = self._outputs(net, views, {}, batch, step)
        return net, joined(outputs, self._seen(net, views, {}, batch, step))

    def _zeros(self) -> tuple[Views, Batch]:
        """Return the views of two images of zeros, and the rest of their batch."""
        batch = {"example": jnp.zeros(2, jnp.int32), "position": jnp.zeros((2, 2), jnp.uint32)}
        if self._train.classes:
            batch["label"] = jnp.zeros(2, jnp.int32)
        dtype, channels = jnp.dtype(self._config.train.dtype), self._train.channels
        views = {
            group: jnp.zeros((2, len(of), of[0].size, of[0].size, channels), dtype)
            for group, of in build.policies(self._config).items()
        }
        return views, batch

    def _check_names(self, net: Recorder) -> None:
        always = ("encoder", "head") if recipes.head_layers(self._config) else ("encoder",)
        named = {
            "the frame": always,
            "rates": self._method.rates,
            "parts": self._said.parts,
        }
        named |= {f"average {name}": a.parts for name, a in self._method.averages.items()}
        for where, parts in named.items():
            if unknown := set(parts) - net.params.keys():
                raise ValueError(
                    f"{where} of method {self._config.method} names {sorted(unknown)}, its network "
                    f"has {sorted(net.params)}"
                )

    def _looked_at(self, views: Views, batch: Batch, step: jax.Array) -> Views:
        return self._method.look(views, self._keys(batch, step))

    def _keys(self, batch: Batch, step: jax.Array) -> Keys:
        return Keys(self._config.seed, step, batch["position"])

    def _shown(self, batch: Batch) -> Batch:
        """Return what a method may know of a batch: labels only if it says that they teach it."""
        names = ("example", "label") if self._said.labels else ("example",)
        return {name: batch[name] for name in names}

    def _seen(
        self, averages: Any, views: Views, extra: Extra, batch: Batch, step: jax.Array
    ) -> Outputs:
        views, keys = self._looked_at(views, batch, step), self._keys(batch, step)
        return self._method.watch(averages, views, extra, self._shown(batch), keys)

    def _outputs(
        self, net: Net, views: Views, extra: Extra, batch: Batch, step: jax.Array
    ) -> Outputs:
        probed, taps = self._method.probed, list[jax.Array]()
        if probed and self._probe:  # before other passes move the averages that this one reads
            taps = project(net, views[probed], train=False)
        views, keys = self._looked_at(views, batch, step), self._keys(batch, step)
        outputs = dict(self._method.forward(net, views, extra, self._shown(batch), keys))
        if not probed:
            taps, layers = outputs.pop("taps"), recipes.head_layers(self._config)
            if len(taps) != layers + 1:
                raise ValueError(
                    f"there are {len(taps)} taps: h and {layers} layers of the head are due"
                )
        if not self._probe:
            return outputs
        # The probe watches, it does not teach.
        tapped = lax.stop_gradient(taps[self._config.eval.probe_tap])  # [n, v, d]
        logits = image_major(net("probe", view_major(tapped)), len(tapped))
        return joined(outputs, {"probe": {"logits": logits, "label": batch["label"]}})


def check_like(made: Extra, kept: Extra, what: str) -> None:
    """Raise `ValueError` unless what is to replace parts of `kept` has their shapes and dtypes.

    A state of another kind could not be restored from a checkpoint.
    """
    for name, tree in made.items():
        if name not in kept:
            raise ValueError(f"{what} makes {name}, which is not kept: make it in `first`")
        new, old = (
            jax.tree.map(lambda x: f"{jnp.result_type(x)}{jnp.shape(x)}", t)
            for t in (tree, kept[name])
        )
        if new != old:
            raise ValueError(f"{what} makes {name} {new}, which was {old}")
