"""Which images runs have trained on, as far as it can be known, so that none of them is scored.

What is held out of a split are the first images of one permutation of it, always the same. So of
the same images one run holds out a part of what another does, and the fewest of several have been
seen by none of them. Runs say what they trained on in `config.json`; `stages.heritage` reads it.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from ml_collections import ConfigDict
from msgspec import Meta

from simclr_jax import files
from simclr_jax.data import order
from simclr_jax.data.sources.folder import Folder
from simclr_jax.data.sources.packed import Packed
from simclr_jax.data.sources.source import Source
from simclr_jax.data.sources.tfds import extent
from simclr_jax.data.sources.tfds_records import Records
from simclr_jax.errors import UserError
from simclr_jax.unlabelled import counted

LOOKED_AT = 64  # files of a folder, whose sizes are looked at
FOLDER = "folder:"  # begins places that may lie in one another


class Part(msgspec.Struct, frozen=True):
    """Where images lie.

    Attributes:
      place: a directory, or a split of a file or data set.
      first, last: of its records, from and up to without; None: to the end.
    """

    place: str
    first: int = 0
    last: int | None = None


class Labels(msgspec.Struct, frozen=True):
    """Labels that a run has learned from.

    Attributes:
      use, seed: fields of the recipe, see `stages.labels`.
      count: how many.
      encoder: whether they taught the encoder, or a classifier beside it alone.
      exact: whether it is known how many; otherwise there are `count` at most.
    """

    use: str
    seed: int
    count: Annotated[int, Meta(ge=0)]
    encoder: bool = True
    exact: bool = True

    def __str__(self) -> str:
        return f"{self.count}" if self.exact else f"at most {self.count}"


class Trained(msgspec.Struct, frozen=True):
    """What a run has trained on.

    Attributes:
      run: its workdir.
      split: what a person calls the images.
      images: how many the split has, those held out among them; 0 if it is not known.
      identity: of the whole split without its labels, see `identity`; "" if it is not known.
      held_out: how many of them were held out; None: none, there was another split for it.
      parts: where they lie.
      labels: that it has learned from, if any.
      sizes: of some of the files, see `sizes`; "" of runs too old to say it, and where there are
        none.
    """

    run: str
    split: str
    images: Annotated[int, Meta(ge=0)]
    identity: str
    held_out: Annotated[int, Meta(ge=1)] | None
    parts: tuple[Part, ...]
    labels: Labels | None = None
    sizes: str = ""


@dataclasses.dataclass(frozen=True)
class Unseen:
    """What must not be scored.

    Attributes:
      trained: by a run and those it comes from.
      remedy: what a user can do where it cannot be known what they have not seen.
      allowed: to score such images all the same, and say so.
      scored: whether anything is scored; otherwise there is nothing to refuse.
    """

    trained: Sequence[Trained] = ()
    remedy: str = ""
    allowed: bool = False
    scored: bool = True


def identity(source: Source) -> str:
    """Return what tells the images of a split, and their order, from others; labels do not.

    A packed store has the images of what it was made of.
    """
    if isinstance(source, Packed) and source.is_whole:
        return source.of.origin.identity
    if any(field.name == "labels" for field in dataclasses.fields(source)):  # type: ignore[arg-type]
        source = dataclasses.replace(source, labels=None)  # type: ignore[type-var]
    return source.fingerprint()


def sizes(source: Source) -> str:
    """Return what tells files of a folder from others of the same names elsewhere; else "".

    Many data sets number the files of each split from 0, and their names are all that `identity`
    knows of them.
    """
    if isinstance(source, Packed):
        return source.of.origin.sizes
    if not isinstance(source, Folder):
        return ""
    rows = np.unique(np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int))
    try:
        found = [(source.root / source.paths[row]).stat().st_size for row in rows]
    except OSError:  # whoever reads them will say so; by their names they are taken for the same
        return ""
    return f"{len(found)} files, crc32 {zlib.crc32(str(found).encode()):08x}"


class Here(NamedTuple):
    """A split that is looked at now, by what runs say of theirs; see `Trained`."""

    identity: str
    parts: tuple[Part, ...]
    sizes: str

    @classmethod
    def of(cls, source: Source, data: ConfigDict | None = None, split: str = "") -> Here:
        """Describe a split; see `parts`."""
        return cls(identity(source), parts(source, data, split), sizes(source))

    def was(self, one: Trained) -> bool:
        """Tell whether it is the split of a run.

        At the same place a file may have been repaired since, so that names are enough there.
        """
        if one.identity != self.identity:
            return False
        known = bool(one.sizes and self.sizes)
        return not known or one.sizes == self.sizes or _meet(one.parts, self.parts)


def parts(source: Source, data: ConfigDict | None = None, split: str = "") -> tuple[Part, ...]:
    """Return where the images of a split lie.

    Args:
      source: the split.
      data: `config.data`, needed for a source that does not know where it lies.
      split: its name there.
    """
    if isinstance(source, Records):
        name = source.info.full_name.rpartition("/")[0] or source.info.full_name
        found = extent(source.info, source.split)
        return tuple(Part(f"tfds:{name}:{base}", first, last) for base, first, last in found)
    if isinstance(source, Folder):
        return (Part(f"{FOLDER}{os.path.realpath(source.root)}"),)
    if isinstance(source, Packed):
        return tuple(Part(one.place, one.first, one.last) for one in source.of.origin.places)
    return () if data is None else said(data, split)


def said(data: ConfigDict, split: str) -> tuple[Part, ...]:
    """Return where the images of a split lie by a recipe alone, as if they could not be opened.

    Of a slice of TFDS that is the whole split.
    """
    if data.source == "tfds":
        of = sorted({part.partition("[")[0].strip() for part in split.split("+")})
        return tuple(Part(f"tfds:{data.name.partition(':')[0]}:{base}") for base in of)
    path = data.path
    if path and files.is_local(path):
        path = os.path.realpath(Path(path).expanduser())
    if data.source == "folder":
        below = Path(path) / split
        return (Part(f"{FOLDER}{below if below.is_dir() else path}"),)
    return (Part(f"{data.source}:{path}:{split}"),)


def labelled(source: Source) -> tuple[int, bool]:
    """Return how many images of a split have a label, and whether that is exact.

    Where each label would have to be read from its record, there are at most as many as images.
    """
    if isinstance(source, Records) and "labels" not in vars(source):
        return len(source), False
    return len(counted(source.labels)), True


def called(data: ConfigDict, split: str) -> str:
    """Return what a person calls a split of a data set."""
    return f"{split} of {data.path or data.name or data.source}"


def rows(count: int, held_out: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return which of `count` images are trained on and which are held out, both rising."""
    if held_out is None:
        return np.arange(count), np.arange(0)
    found = order.examples(0, np.arange(count), count)
    return np.sort(found[held_out:]), np.sort(found[:held_out])


