"""What leaves a run: an encoder with the vectors that are wanted of it, and what is said of it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import AxisType, Mesh

from simclr_jax import parallel
from simclr_jax.augment.resize import center_box, to_float
from simclr_jax.errors import UserError, choose
from simclr_jax.fields import PATHS
from simclr_jax.interop import torch_names
from simclr_jax.interop.official_names import Architecture
from simclr_jax.models.inputs import DEVIATION, MEAN
from simclr_jax.models.resnet import ARCHITECTURES
from simclr_jax.records import NOT_RECIPE
from simclr_jax.stages import encoder as encoders
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved
from simclr_jax.train.saved import Saved

FORMAT = 1  # of what is said of an export
LOGITS = "logits"
REFERENCE = 3  # images that an export is compared on
TOLERANCE = 1e-4  # of the largest number of a tap


@dataclasses.dataclass(frozen=True)
class Network:
    """An encoder in float32, in inference mode, on the first CPU device.

    Attributes:
      encoder: with its preprocessing and its classifier.
      taps: which vectors leave; `logits` are those of the classifier.
      weights: "trained" or "average".
      sides: height and width of uint8 images `[b, height, width, c]` that it prepares itself;
        None: images are floats in [0, 1], of the size of its views.
      record: of its run.
      workdir: of its run.
    """

    encoder: Encoder
    taps: tuple[str, ...]
    weights: str
    sides: tuple[int, int] | None
    record: Mapping[str, Any]
    workdir: str

    @property
    def architecture(self) -> Architecture:
        """Return what decides its arrays."""
        return torch_names.architecture(self.encoder.config)

    @property
    def features(self) -> int:
        """Return the length of `h`."""
        bottleneck, _ = ARCHITECTURES[self.architecture.depth]
        return (32 if bottleneck else 8) * int(64 * self.architecture.width)

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the taps that are made of features: logits are made of the classifier's."""
        classifier = self.encoder.classifier
        own = [tap for tap in self.taps if tap != LOGITS]
        return (*own, *([classifier[0]] if LOGITS in self.taps and classifier else []))

    @property
    def has_head(self) -> bool:
        """Tell whether a tap is of the projection head."""
        return encoders.reads_head(self.reads)

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        """Return the arrays that the taps need, on the host: `params` and `batch_stats` by part."""
        return self.arrays(("encoder", *(["head"] if self.has_head else [])), LOGITS in self.taps)

    def arrays(self, parts: tuple[str, ...], classifier: bool) -> dict[str, Any]:
        """Return the arrays of some parts on the host, and of the classifier if it is wanted."""
        found = {
            kind: {part: tree[part] for part in parts if part in tree}
            for kind, tree in jax.device_get(self.encoder.variables).items()
        }
        if classifier and self.encoder.classifier:
            _, weights = self.encoder.classifier
            found["params"]["classifier"] = {"dense": weights._asdict()}
        return jax.tree.map(lambda x: np.asarray(x, np.float32), found)

    def apply(self, variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        """Return the taps, `[b, d]` float32 each, of images as `sides` says."""
        wanted = tuple(dict.fromkeys(self.reads))
        found = encoders.embedder(self.encoder.config, wanted)(variables, self._prepared(images))
        if LOGITS in self.taps and self.encoder.classifier:
            dense = variables["params"]["classifier"]["dense"]
            h = found[self.encoder.classifier[0]]
            found[LOGITS] = h @ dense["kernel"] + dense["bias"]
        return {tap: found[tap] for tap in self.taps}

    def function(self) -> Callable[[jax.Array], dict[str, jax.Array]]:
        """Return `apply` with its arrays as constants."""
        return functools.partial(self.apply, self.variables)

    def _prepared(self, images: jax.Array) -> jax.Array:
        if self.sides is None:
            return images
        y, x, height, width = self.box()
        size = self.encoder.size
        if (height, width) == (size, size):
            return to_float(images[:, y : y + height, x : x + width])
        return self.encoder.preprocessing.on_device(images)

    def box(self) -> tuple[int, int, int, int]:
        """Return y, x, height and width of the crop of images that it prepares itself."""
        assert self.sides is not None
        return center_box(*self.sides, self.encoder.size, self.encoder.preprocessing.proportion)

    def shape(self) -> tuple[int, int, int]:
        """Return height, width and channels of an image."""
        size = self.encoder.size
        return (*(self.sides or (size, size)), self.encoder.channels)

    def reference(self, count: int = REFERENCE) -> np.ndarray:
        """Return images to compare on: waves of colour, noise and a ramp, again and again."""
        height, width, channels = self.shape()
        y, x, c = np.meshgrid(*(np.arange(n) / n for n in self.shape()), indexing="ij")
        waves = (np.sin(2 * np.pi * (3 * x + c)) + np.cos(2 * np.pi * (2 * y - c * x)) + 2) / 4
        noise = np.random.RandomState(0).uniform(size=(height, width, channels))
        kinds = np.stack([waves, noise, (x + y) / 2])
        images = kinds[np.arange(count) % len(kinds)]
        if self.sides is None:
            return images.astype(np.float32)
        return np.rint(255 * images).astype(np.uint8)

    def expected(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the taps of images as this program computes them."""
        with on_cpu():
            return jax.device_get(jax.jit(self.apply)(self.variables, images))

    @functools.cached_property
    def checksum(self) -> str:
        """Return a digest of all arrays that leave, by name."""
        return checksum(traverse_util.flatten_dict(self.variables, sep="/"))

    def about(self) -> dict[str, Any]:
        """Return what is said of an export beside its arrays; no path of this machine is in it."""
        e = self.encoder
        classifier = e.classifier if LOGITS in self.taps else None
        return {
            "format": FORMAT,
            "program": "simclr_jax",
            "run": f"{self.workdir.rstrip('/').rpartition('/')[2]}@{e.step}",
            "step": e.step,
            "weights": self.weights,
            "taps": list(self.taps),
            "classifier": classifier and {"tap": classifier[0], "classes": len(classifier[1].bias)},
            "preprocessing": self.preprocessing(),
            "checksum": self.checksum,
            "recipe": published(self.record),
        }

    def preprocessing(self) -> dict[str, Any]:
        """Return what is to be done to an image before the network, and what it does itself."""
        p, sides = self.encoder.preprocessing, self.sides
        kind = self.encoder.config.model.input
        inside = {"normalised": {"mean": list(MEAN), "deviation": list(DEVIATION)}}
        return {
            "images": {
                "height": sides[0] if sides else p.size,
                "width": sides[1] if sides else p.size,
                "channels": p.channels,
                "values": "uint8" if sides else "float32 in [0, 1]: bytes / 255",
            },
            "view": {
                "size": p.size,
                "central_share": p.proportion,
                "resize": f"bicubic, grid {p.grid}" if p.grid != "opencv" else "OpenCV",
                "inside": sides is not None,
            },
            "input": {"kind": kind, **inside.get(kind, {})},
        }

    def settings(self) -> dict[str, Any]:
        """Return what `torch_module.Encoder` is built from."""
        c, e = self.encoder.config, self.encoder
        classifier = e.classifier if LOGITS in self.taps else None
        return {
            **dataclasses.asdict(self.architecture),
            "input": c.model.input,
            "channels": e.channels,
            "size": e.size,
            "epsilon": c.bn.epsilon,
            "momentum": c.bn.momentum,
            "head": self._head_layers() if self.has_head else [],
            "classifier": classifier
            and {
                "tap": classifier[0],
                "inputs": int(classifier[1].kernel.shape[0]),
                "classes": int(classifier[1].kernel.shape[1]),
            },
            "taps": list(self.taps),
        }

    def _head_layers(self) -> list[dict[str, Any]]:
        head = self.variables["params"]["head"]
        moving = self.variables["batch_stats"].get("head", {})
        count = sum(name.startswith("dense") for name in head)
        layers = []
        for i in range(1, count + 1):
            inputs, outputs = head[f"dense{i}"]["kernel"].shape
            norm = head.get(f"bn{i}", {})
            layers.append(
                {
                    "inputs": inputs,
                    "outputs": outputs,
                    "bias": "bias" in head[f"dense{i}"],
                    "norm": {"scaled": "scale" in norm, "center": "bias" in norm}
                    if f"bn{i}" in moving
                    else None,
                    "last": i == count,
                }
            )
        return layers


def on_cpu() -> Any:
    """Return a context in which JAX computes on the CPU, where float32 is that."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])


def checksum(arrays: Mapping[str, Any]) -> str:
    """Return a digest of arrays and their names, in whatever order they come."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {list(array.shape)}".encode())
        digest.update(array.data)
    return f"sha256 {digest.hexdigest()}"


def published(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a run without paths: where a person's files lie is nobody's business."""
    found = {name: value for name, value in record.items() if name not in NOT_RECIPE}
    for field in PATHS:
        group, name = field.split(".")
        if group in found and "/" in str(found[group].get(name, "")):
            found[group] = {**found[group], name: ""}
    if "converted" in record:
        found["converted"] = {**record["converted"], "source": ""}
    return found


def of_saved(
    read: Saved, taps: tuple[str, ...] = (), weights: str = "trained", sides: Any = None
) -> Network:
    """Return what is to leave of a checkpoint.

    Args:
      read: the checkpoint.
      taps: which vectors; none: `h`, and `logits` where the run was trained on labels.
      weights: one of `saved.WEIGHTS`.
      sides: see `Network`.

    Raises:
      UserError: if it has no such taps, weights or classifier, or cannot prepare such images.
    """
    trained = "params/classifier/dense/kernel" in read.leaves and weights == "trained"
    read = saved.of_weights(read, weights)
    fields = {"train.dtype": "float32"}
    with on_cpu():
        device = np.array(jax.local_devices(backend="cpu")[:1])
        mesh = Mesh(device, (parallel.AXIS,), axis_types=(AxisType.Auto,))
        encoder = Encoder.of(_in_float32(read), mesh).changed(fields)
    known = [*encoders.vectors(encoder.config)]
    known += [LOGITS] if encoder.classifier else []
    wanted = taps or ("h", *([LOGITS] if trained and encoder.classifier else []))
    for tap in wanted:
        choose("--tap", tap, known)
    network = Network(
        encoder, tuple(dict.fromkeys(wanted)), weights, sides, read.record, str(read.workdir)
    )
    if sides:
        _check_sides(network)
    return network


def _in_float32(read: Saved) -> Saved:
    """Return a checkpoint whose floats are of 32 bits, whatever it was trained in."""

    def narrow(x: Any) -> Any:
        return np.asarray(x, np.float32) if np.issubdtype(x.dtype, np.floating) else x

    return dataclasses.replace(read, leaves={name: narrow(x) for name, x in read.leaves.items()})


def _check_sides(network: Network) -> None:
    p, size = network.encoder.preprocessing, network.encoder.size
    _, _, height, width = network.box()
    if min(height, width) < 1:
        raise UserError("--preprocess leaves no pixel of an image: give larger sides")
    if p.grid == "opencv" and (height, width) != (size, size):
        near = round(size / p.proportion)
        raise UserError(
            f"--preprocess={network.sides[0]}x{network.sides[1]} would need a resize to {size} "  # type: ignore[index]
            "pixels, which this run does by OpenCV and no exported file can: give "
            f"--preprocess={near}x{near}, which is only cropped, or leave it out"
        )


def differences(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Return for each tap the largest difference, as a share of its largest number."""
    shares = {}
    for tap, wanted in expected.items():
        got = np.asarray(found[tap], np.float64)
        if got.shape != wanted.shape:
            shares[tap] = float("inf")
            continue
        largest = float(np.max(np.abs(wanted))) or 1.0
        shares[tap] = float(np.max(np.abs(got - np.asarray(wanted, np.float64)))) / largest
    return shares
