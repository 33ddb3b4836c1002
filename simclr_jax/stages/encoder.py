"""A frozen encoder with its preprocessing: what a run leaves behind, ready to use."""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from simclr_jax import parallel, recipes
from simclr_jax.augment.resize import to_float
from simclr_jax.data.decode import Rules
from simclr_jax.errors import UserError, choose
from simclr_jax.evaluate import features, maps
from simclr_jax.evaluate.logistic import Weights
from simclr_jax.frame import modules
from simclr_jax.models.inputs import COLOURED
from simclr_jax.recipes import head_layers
from simclr_jax.stages import build, in_hand
from simclr_jax.stages.preprocessing import Preprocessing
from simclr_jax.train import manifest
from simclr_jax.train.saved import Saved

Variables = Mapping[str, Mapping[str, Any]]  # params and batch_stats, each by part

PARTS = ("encoder", "head")
PIXELS = 32  # side of the raw pixels that are scored beside the features
GROUPS = tuple(f"group{i}" for i in range(1, 5))
MAPS = tuple(f"map{i}" for i in range(1, 5))
OWN_SIZE = re.compile(r"(map[1-4])_([1-9]\d{0,6})")  # a map, pooled to about so many numbers


def taps(config: ConfigDict) -> tuple[str, ...]:
    """Name the vectors that can be read off a model.

    `h`, the representation; `head1` to `headL`, the layers of the projection head, `z` being the
    last; `group1` to `group4`, spatial means of the block groups (the fourth is `h`); `map1` to
    `map4`, their maps before that, pooled to about `maps.NUMBERS` numbers, or `map3_2000` to about
    so many; and `pixels`, the image itself, shrunk to `PIXELS` where it is larger: what needs no
    learning.
    """
    return (*vectors(config), *MAPS, "pixels")


def vectors(config: ConfigDict) -> tuple[str, ...]:
    """Name those of the taps that have no place in the image, and so can leave with a model."""
    layers = head_layers(config)
    heads = [f"head{i}" for i in range(1, layers + 1)]
    return ("h", *heads, *(["z"] if layers else []), *GROUPS)


def check_tap(what: str, tap: str, config: ConfigDict) -> None:
    """Raise `UserError`, which begins with `what`, unless a model has a tap."""
    if not OWN_SIZE.fullmatch(tap):
        choose(what, tap, taps(config))


def tap_name(config: ConfigDict, layer: int) -> str:
    """Name a layer of the projection head: 0 is `h`, -1 the last."""
    count = layer % (head_layers(config) + 1)
    return f"head{count}" if count else "h"


def reads_head(wanted: Iterable[str]) -> bool:
    """Tell whether a tap is of the projection head, whose arrays must be there then."""
    return any(tap == "z" or tap.startswith("head") for tap in wanted)


