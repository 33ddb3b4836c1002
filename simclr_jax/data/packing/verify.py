"""Whether every byte of a packed store is what was written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from simclr_jax import documents
from simclr_jax.data.decode import BadImage
from simclr_jax.data.sources import packed_files
from simclr_jax.data.sources.packed_files import AGAIN, File, Names, Store
from simclr_jax.data.sources.packed_shards import Shards
from simclr_jax.errors import UserError

EVERY_SECS = 3.0  # between lines of progress

Say = Callable[[str], object]


def verify(path: str, say: Say = print) -> None:
    """Read all files of a store and compare their checksums.

    Raises:
      UserError: if one is missing, cut or damaged.
    """
    store = packed_files.open_store(path)
    for split in store.manifest.splits:
        packed_files.check_files(store, split)
    todo = [(split, file) for split, one in store.manifest.splits.items() for file in one.files]
    wrong: list[tuple[str, File]] = []
    done, spoken = 0, time.monotonic()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = pool.map(lambda one: packed_files.checksum_of(store.directory / one[1].file), todo)
        for (split, file), checksum in zip(todo, found, strict=True):
            done += file.bytes
            if checksum != file.crc32:
                wrong.append((split, file))
            if time.monotonic() - spoken > EVERY_SECS:
                spoken = time.monotonic()
                say(f"verified  {done / 1e9:.3g} GB")
    if wrong:
        split, file = wrong[0]
        such = _first_damaged(store, split, file)
        raise UserError(
            f"{len(wrong)} of {len(todo)} files of {documents.shown(store.directory)} are damaged, "
            f"such as {file.file}{such}: {AGAIN}"
        )
    count = sum(one.images for one in store.manifest.splits.values())
    say(f"whole     {documents.shown(store.directory)}: {count} images, every checksum is right")


def _first_damaged(store: Store, split: str, file: File) -> str:
    """Name the first image whose record is damaged in a file of them."""
    one = store.manifest.splits[split]
    if file == one.index:
        return ""
    arrays = packed_files.read_index(store, split)
    records = Shards(store.directory, one.shards, arrays["length"], arrays["crc32"])
    first = sum(other.images for other in one.shards[: one.shards.index(file)])
    for row in range(first, first + file.images):
        try:
            records[row]
        except BadImage:
            return f" (image {Names(arrays['names'])[row]})"
    return ""
