"""From shards that are all there to a whole store: its indices and its manifest."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np

from simclr_jax import documents, files
from simclr_jax.data import sources
from simclr_jax.data.packing import plan as plans
from simclr_jax.data.packing import shards
from simclr_jax.data.packing.plan import Plan
from simclr_jax.data.packing.shards import Shard
from simclr_jax.data.sources import Source, packed_files
from simclr_jax.data.sources.packed_files import FORMAT, MANIFEST, File, Manifest, SplitOf
from simclr_jax.errors import UserError


def finish(partial: Path, plan: Plan, source: dict[str, str], opened: dict[str, Source]) -> None:
    """Put what shards say together, write the manifest and leave nothing else."""
    jobs, splits = plan.jobs(partial), {}
    for split, part in plan.splits.items():
        own = [job for job in jobs if job.split == split]
        found = [shard for job in own if (shard := shards.read(job)) is not None]
        if len(found) < len(own):
            raise UserError(
                f"{partial} has {len(found)} of {len(own)} shards of {documents.shown(split)}, all "
                "of which were written: give the same command again, which makes the others"
            )
        splits[split] = _summed(partial, part, opened[split], found)
    manifest = Manifest(FORMAT, _version(), plan.law, source, splits)
    with files.explaining(partial):
        documents.write(partial / MANIFEST, msgspec.to_builtins(manifest))
        for job in jobs:
            job.said.unlink()
        (partial / plans.FILE).unlink()
        files.sync(partial)


def _version() -> str:
    try:
        return f"simclr_jax {metadata.version('simclr_jax')}"
    except metadata.PackageNotFoundError:
        return "simclr_jax, not installed"


def _summed(partial: Path, part: plans.Part, source: Source, found: list[Shard]) -> SplitOf:
    """Write the index of a split, and return what the manifest says of it."""
    scaled = np.concatenate([shard.scaled for shard in found])
    arrays = {
        "size": np.concatenate([shard.size for shard in found]),
        "length": np.concatenate([shard.length for shard in found]),
        "crc32": np.concatenate([shard.crc32 for shard in found]),
        "names": np.frombuffer(b"".join(shard.names for shard in found), np.uint8),
    }
    if source.labels is not None:
        arrays["labels"] = source.labels
    path = partial / f"{part.word}.npz"
    content = shards.archive(arrays)
    files.write_atomically(path, content)
    return SplitOf(
        images=part.images,
        channels=source.channels,
        classes=source.classes,
        class_names=list(source.class_names),
        multi_label=source.multi_label,
        shrunk=int((scaled < 0).sum()),
        enlarged=int((scaled > 0).sum()),
        unreadable=[one for shard in found for one in shard.unread],
        notes=list(sources.notes(source)),
        origin=part.origin,
        index=File(path.name, part.images, len(content), packed_files.checksum(content)),
        shards=[shard.file for shard in found],
    )