def embedder(
    config: ConfigDict, wanted: Sequence[str]
) -> Callable[[Variables, jax.Array], dict[str, jax.Array]]:
    """Return the function from variables and prepared images to the `wanted` taps, `[b, d]` each.

    Images are floats `[b, h, w, c]` in [0, 1], of which the encoder makes what it is shown
    (`model.input`) itself; the tap `pixels` is of the images. Variables of the head are needed by
    its taps alone. Batch normalisation is in inference mode, so a row does not depend on its
    neighbours. Vectors are float32, or float64 if computed in it.
    """
    encoder, head = modules.encoder(config), modules.projection_head(config)
    dtype = jnp.dtype(config.train.dtype)

    def embed(variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        def part(name: str) -> dict[str, Any]:
            return {kind: tree.get(name, {}) for kind, tree in variables.items()}

        found: dict[str, jax.Array] = {}
        if "pixels" in wanted:
            found["pixels"] = _shrunk(images).reshape(len(images), -1)
        if set(wanted) <= {"pixels"}:
            return found
        ends: Any = encoder.apply(part("encoder"), images.astype(dtype), train=False)
        h = found["h"] = ends["h"]
        if reads_head(wanted):
            hiddens: Any = head.apply(part("head"), h, train=False)
            found["z"] = hiddens[-1]
            found |= {f"head{i}": hidden for i, hidden in enumerate(hiddens)}
        found |= {f"group{i}": ends[f"block_group{i}"] for i in range(1, 5)}
        for tap in wanted:
            if tap not in found:
                found[tap] = _pooled(ends, tap, h.dtype)
        return {tap: _vectors(found[tap], h.dtype) for tap in wanted}

    return embed


def _pooled(ends: Mapping[str, jax.Array], tap: str, dtype: Any) -> jax.Array:
    """Return the map of a block group, pooled as the name of its tap says, `[b, d]`."""
    sized = OWN_SIZE.fullmatch(tap)
    name, numbers = (sized[1], int(sized[2])) if sized else (tap, maps.NUMBERS)
    return maps.pooled(ends[f"block_{name.replace('map', 'group')}"].astype(dtype), numbers)


class Encoder:
    """A frozen encoder: images in, vectors out.

    Nothing about it changes once it is made; `changed` makes another that shares its weights.

    Attributes:
      config: the recipe of its run, which refuses to be changed; `recipes.copied` of it does not.
      run: what a person calls it: `WORKDIR@STEP`.
      step: finished updates.
      taps: names of the vectors it can give, see `taps`.
      preprocessing: from an image to what the network sees.
      mesh: the devices it runs on.
      classifier: the linear classifier of the checkpoint and the tap it reads; None: it has none.
      variables: `params` and `batch_stats`, each by part, on the devices; see `apply`.
    """

    def __init__(
        self,
        config: ConfigDict,
        variables: Variables,
        run: str,
        step: int,
        mesh: Mesh | None = None,
        classifier: tuple[str, Weights] | None = None,
        preprocessing: Preprocessing | None = None,
    ):
        self.config = FrozenConfigDict(recipes.copied(config))
        self.run, self.step, self.classifier = run, step, classifier
        self.taps = taps(config)
        self.mesh = mesh or parallel.make_mesh()
        channels = channels_of(config, variables["params"]["encoder"])
        self.preprocessing = preprocessing or Preprocessing.of(config, channels)
        self.variables = parallel.replicate(self.mesh, variables)
        self._encoders: dict[tuple, Callable] = {}

    @classmethod
    def of(cls, saved: Saved, mesh: Mesh | None = None) -> Encoder:
        """Return the encoder of a checkpoint.

        Raises:
          UserError: if the network of its recipe is not that of its arrays.
        """
        check_fits(saved)
        parts = {part: saved.variables(part) for part in PARTS}
        kinds = ("params", "batch_stats")
        variables = {
            kind: {part: v[kind] for part, v in parts.items() if v[kind]} for kind in kinds
        }
        return cls(saved.config, variables, str(saved), saved.step, mesh, classifier_of(saved))

    def untrained(self) -> Encoder:
        """Return the same network with the first values of its recipe's seed."""
        variables = build.first_variables(self.config, self.channels)
        run = f"{self.run} untrained"
        return Encoder(self.config, variables, run, 0, self.mesh, None, self.preprocessing)

    def changed(
        self,
        fields: Mapping[str, Any] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> Encoder:
        """Return an encoder of the same weights that is used in another way.

        Args:
          fields: of the recipe, by dotted names, such as `train.dtype`; not those that decide which
            weights or which size of images there are, such as `model.depth`.
          preprocessing: from an image to what the network sees; None is that of this encoder.
        """
        config = recipes.copied(self.config)
        for name, value in (fields or {}).items():
            recipes.put(config, name, value)
        return Encoder(
            config,
            self.variables,
            self.run,
            self.step,
            self.mesh,
            self.classifier,
            preprocessing or self.preprocessing,
        )

    @property
    def size(self) -> int:
        """Return the side of the images it works on, pixels."""
        return self.preprocessing.size

    @property
    def channels(self) -> int:
        """Return the channels of the images it works on."""
        return self.preprocessing.channels

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return a checksum of all weights and statistics."""
        check = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(self.variables)):
            name = jax.tree_util.keystr(path)
            check = zlib.crc32(np.ascontiguousarray(leaf).data, zlib.crc32(name.encode(), check))
        return f"crc32 {check:08x}"

    @overload
    def __call__(self, images: Any, tap: str = "h", batch_size: int = 256) -> np.ndarray: ...

    @overload
    def __call__(
        self, images: Any, tap: Sequence[str], batch_size: int = 256
    ) -> dict[str, np.ndarray]: ...

    def __call__(self, images: Any, tap: Any = "h", batch_size: int = 256) -> Any:
        """Encode images.

        Args:
          images: uint8, uint16 (scaled by the run's `data.white_level`), or floats in [0, 1]: one
            image `[h, w]` or `[h, w, c]`, a batch `[n, h, w, c]`, or a sequence of images of any
            sizes; c is 1 or 3. An image may also be the path of a file, or one of Pillow's. They
            are resized and cropped as at the run's evaluations. Take nothing else off them: a mean
            and deviation (`model.input`) are the encoder's own.
          tap: which vector, see `taps`; or several, such as `("h", "z")`, from one pass.
          batch_size: images in a forward pass, over all devices.

        Returns:
          `[n, d]`, or `[d]` for one image; of several taps a dictionary of such. Of no images, an
          empty list or batch, `[0, d]`.

        Raises:
          UserError: for an unknown tap, or something that is no image.
        """
        wanted = _several(tap)
        for one in wanted:
            check_tap("tap", one, self.config)
        several = not in_hand.is_one(images)
        rules = Rules.of(self.config.data)
        views = [
            self.preprocessing(in_hand.pixels(image, rules))
            for image in (images if several else [images])
        ]
        if views:
            # Powers of 2, so that few sizes are compiled.
            size = min(batch_size, 1 << (len(views) - 1).bit_length())
            found = self.extract(np.stack(views), wanted, size, prepared=True)
        else:
            found = {one: self._none(one) for one in wanted}
        rows = {one: x if several else x[0] for one, x in found.items()}
        return rows[tap] if isinstance(tap, str) else {one: rows[one] for one in wanted}

    def apply(self, variables: Variables, images: jax.Array, tap: Any = "h") -> Any:
        """Return vectors as a function of weights and images, for `jax.jit`, `grad` or `vmap`.

            views = np.stack([encoder.preprocessing(image) for image in arrays])
            h = jax.jit(encoder.apply)(encoder.variables, views)  # [n, d]

        Nothing about it depends on devices or on neighbours in the batch; batch normalisation is
        in inference mode.

        Args:
          variables: `encoder.variables`, or others of their shapes.
          images: what `encoder.preprocessing` makes, `[b, size, size, channels]`: floats in [0, 1],
            or uint8.
          tap: which vector, see `taps`; or several.

        Returns:
          `[b, d]` float32; of several taps a dictionary of such.

        Raises:
          UserError: for an unknown tap.
        """
        wanted = _several(tap)
        for one in wanted:
            check_tap("tap", one, self.config)
        found = embedder(self.config, wanted)(variables, to_float(images))
        return found[tap] if isinstance(tap, str) else found

    def _none(self, tap: str) -> np.ndarray:
        """Return the vectors of no images, `[0, d]`."""
        view = jax.ShapeDtypeStruct((1, self.size, self.size, self.channels), np.float32)
        found = jax.eval_shape(embedder(self.config, (tap,)), self.variables, view)[tap]
        return np.empty((0, *found.shape[1:]), found.dtype)

    def extract(
        self, images: Any, wanted: Sequence[str], batch_size: int = 512, prepared: bool = False
    ) -> dict[str, np.ndarray]:
        """Encode images of one size, `[m, h, w, c]` or what can be sliced like it.

        Args:
          images: uint8 or floats in [0, 1].
          wanted: taps.
          batch_size: images in a forward pass, over all devices.
          prepared: they are what the preprocessing gives; otherwise the device prepares them.

        Returns:
          `[m, d]` for each tap.
        """
        for tap in wanted:
            check_tap("tap", tap, self.config)
        key = (*wanted, prepared)
        if key not in self._encoders:  # `features.extract` compiles once per function object
            self._encoders[key] = self._encoder(wanted, prepared)
        return features.extract(self._encoders[key], self.variables, images, self.mesh, batch_size)

    def _encoder(self, wanted: Sequence[str], prepared: bool) -> Callable:
        embed = embedder(self.config, wanted)
        prepare = to_float if prepared else self.preprocessing.on_device
        return lambda variables, images: embed(variables, prepare(images))


def _several(tap: str | Sequence[str]) -> tuple[str, ...]:
    """Return the taps that are asked for, each once."""
    return (tap,) if isinstance(tap, str) else tuple(dict.fromkeys(tap))


def check_fits(saved: Saved) -> None:
    """Check, by shapes alone, that the network of a recipe is that of the arrays of its checkpoint.

    Raises:
      UserError: naming where they differ.
    """
    first = [name for name in saved.leaves if name.startswith("params/encoder/stem")]
    if not first:
        raise UserError(f"{saved} has no encoder: give a run of this program")
    channels = channels_of(saved.config, saved.variables("encoder")["params"])
    wanted = _leaves(saved.config.to_json(), channels)
    prefixes = tuple(f"{kind}/{part}/" for kind in ("params", "batch_stats") for part in PARTS)
    there = {
        name: manifest.Leaf(tuple(leaf.shape), "")
        for name, leaf in saved.leaves.items()
        if name.startswith(prefixes)
    }
    if found := manifest.differences(wanted, there):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(
            f"the arrays of {saved} are not those of the network in its config.json "
            f"({'; '.join(found[:3])}{more}): put back the config.json that it was trained by"
        )


@functools.lru_cache(16)
def _leaves(recipe: str, channels: int) -> dict[str, manifest.Leaf]:
    """Return the arrays, without types, of encoder and head that a recipe, as JSON, makes."""
    config = ConfigDict(json.loads(recipe))
    first = jax.eval_shape(lambda: build.first_parts(config, channels))
    return {
        name: manifest.Leaf(leaf.shape, "") for name, leaf in manifest.named_leaves(first).items()
    }


def classifier_tap(saved: Saved) -> int | None:
    """Return the layer of the head that the classifier of a run reads, None if it is not known."""
    if converted := saved.record.get("converted"):
        return converted["classifier_tap"]
    trained = "params/classifier/dense/kernel" in saved.leaves
    return saved.config.finetune.tap if trained else saved.config.eval.probe_tap


def classifier_of(saved: Saved) -> tuple[str, Weights] | None:
    """Return the classifier of a fine-tuned or converted run, or else the online probe."""
    layer = classifier_tap(saved)
    for part in ("classifier", "probe"):
        dense = saved.variables(part)["params"].get("dense")
        if dense and layer is not None:
            return tap_name(saved.config, layer), Weights(dense["kernel"], dense["bias"])
    return None


def _vectors(x: jax.Array, dtype: Any) -> jax.Array:
    return (jnp.mean(x, (1, 2), dtype=dtype) if x.ndim == 4 else x).astype(dtype)


def _shrunk(images: jax.Array) -> jax.Array:
    """Shrink images `[b, h, w, c]` to a size at which a whole data set of them fits in memory."""
    b, height, width, c = images.shape
    if max(height, width) <= PIXELS:
        return images
    return jax.image.resize(images, (b, PIXELS, PIXELS, c), "linear")


def channels_of(config: ConfigDict, encoder: Mapping[str, Any]) -> int:
    """Return the channels of the images that the encoder of a recipe takes.

    They are not those of its first convolution where `model.input` makes one channel of three.
    """
    if config.model.input in COLOURED:
        return 3
    first = encoder["stem1_conv"] if "stem1_conv" in encoder else encoder["stem_conv"]
    return jax.tree.leaves(first)[0].shape[2]
