"""The images of a run as its placement wants them: to train on, to look at, to evaluate with."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from simclr_jax import files, parallel, processes
from simclr_jax.augment.resize import to_float
from simclr_jax.data import batches, order, reader
from simclr_jax.data.canvas import Canvas
from simclr_jax.data.held_out import HeldOut, Kept
from simclr_jax.data.placements import Loading, Request, device
from simclr_jax.data.reader import Reader, Unreadable
from simclr_jax.data.sources import Images, Source, tell
from simclr_jax.data.stream import Stream
from simclr_jax.stages import build
from simclr_jax.stages.preprocessing import Preprocessing
from simclr_jax.train.stage import Batch
from simclr_jax.train.timetable import Timetable
from simclr_jax.train.workdir import Workdir

# Positions from here on belong to no training example: views of held-out images are drawn there.
HELD_OUT = 2**62


class Inputs:
    """What a stage and its evaluations read.

    Args:
      config: a validated recipe.
      train: images to learn from.
      test: held-out images.
      workdir: lists unreadable images there; None keeps no list.
    """

    def __init__(
        self, config: ConfigDict, train: Source, test: Source, workdir: Workdir | None = None
    ):
        self._config = config
        self._threads = config.data.threads or len(os.sched_getaffinity(0))
        self._unreadable = {
            role: _unreadable(config, role, len(source), workdir)
            for role, source in (("train", train), ("held_out", test))
        }
        say = self._say = workdir.console.say if workdir is not None else _unsaid
        self._kept, self._told = Kept(round(config.data.eval_gigabytes * 1e9)), 0
        if workdir is not None:
            for source in (train, test):
                tell(source, say)
        a = config.augment
        self._canvas = {
            role: Canvas(a.canvas, a.jpeg_scaling, say) for role in ("train", "held_out")
        }
        if config.augment.placement == "device":
            train = reader.load(train, self._unreadable["train"], self._threads)
            test = reader.load(test, self._unreadable["held_out"], self._threads)
        self.train, self.test = train, test
        self._preprocessing = Preprocessing.of(config, train.channels)

    def batches(
        self, mesh: Mesh, timetable: Timetable, first_step: int, total_steps: int
    ) -> Iterator:
        """Yield the steps of each chunk and their training batches, on the devices."""
        return batches.device_batches(
            self._config.augment.placement,
            self._loading("train"),
            mesh,
            batch_size=timetable.batch_size,
            first_step=first_step,
            total_steps=total_steps,
            steps_per_call=timetable.steps_per_call,
            borders=timetable.borders,
            resident=self._config.data.resident,
        )

    def describe(self, mesh: Mesh, batch_size: int, steps: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Describe the batches of so many steps, see `batches`."""
        return describe(self._config, self.train, mesh, batch_size, steps)

    def stream(self, requests: Iterator[Request]) -> Iterator[Batch]:
        """Yield the training batches of `requests` as NumPy arrays."""
        placement = self._config.augment.placement
        return batches.host_batches(placement, self._loading("train"), requests)

    def first(self, count: int) -> Batch:
        """Return the first `count` examples of the run, as the first step sees them."""
        count = min(count, len(self.train))
        return next(self.stream(iter([Request(np.arange(count), start=0)])))

    def held_out(self, count: int) -> Batch:
        """Return up to `count` held-out examples, whose views are the same at every call."""
        positions = HELD_OUT + np.arange(min(count, len(self.test)))
        request = Request(positions, start=HELD_OUT)
        placement = self._config.augment.placement
        return next(batches.host_batches(placement, self._loading("held_out"), iter([request])))

    def originals(self, count: int) -> list[np.ndarray]:
        """Return the decoded images behind `first`, uint8 `[h, w, c]` of any sizes."""
        loading, positions = self._loading("train"), np.arange(min(count, len(self.train)))
        if self._prepared_on_host:
            return loading.reader.read(positions).images
        return list(device.images(loading).pixels[device.examples(loading, positions)])

    def for_evaluation(self, source: Source) -> Any:
        """Return a split as `features.extract` reads it, to be finished by `prepare`."""
        if isinstance(source, Images) and not self._prepared_on_host:
            return source.pixels
        role = "train" if source is self.train else "held_out"
        return HeldOut(
            source, self._preprocessing, self._unreadable[role], self._threads, self._kept, role
        )

    def readable(self, source: Source, images: Any) -> np.ndarray | None:
        """Return the rows of an evaluated split that could be read; None: all of them."""
        if isinstance(images, HeldOut):
            self._tell_kept()
            return images.readable()
        bad = source.bad if isinstance(source, Images) else None
        return None if bad is None else np.flatnonzero(~bad)

    def _tell_kept(self) -> None:
        """Say how many prepared images are kept for the next evaluations, where they are more."""
        kept = self._kept
        if len(kept) == self._told:
            return
        self._told = len(kept)
        most = self._config.data.eval_gigabytes
        rest = ", the others are decoded each time" if kept.left_out else ""
        self._say(
            f"kept      {len(kept)} prepared images for later evaluations, "
            f"{kept.bytes / 1e6:.3g} MB (data.eval_gigabytes={most:g}){rest}"
        )

    def prepare(self, images: jax.Array) -> jax.Array:
        """Finish evaluation images `[b, ...]` on the device: floats `[b, size, size, c]`."""
        return to_float(images) if self._prepared_on_host else self._preprocessing.on_device(images)

    def scaled_down(self) -> list[str]:
        """Return a line about images that did not fit their canvas, if there were any.

        Of all processes together: all must call this.
        """
        used = [(canvas.larger, canvas.read) for canvas in self._canvas.values()]
        larger, read = np.sum([np.sum(some, 0) for some in processes.everyone(used)], 0)
        if not larger:
            return []
        return [
            f"canvas    {larger} of {read} images read ({larger / read:.1%}) were larger than "
            f"augment.canvas={self._config.augment.canvas} and were scaled down to fit"
        ]

    @property
    def _prepared_on_host(self) -> bool:
        return self._config.augment.placement != "device"

    def _loading(self, role: str) -> Loading:
        c = self._config
        source = self.train if role == "train" else self.test
        follow: Callable[[np.ndarray], np.ndarray]
        if role == "train" and c.data.order == "stream":
            follow = Stream(
                c.seed,
                len(source),
                batch_size=c.train.batch_size,
                block=c.data.stream_block,
                window=c.data.stream_window,
                lanes=c.data.stream_lanes,
            )
        elif role == "train":
            follow = functools.partial(order.examples, c.seed, size=len(source))
        else:
            follow = functools.partial(_one_after_another, len(source))
        return Loading(
            reader=Reader(source, follow, self._unreadable[role]),
            policies=build.policies(c),
            seed=c.seed,
            shared_sigma=c.augment.sigma_per == "batch",
            threads=self._threads,
            canvas=self._canvas[role],
        )