def at_most(
    data: ConfigDict, whole: Source, own: int, unseen: Unseen
) -> tuple[int, tuple[str, ...]]:
    """Return how many images to hold out of a split so that none has been trained on.

    Args:
      data: `config.data`.
      whole: the split.
      own: how many would be held out by the recipe.
      unseen: what must not be scored.

    Returns:
      That number, `own` or less, and lines about it.

    Raises:
      UserError: if it is not known of which images of the split the runs have not seen any.
    """
    if not unseen.trained:
        return own, ()
    here = Here.of(whole, data, data.split)
    fewest: Trained | None = None
    for one in unseen.trained:
        if here.was(one):
            if one.held_out is None:
                why = f"{one.run} trained on all {one.images} images of {one.split}"
                return own, _told(why, unseen)
            if one.held_out < (own if fewest is None else fewest.held_out or 0):
                fewest = one
        elif _meet(one.parts, here.parts):
            then = f"{one.images} then, " if one.images else ""
            why = (
                f"{one.run} trained on {one.split}, of which there are other images now "
                f"({then}{len(whole)} in {called(data, data.split)}): which of them it has not "
                "seen is not known"
            )
            return own, _told(why, unseen)
    if fewest is None or fewest.held_out is None:
        return own, ()
    if unseen.allowed:
        return own, _told(f"{fewest.run} trained on all but {fewest.held_out} of these", unseen)
    said = f"{fewest.held_out} images are held out in place of {own}: {fewest.run} trained on"
    return fewest.held_out, (f"{said} the others",)


def check(
    test: Source, name: str, unseen: Unseen, data: ConfigDict | None = None, split: str = ""
) -> tuple[str, ...]:
    """Check that no run has trained on a split, as far as names and content tell.

    Args:
      test: the split.
      name: what a person calls it.
      unseen: what must not be scored.
      data, split: see `parts`.

    Returns:
      Lines about it, if it is allowed.

    Raises:
      UserError: if one has.
    """
    if not unseen.trained:
        return ()
    here = Here.of(test, data, split)
    for one in unseen.trained:
        if here.was(one) or _meet(one.parts, here.parts):
            return _told(f"{one.run} trained on images of {name} ({one.split})", unseen)
    return ()


def _told(why: str, unseen: Unseen) -> tuple[str, ...]:
    if not unseen.scored:
        return ()
    if not unseen.allowed:
        raise UserError(f"{why}, which is to be scored: {unseen.remedy}")
    return (f"images are scored that may have been trained on: {why}",)


def _meet(some: Iterable[Part], others: Sequence[Part]) -> bool:
    """Tell whether parts have, or may have, images in common."""
    return any(_share(a, b) for a in some for b in others)


def _share(a: Part, b: Part) -> bool:
    if a.place.startswith(FOLDER) and b.place.startswith(FOLDER):
        one, other = (Path(part.place.removeprefix(FOLDER)) for part in (a, b))
        return one.is_relative_to(other) or other.is_relative_to(one)
    begin = max(a.first, b.first)
    return a.place == b.place and all(x.last is None or begin < x.last for x in (a, b))
