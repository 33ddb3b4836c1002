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

from simclr_jax.frame.average import Variables
from simclr_jax.parallel import AXIS
from simclr_jax.train.stage import Extra, Moved, Params, Stats

Modules = Mapping[str, nn.Module]

# The keys that these parts start from; every other part has one made of its name.
KEYS = {"encoder": 0, "head": 1, "probe": 2, "classifier": 2}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Which images of the global batch the rows of a device are, and how they are normalised.

    Attributes:
      number: int32 `[n]`, the place of each image in the global batch.
      groups: of batch normalisation: image i belongs to group i mod `groups`.
    """

    number: jax.Array
    groups: int

    @classmethod
    def of_device(cls, n: int, groups: int) -> Rows:
        """Return the rows of this device, inside `shard_map`, of which it has `n`."""
        return cls(lax.axis_index(AXIS) * n + jnp.arange(n, dtype=jnp.int32), groups)

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
        """
        return jax.random.permutation(key, batch_size)[self.number].astype(jnp.int32) % self.groups


class Net:
    """Calls modules over parameters, and gathers the batch statistics that they move.

        h = net("encoder", images)["h"]
        z = net("head", h)[-1]
        target = net.over("average")     # the same modules, other parameters

    A part that is called twice moves its statistics twice. After the forward pass `moved` has what
    all passes left.

    Args:
      modules: by name.
      params: their parameters, by the same names.
      batch_stats: their statistics, likewise.
      extra: of the state, in which averages lie.
      rows: which images these are; None: those of one device, in one group.
    """

    def __init__(
        self,
        modules: Modules,
        params: Params,
        batch_stats: Stats,
        extra: Extra | None = None,
        rows: Rows | None = None,
    ):
        self.modules, self.params, self.rows = modules, params, rows
        self.batch_stats = dict(batch_stats)
        self._extra, self._others = extra or {}, dict[str, Net]()

    def __call__(
        self,
        name: str,
        *inputs: Any,
        train: bool = True,
        group: jax.Array | None = None,
        rngs: dict[str, jax.Array] | None = None,
    ) -> Any:
        """Run a part.

        Args:
          name: of the part.
          *inputs: of its module; the first has `v * n` rows, view-major: row r is of image r mod n.
          train: normalise by statistics of the batch, and move the averages; False: by the
            averages, which stay.
          group: int32 `[n]`, the normalisation group of each image, in place of `rows.group`.
          rngs: for modules that draw, such as `{"dropout": key}`.
        """
        module, variables = self.modules[name], self._variables(name)
        kwargs = self._arguments(name, inputs[0], train, group)
        if not train:
            return module.apply(variables, *inputs, rngs=rngs, **kwargs)
        outputs, moved = module.apply(
            variables, *inputs, rngs=rngs, mutable=["batch_stats"], **kwargs
        )
        if moved.get("batch_stats"):  # empty, not missing, where the part has none
            self.batch_stats[name] = moved["batch_stats"]
        return outputs

    def over(self, name: str) -> Net:
        """Return the same modules over the average of this name; no gradient reaches it."""
        if name not in self._others:
            average = lax.stop_gradient(self._extra[name])
            self._others[name] = Net(
                self.modules, average["params"], average["batch_stats"], rows=self.rows
            )
        return self._others[name]

    @property
    def moved(self) -> Moved:
        """Return the statistics after all passes so far."""
        return Moved(
            self.batch_stats, {name: net.batch_stats for name, net in self._others.items()}
        )

    def _variables(self, name: str) -> Variables:
        return {
            "params": self.params.get(name, {}),
            "batch_stats": self.batch_stats.get(name, {}),
        }

    def _arguments(self, name: str, x: Any, train: bool, group: jax.Array | None) -> dict[str, Any]:
        """Return those of `train` and `group` that the module of a part takes."""
        takes = inspect.signature(type(self.modules[name]).__call__).parameters
        found: dict[str, Any] = {"train": train} if "train" in takes else {}
        if "group" in takes and self.rows is not None and self.rows.groups > 1:
            of_image = self.rows.group if group is None else group  # [n]
            found["group"] = jnp.tile(of_image, len(x) // len(of_image))  # [v * n]
        return found


class Recorder(Net):
    """A `Net` without parameters, which makes those of a part when it is first called.

    It runs outside the mesh, on batches of at least two rows of zeros, and only shapes matter; so
    `jax.eval_shape` works on it. Averages have no parameters yet: `over` is the net itself.
    """

    def __init__(self, modules: Modules, key: jax.Array):
        super().__init__(modules, {}, {})
        self._key = key

    def __call__(
        self,
        name: str,
        *inputs: Any,
        train: bool = True,
        group: jax.Array | None = None,
        rngs: dict[str, jax.Array] | None = None,
    ) -> Any:
        """Make a part, or run it if it was made before.

        Raises:
          ValueError: if it was made for inputs of another shape.
        """
        module, kwargs = self.modules[name], self._arguments(name, inputs[0], True, None)
        keys = {**(rngs or {}), "params": part_key(self._key, name)}
        outputs, made = module.init_with_output(keys, *inputs, **kwargs)
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

    def over(self, name: str) -> Net:
        """Return this net: an average has the same modules."""
        return self

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
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


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


def view_major(views: jax.Array) -> jax.Array:
    """Return rows `[v * n, ...]` of `[n, v, ...]`, all first views first."""
    return jnp.moveaxis(views, 1, 0).reshape(-1, *views.shape[2:])


def by_view(views: jax.Array) -> list[jax.Array]:
    """Return the rows of each view, `[n, ...]` each, of `[n, v, ...]`.

    By way of view-major rows, which is how `project` had them: so nothing is moved in memory.
    """
    return jnp.split(view_major(views), views.shape[1])


def image_major(rows: jax.Array, n: int) -> jax.Array:
    """Return `[n, v, ...]` of rows `[v * n, ...]`, all first views first."""
    return jnp.moveaxis(rows.reshape(-1, n, *rows.shape[1:]), 0, 1)