def _unsaid(line: str) -> None:
    """Say nothing, where there is no console."""


def _one_after_another(size: int, positions: np.ndarray) -> np.ndarray:
    return (positions - HELD_OUT) % size


def _unreadable(config: ConfigDict, role: str, size: int, workdir: Workdir | None) -> Unreadable:
    limit = config.data.max_bad_fraction
    if workdir is None:
        return Unreadable(role, size, limit)
    rank = f".{processes.rank()}" if processes.count() > 1 else ""
    path = workdir.path / f"unreadable_{role}{rank}.jsonl"
    if workdir.fresh:  # a run that saved nothing may have had more processes
        processes.on_first(lambda: _remove(path.parent, f"unreadable_{role}*"))
    return Unreadable(role, size, limit, path, workdir.console.say)


def _remove(directory: epath.Path, pattern: str) -> None:
    for path in directory.glob(pattern):
        with files.explaining(path, "removed"):
            path.unlink()


def describe(
    config: ConfigDict, train: Source, mesh: Mesh | AbstractMesh, rows: int, steps: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
    """Describe training batches `[steps, rows, ...]` on the devices, whoever is to make them."""
    sharding = NamedSharding(mesh, P(None, parallel.AXIS))
    made: dict[str, Any] = {
        "example": ((), np.int32),
        "position": ((2,), np.uint32),
        "start": ((2,), np.uint32),
    }
    made |= images_of(config, train)
    if train.classes:  # of several labels an image only the placement `device` hands over all
        several = train.multi_label and config.augment.placement == "device"
        made |= {"label": ((train.classes,), np.int8) if several else ((), np.int32)}
    return {
        name: jax.ShapeDtypeStruct((steps, rows, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in made.items()
    }


def images_of(config: ConfigDict, train: Source) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return shape, without the batch, and dtype of what holds the images."""
    kinds = {"host": ("views", np.float32), "split": ("crops", np.uint8)}
    if config.augment.placement in kinds:
        kind, dtype = kinds[config.augment.placement]
        return {
            f"{kind}/{group}": ((len(some), some[0].size, some[0].size, train.channels), dtype)
            for group, some in build.policies(config).items()
        }
    if config.augment.placement == "canvas":
        side = config.augment.canvas
        return {"canvas": ((side, side, train.channels), np.uint8), "size": ((2,), np.int32)}
    side = config.data.image_size
    shape = train.pixels.shape[1:] if isinstance(train, Images) else (side, side, train.channels)
    return {"image": (shape, np.uint8)}
