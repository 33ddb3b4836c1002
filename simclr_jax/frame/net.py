"""Modules by name over one set of parameters: how a method calls its network."""

from __future__ import annotations

import dataclasses
import inspect
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from simclr_jax import recipes
from simclr_jax.errors import UserError
from simclr_jax.frame.average import Variables
from simclr_jax.train.stage import Extra, Params, Stats

Modules = Mapping[str, nn.Module]

# The keys that these parts start from; every other part has one made of its name.
KEYS = {"encoder": 0, "head": 1, "probe": 2, "classifier": 2}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Which images of those that pass at the same time the rows are, and how they are normalised.

    Attributes:
      number: int32 `[n]`, the place of each image: in the global batch, or in one of its parts.
      groups: of batch normalisation, at the same time: image i belongs to group i mod `groups`.
      parts: of the global batch, which pass one after the other.
    """

    number: jax.Array
    groups: int
    parts: int = 1

    @classmethod
    def of(cls, config: ConfigDict, number: jax.Array) -> Rows:
        """Return the rows of a recipe."""
        return cls(number, recipes.groups_at_once(config), config.train.accumulate)

    @property
    def group(self) -> jax.Array:
        """Return the group of each image, int32 `[n]`."""
        return self.number % self.groups

    def shuffled(self, key: jax.Array, batch_size: int) -> jax.Array:
        """Return groups of the same size, int32 `[n]`, drawn by a permutation of the batch.

        To normalise one of two networks so is MoCo's shuffling: the statistics of a group do not
        tell which images go together. Images stay where they are; only their groups change.

        Args:
          key: the same on every device, see `Keys.of_batch`.
          batch_size: images of the global batch.

        Raises:
          UserError: if the batch passes in parts, which hold whole groups only without shuffling.
          ValueError: if there is one group, in which nothing can be shuffled.
        """
        check_shuffling(self.parts)
        if self.groups < 2:
            raise ValueError(f"bn.groups is {self.groups}: to shuffle them takes 2 or more")
        return jax.random.permutation(key, batch_size)[self.number].astype(jnp.int32) % self.groups


def check_shuffling(parts: int) -> None:
    """Raise `UserError` if a batch passes in parts, of which none knows the groups of the others.

    For the `check` of a method that shuffles: a recipe is then refused before a run begins.
    """
    if parts > 1:
        raise UserError(
            f"train.accumulate is {parts}, but the method shuffles images among the normalisation "
            "groups of the whole batch: set --config.train.accumulate=1"
        )


class Net:
    """Calls modules over parameters, and gathers the batch statistics that they move.

        h = net("encoder", images)["h"]
        z = net("head", h)[-1]

    A part that is called twice moves its statistics twice.

    Args:
      modules: by name.
      params: their parameters, by the same names.
      batch_stats: their statistics, likewise.
      rows: which images these are; None: it does not matter, all are in one group.

    Attributes:
      moved: statistics of the parts that were run in train mode, as the passes left them.
    """

    def __init__(
        self, modules: Modules, params: Params, batch_stats: Stats, rows: Rows | None = None
    ):
        self.modules, self.params, self.batch_stats = modules, params, batch_stats
        self.rows, self.moved = rows, dict[str, Any]()
        self._trained = set[str]()  # parts that were run in train mode

    def __call__(
        self,
        name: str,
        *inputs: Any,
        train: bool = True,
        group: jax.Array | None = None,
    ) -> Any:
        """Run a part.

        Args:
          name: of the part.
          *inputs: of its module. Where it normalises, the first has `v * n` rows, view-major: row r
            is of image r mod n.
          train: normalise by statistics of the batch, and move the averages; False: by the
            averages, which stay.
          group: int32 `[n]`, the normalisation group of each image, in place of `rows.group`.
        """
        self._check_order(name, train)
        module, variables = self.modules[name], self._variables(name)
        kwargs = self._arguments(name, inputs[0], train, group)
        if not train:
            return module.apply(variables, *inputs, **kwargs)
        outputs, moved = module.apply(variables, *inputs, mutable=["batch_stats"], **kwargs)
        if moved.get("batch_stats"):  # empty, not missing, where the part has none
            self.moved[name] = moved["batch_stats"]
        return outputs

    @property
    def stats(self) -> Stats:
        """Return the statistics of all parts after all passes so far."""
        return self.batch_stats | self.moved

    def _check_order(self, name: str, train: bool) -> None:
        """Raise `UserError` if a pass reads averages that only some parts of a batch have moved."""
        if train:
            self._trained.add(name)
        elif name in self._trained and self.rows is not None and self.rows.parts > 1:
            raise UserError(
                f"train.accumulate is {self.rows.parts}, but the method runs its part {name} by "
                "moving averages that the same batch has moved, of which a part of the batch knows "
                "its own: set --config.train.accumulate=1"
            )

    def _variables(self, name: str) -> Variables:
        return {
            "params": self.params.get(name, {}),
            "batch_stats": self.moved.get(name, self.batch_stats.get(name, {})),
        }

    def _arguments(self, name: str, x: Any, train: bool, group: jax.Array | None) -> dict[str, Any]:
        """Return those of `train` and `group` that the module of a part takes."""
        takes = inspect.signature(type(self.modules[name]).__call__).parameters
        found: dict[str, Any] = {"train": train} if "train" in takes else {}
        several = self.rows is not None and self.rows.groups > 1
        if group is not None and not several:
            raise ValueError("groups are given, but bn.groups makes none: set it to 2 or more")
        if "group" in takes and self.rows is not None and several:
            of_image = self.rows.group if group is None else group  # [n]
            found["group"] = jnp.tile(of_image, len(x) // len(of_image))  # [v * n]
        return found


class Averages:
    """The moving averages of a network, as networks: those of a step that are passed through.

    Args:
      modules: of the network.
      extra: of the state, in which averages lie by their names.
      rows: as in `Net`.
    """

    def __init__(self, modules: Modules, extra: Extra, rows: Rows):
        self._modules, self._extra, self.rows = modules, extra, rows
        self._nets: dict[str, Net] = {}

    def __getitem__(self, name: str) -> Net:
        if name not in self._nets:
            average = lax.stop_gradient(self._extra[name])
            self._nets[name] = Net(
                self._modules, average["params"], average["batch_stats"], self.rows
            )
        return self._nets[name]

    @property
    def moved(self) -> dict[str, Stats]:
        """Return for each average the statistics that passes have moved."""
        return {name: net.moved for name, net in self._nets.items()}


class Recorder(Net):
    """A `Net` without parameters, which makes those of a part when it is first called.

    It runs outside the mesh, on the zeros of two images, and only shapes matter; so
    `jax.eval_shape` works on it. It stands in for averages too, whose modules are the same.
    """

    def __init__(self, modules: Modules, key: jax.Array, rows: Rows | None = None):
        super().__init__(modules, {}, {}, rows or Rows(jnp.arange(2), 1))
        self._key = key

    def __getitem__(self, name: str) -> Net:
        return self

    def __call__(
        self,
        name: str,
        *inputs: Any,
        train: bool = True,
        group: jax.Array | None = None,
    ) -> Any:
        """Make a part, or run it if it was made before.

        Raises:
          ValueError: if it was made for inputs of another shape.
        """
        self._check_order(name, train)
        module, kwargs = self.modules[name], self._arguments(name, inputs[0], True, None)
        key = part_key(self._key, name)
        outputs, made = module.init_with_output(key, *inputs, **kwargs)
        params, stats = made.get("params", {}), made.get("batch_stats", {})
        shapes = jax.tree.map(jnp.shape, (params, stats))
        if name not in self.params:
            self.params[name], self.batch_stats[name] = params, stats
        elif (before := self._shapes(name)) != shapes:
            raise ValueError(
                f"the part {name} was made for inputs that give it {before}, and is called with "
                f"inputs {[jnp.shape(x) for x in inputs]} that would give it {shapes}"
            )
        return outputs

    @property
    def variables(self) -> Variables:
        """Return what was made: `params` and `batch_stats` of the parts that have any."""
        return {
            "params": {name: tree for name, tree in self.params.items() if tree},
            "batch_stats": {name: tree for name, tree in self.batch_stats.items() if tree},
        }

    def _shapes(self, name: str) -> Any:
        return jax.tree.map(jnp.shape, (self.params[name], self.batch_stats[name]))


def part_key(key: jax.Array, name: str) -> jax.Array:
    """Return the key that a part starts from."""
    if name in KEYS:
        return jax.random.split(key, 3)[KEYS[name]]
    return jax.random.fold_in(key, zlib.crc32(f"part:{name}".encode()))


def project(net: Net, views: jax.Array, **how: Any) -> list[jax.Array]:
    """Run encoder and projection head on a group of views, all in one forward pass.

    Args:
      net: with the parts `encoder` and `head`.
      views: `[n, v, h, w, c]`.
      **how: see `Net.__call__`.

    Returns:
      h and the output of every layer of the head, z being the last: `[n, v, d]` each.
    """
    n = len(views)
    images = view_major(views)  # [v * n, h, w, c]
    hiddens = net("head", net("encoder", images, **how)["h"], **how)  # [v * n, d] each
    return [image_major(hidden, n) for hidden in hiddens]


def apart(views: jax.Array) -> list[jax.Array]:
    """Return `[n, 1, h, w, c]` for each view of `[n, v, h, w, c]`: each is to pass by itself.

    It is then normalised by its own statistics, and moves the averages of them by itself.
    """
    return jnp.split(views, views.shape[1], axis=1)


def view_major(views: jax.Array) -> jax.Array:
    """Return rows `[v * n, ...]` of `[n, v, ...]`, all first views first."""
    return jnp.moveaxis(views, 1, 0).reshape(-1, *views.shape[2:])


def by_view(views: jax.Array) -> list[jax.Array]:
    """Return the rows of each view, `[n, ...]` each, of `[n, v, ...]`.

    By way of view-major rows, which is how `project` had them: the two turns cancel when compiled.
    """
    return jnp.split(view_major(views), views.shape[1])


def image_major(rows: jax.Array, n: int) -> jax.Array:
    """Return `[n, v, ...]` of rows `[v * n, ...]`, all first views first."""
    return jnp.moveaxis(rows.reshape(-1, n, *rows.shape[1:]), 0, 1)
