"""What is to be packed, decided before it is: kept while packing lasts, so that it can go on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import documents
from simclr_jax.data.decode import BadImage
from simclr_jax.data.packing.records import record
from simclr_jax.data.packing.shards import Job
from simclr_jax.data.sources import Source, trained
from simclr_jax.data.sources.packed_files import Law, Origin, Place
from simclr_jax.errors import UserError

FILE = "plan.json"
LOOKED_AT = 64  # images of a split that are made beforehand, to know how large a store will be
# Of a shard: few enough files for a large data set, and enough shards for many workers.
MOST_IMAGES, MOST_BYTES = 2048, 2**30


class Part(msgspec.Struct, frozen=True):
    """A split: what begins the names of its files, its images, those of a shard, what it is of."""

    word: str
    images: int
    each: int
    origin: Origin


class Plan(msgspec.Struct, frozen=True):
    """What is to be packed."""

    law: Law
    splits: dict[str, Part]

    def jobs(self, directory: Path) -> list[Job]:
        """Return all shards, in a directory."""
        found = []
        for split, part in self.splits.items():
            for number, first in enumerate(range(0, part.images, part.each)):
                last = min(part.images, first + part.each)
                found.append(Job(split, first, last, directory / f"{part.word}-{number:05}.bin"))
        return found

    def write(self, directory: Path) -> None:
        """Write it into a directory."""
        documents.write(directory / FILE, {"plan": msgspec.to_builtins(self)})


class Size(NamedTuple):
    """How large records are: of each split the mean in bytes, and all together."""

    mean: dict[str, float]
    total: int


def read(directory: Path) -> Plan | None:
    """Return the plan of a store that is being made; None where there is none.

    Raises:
      UserError: if it is damaged.
    """
    remedy = f"remove {documents.shown(directory)} to pack anew"
    try:
        return documents.read(directory / FILE, dict[str, Plan], remedy)["plan"]
    except FileNotFoundError:
        return None


def make(data: ConfigDict, opened: Mapping[str, Source], law: Law, size: Size) -> Plan:
    """Return the plan for the splits of the data set of `config.data`."""
    words, parts = _words(opened), {}
    for split, source in opened.items():
        places = [
            Place(one.place, one.first, one.last) for one in trained.parts(source, data, split)
        ]
        identity = trained.identity(source)
        origin = Origin(source.fingerprint(), identity, trained.sizes(source), places)
        most = int(MOST_BYTES / max(1.0, size.mean[split]))
        each = max(1, min(MOST_IMAGES, most))
        parts[split] = Part(words[split], len(source), each, origin)
    return Plan(law, parts)


def sizes(opened: Mapping[str, Source], law: Law) -> Size:
    """Return how large the records of all splits will be, by some images of each.

    Raises:
      UserError: if none of those that were looked at can be read.
    """
    mean = {split: _mean(source, law) for split, source in opened.items()}
    return Size(mean, round(sum(mean[split] * len(source) for split, source in opened.items())))


def _mean(source: Source, law: Law) -> float:
    rows = np.unique(np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int))
    found, reason = [], ""
    for row in rows.tolist():
        try:
            found.append(len(record(source.example(row)[0], law).content))
        except BadImage as error:
            reason = f"{source.name(row)} ({error})"
    if not found:
        raise UserError(
            f"none of {len(rows)} images looked at is readable, not even {reason}: the source must "
            "hold images that Pillow can open"
        )
    return float(np.mean(found))


def _words(splits: Mapping[str, Source]) -> dict[str, str]:
    """Return what begins the names of the files of each split, no two alike on any disk."""
    found: dict[str, str] = {}
    for split in splits:
        plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in split.lower())
        word, number = plain, 2
        while word in found.values():
            word, number = f"{plain}_{number}", number + 1
        found[split] = word
    return found


def difference(before: Plan, now: Plan) -> str:
    """Say in what a plan differs from another, in words that follow "with"; "" if it does not."""
    for name in Law.__struct_fields__:
        one, other = getattr(before.law, name), getattr(now.law, name)
        if one != other:
            return f"{name} {one}, not {other}"
    if before.splits.keys() != now.splits.keys():
        return f"the splits {', '.join(before.splits)}, not {', '.join(now.splits)}"
    for split, part in before.splits.items():
        if part.origin.fingerprint != now.splits[split].origin.fingerprint:
            return (
                f"other images or labels of {split} ({part.images}, now {now.splits[split].images})"
            )
    return ""


def source_of(data: Mapping[str, object]) -> dict[str, str]:
    """Return what a manifest says of the source: fields of `config.data`."""
    path = str(data["path"])
    whole = os.fspath(epath.Path(path).expanduser().resolve()) if path else ""
    return {"source": str(data["source"]), "name": str(data["name"]), "path": whole}
