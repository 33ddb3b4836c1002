"""Features of a data set, computed once and kept on disk.

    CACHE/KEY/about.json        what the key stands for
    CACHE/KEY/TAP-00003.npz     `x`, float32 [rows, d], and `bad`, of one shard of `SHARD` examples;
                                `of`: KEY, TAP and the number, so that no other is taken for it

The key is made of everything that decides a feature: weights, preprocessing, compute dtype, which
formats can be read, and the data with the sizes and times of its files. A shard is whole or absent;
what an interrupted run lacks, and what has been damaged since, is computed again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import alive, archives, documents, files
from simclr_jax.alive import duration
from simclr_jax.data import formats
from simclr_jax.data.held_out import HeldOut
from simclr_jax.data.reader import Unreadable
from simclr_jax.data.sources import Images, Source, stamp, tell
from simclr_jax.data.sources.folder import Folder
from simclr_jax.errors import BadFile, UserError
from simclr_jax.stages.encoder import Encoder

SHARD = 4096  # examples
BATCH = 512  # images in a forward pass, over all devices
FORMAT = 1  # of the files

NO_CACHE = "none"  # in place of the directory that keeps features

Say = Callable[[str], object]  # takes a line of what a command has to say


@dataclasses.dataclass(frozen=True)
class Features:
    """What an encoder makes of the readable examples of a split.

    Attributes:
      x: float32 `[m, d]`.
      labels: int32 `[m]`; int8 `[m, classes]` where an image may have several (1: has it, 0: has
        not, -1: ignored); None without labels.
      classes: number of classes, 0 without labels.
      examples: int64 `[m]`, their positions in the source.
    """

    x: np.ndarray
    labels: np.ndarray | None
    classes: int
    examples: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    @property
    def known(self) -> np.ndarray:
        """Return the labels of examples that have some."""
        assert self.labels is not None
        return self.labels

    @classmethod
    def none(cls, like: Features) -> Features:
        """Return the features of no image, in the shape of others."""
        return like.take(np.zeros(0, np.int64))

    def take(self, rows: np.ndarray) -> Features:
        """Return the rows `rows`, in that order."""
        labels = None if self.labels is None else self.labels[rows]
        return Features(self.x[rows], labels, self.classes, self.examples[rows])


def cache_of(workdir: epath.PathLike, cache: str) -> epath.Path | None:
    """Return the directory that keeps features, which is the run's own if `cache` is "".

    None if it is `NO_CACHE`: then they are kept nowhere.
    """
    if cache == NO_CACHE:
        return None
    return epath.Path(files.expand_home(cache)) if cache else epath.Path(workdir) / "features"


def extract(
    encoder: Encoder,
    source: Source,
    taps: Sequence[str],
    cache: epath.Path | None,
    say: Say = lambda line: None,
) -> dict[str, Features]:
    """Return the features of a split at some taps, read from the cache as far as they are there.

    Args:
      encoder: makes them.
      source: the images, of any sizes; gray ones and coloured ones as `Preprocessing.checked` says.
      taps: which vectors, see `encoder.taps`.
      cache: the directory that keeps features; None keeps none.
      say: receives a line about what is read, progress, and unreadable images.

    Raises:
      UserError: for an unknown tap, more unreadable images than the encoder's recipe allows, or a
        cache that cannot be written.
    """
    tell(source, say)
    place = None if cache is None else _place(encoder, source, cache)
    # All of them may be unreadable for all it cares: what was kept from before counts as well.
    unreadable = Unreadable("evaluated", len(source), 1.0, say=say, fate="it is left out")
    count, work = len(source), _Progress(len(source), say)
    vectors: dict[str, np.ndarray] = {}
    bad = np.zeros(count, bool)
    with alive.lines(work.line, say):
        for start in range(0, count, SHARD):
            rows = slice(start, min(start + SHARD, count))
            kept = {tap: _read(place, tap, start // SHARD, rows.stop - start, say) for tap in taps}
            found = {tap: shard for tap, shard in kept.items() if shard is not None}
            if missing := [tap for tap in taps if tap not in found]:
                part = source.take(np.arange(rows.start, rows.stop))
                for tap, shard in _compute(encoder, part, missing, unreadable).items():
                    _write(place, tap, start // SHARD, shard)
                    found[tap] = shard
                work.add(rows.stop - rows.start)
            for tap, shard in found.items():
                if tap not in vectors:
                    vectors[tap] = np.empty((count, shard["x"].shape[1]), np.float32)
                vectors[tap][rows] = shard["x"]
                bad[rows] |= shard["bad"]  # taps may be of different days
            _check(bad, encoder.config.data.max_bad_fraction, source)
    work.end()
    if bad.any():
        say(f"note      {bad.sum()} of {count} images are unreadable and left out")
    labels = None if source.labels is None else np.asarray(source.labels)
    everything = {
        tap: Features(x, labels, source.classes, np.arange(count)) for tap, x in vectors.items()
    }
    if not bad.any():
        return everything
    return {tap: features.take(np.flatnonzero(~bad)) for tap, features in everything.items()}


def _check(bad: np.ndarray, most: float, source: Source) -> None:
    if bad.all() or bad.sum() > most * len(bad):
        name = source.name(int(np.argmax(bad)))
        allow = (
            f", or allow more than {most:g} of them (data.max_bad_fraction of the run's recipe, or "
            "--max_bad_fraction of linear_probe and transfer)"
        )
        raise UserError(
            f"{bad.sum()} of {len(bad)} images are unreadable so far, such as {name}: repair them"
            f"{'' if bad.all() else allow}"
        )


def key(encoder: Encoder, source: Source) -> dict[str, Any]:
    """Return everything that decides the features of a split, apart from the tap."""
    decoder = getattr(source, "decoder", None)
    return {
        "format": FORMAT,
        "weights": encoder.fingerprint,
        "preprocessing": dataclasses.asdict(encoder.preprocessing),
        "decoding": None if decoder is None else dataclasses.asdict(decoder.rules),
        **({} if decoder is None else {"formats": list(formats.readable())}),
        "dtype": encoder.config.train.dtype,
        "model": encoder.config.model.to_dict() | encoder.config.bn.to_dict(),
        "shape": list(source.pixels.shape[1:]) if isinstance(source, Images) else None,
        "data": source.fingerprint(),
        "files": stamp(source),
        "place": _directory(source),
    }


def _directory(source: Source) -> str:
    """Return where the files of a split lie: another directory may have files of their names,
    sizes and times.
    """
    if isinstance(source, Folder):
        return os.path.realpath(source.root)
    found = getattr(source, "files", None)
    return os.fspath(found[0].parent) if found else ""


def _compute(
    encoder: Encoder, source: Source, taps: Sequence[str], unreadable: Unreadable
) -> dict[str, dict[str, np.ndarray]]:
    on_device = encoder.preprocessing.grid != "opencv" and source.channels == encoder.channels
    if isinstance(source, Images) and on_device:
        found = encoder.extract(source.pixels, taps, BATCH)  # of one size: the device prepares
        bad = np.zeros(len(source), bool) if source.bad is None else source.bad
    else:
        threads = encoder.config.data.threads or len(os.sched_getaffinity(0))
        with HeldOut(source, encoder.preprocessing, unreadable, threads) as images:
            found = encoder.extract(images, taps, BATCH, prepared=True)
            bad = ~np.isin(np.arange(len(source)), images.readable())
    return {tap: {"x": np.asarray(x, np.float32), "bad": bad} for tap, x in found.items()}


def _place(encoder: Encoder, source: Source, cache: epath.Path) -> epath.Path:
    about = key(encoder, source)
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    place = epath.Path(cache) / digest
    try:
        place.mkdir(parents=True, exist_ok=True)
        files.sweep(place)
        documents.write(place / "about.json", about)
    except OSError as error:
        raise UserError(
            f"features cannot be kept in {os.fspath(cache)} ({error.strerror or error}): "
            "name another directory with --cache, or --cache=none"
        ) from error
    return place


def _read(
    place: epath.Path | None, tap: str, shard: int, count: int, say: Say
) -> dict[str, np.ndarray] | None:
    """Return a shard of `count` images that is there, whole and the one asked for, else None."""
    if place is None or not (path := _file(place, tap, shard)).exists():
        return None
    try:
        found = archives.read(path, ("x", "bad", "of"), remedy="it is made again")
        x, bad, of = found["x"], found["bad"], str(found["of"])
    except FileNotFoundError:
        return None
    except BadFile as error:
        say(f"note      features are damaged: {error}")
        return None
    except KeyError as error:
        say(f"note      {path} has no array {error}: it is made again")
        return None
    if x.ndim != 2 or x.dtype != np.float32 or bad.shape != (count,) or len(x) != count:
        say(f"note      {path} does not hold the features of {count} images: it is made again")
        return None
    if of != _of(place, tap, shard):
        say(f"note      {path} holds other features ({documents.shown(of)}): it is made again")
        return None
    return {"x": x, "bad": bad.astype(bool)}


def _of(place: epath.Path, tap: str, shard: int) -> str:
    """Return what a shard is, wherever it lies."""
    return f"{place.name} {tap} {shard}"


def _write(place: epath.Path | None, tap: str, shard: int, arrays: dict[str, np.ndarray]) -> None:
    if place is None:
        return
    buffer = io.BytesIO()
    np.savez(buffer, of=np.array(_of(place, tap, shard)), **arrays)  # type: ignore[arg-type]
    try:
        files.write_atomically(_file(place, tap, shard), buffer.getvalue())
    except OSError as error:
        raise UserError(
            f"features cannot be kept in {place.parent} ({error.strerror or error}): "
            "free space there, or name another directory with --cache"
        ) from error


def _file(place: epath.Path, tap: str, shard: int) -> epath.Path:
    return place / f"{tap}-{shard:05d}.npz"


class _Progress:
    """Says now and then how many images have been encoded, and at the end how fast."""

    def __init__(self, total: int, say: Say):
        self._total, self._say = total, say
        self._done, self._start = 0, time.monotonic()

    def line(self, seconds: float) -> str:
        """Return how far it is after so many seconds."""
        if not self._done:
            return f"working   encoding {self._total} images, {duration(seconds)} so far"
        left = (self._total - self._done) * seconds / self._done
        return f"encoded   {self._done} of {self._total} images, {duration(left)} left"

    def add(self, images: int) -> None:
        self._done += images

    def end(self) -> None:
        if not self._done:
            self._say(f"encoded   {self._total} images before: their features were kept")
            return
        seconds = time.monotonic() - self._start
        speed = f"{self._done / seconds:.0f} images/s" if seconds > 0 else ""
        kept = self._total - self._done
        before = f" ({kept} were kept from before)" if kept else ""
        self._say(f"encoded   {self._done} images in {duration(seconds)}, {speed}{before}")
