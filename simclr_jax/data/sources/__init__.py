"""Where images come from. A source is one file here; `source.py` says what it must offer."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Mapping

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax.data import order
from simclr_jax.data.sources import digits, folder, memory, tfds
from simclr_jax.data.sources.memory import Images
from simclr_jax.data.sources.source import NO_LABEL, Source
from simclr_jax.errors import UserError, choose

__all__ = ["NO_LABEL", "OPENERS", "Images", "Source", "notes", "open_splits", "remember", "stamp"]

MOST_WITHOUT_LABELS = 1000  # held out: they only show whether embeddings collapse

Splits = Mapping[str, Callable[[], Source]]

# Each takes `config.data` and the directory in which the run keeps what must not change when it is
# resumed, and returns the splits the data set has; a split is read when it is called.
OPENERS: dict[str, Callable[[ConfigDict, epath.Path | None], Splits]] = {
    "digits": digits.splits,
    "folder": folder.splits,
    "memory": memory.splits,
    "tfds": tfds.splits,
}


def open_splits(data: ConfigDict, kept: epath.Path | None = None) -> tuple[Source, Source]:
    """Open the splits to train on and to evaluate on.

    Where the data set has no `data.eval_split`, `data.holdout_fraction` of the training split is
    held out for it (without labels `MOST_WITHOUT_LABELS` at most), the same examples every time.

    Args:
      data: `config.data`.
      kept: where a run keeps what must not change when it is resumed; None outside a run.

    Raises:
      UserError: if the data set cannot be opened, lacks the split or is too small to hold out.
    """
    found = OPENERS[data.source](data, kept)
    choose("data.split", data.split, found)
    train = found[data.split]()
    if data.eval_split in found:
        return train, found[data.eval_split]()
    count = len(train)
    held_out = max(1, round(data.holdout_fraction * count))
    if not train.classes:
        held_out = min(held_out, MOST_WITHOUT_LABELS)
    if held_out >= count:
        raise UserError(
            f"{data.path or data.name} has {count} image(s), too few to hold out "
            f"data.holdout_fraction={data.holdout_fraction} for evaluation"
        )
    rows = order.examples(0, np.arange(count), count)
    return train.take(np.sort(rows[held_out:])), train.take(np.sort(rows[:held_out]))


def remember(source: Source, kept: epath.Path) -> None:
    """Keep what the source of a run must find again when it is resumed: a folder's index."""
    if isinstance(source, folder.Folder):
        source.remember(kept)


def notes(source: Source) -> tuple[str, ...]:
    """Return what a user should know about a source, such as why it has no labels."""
    return source.notes if isinstance(source, folder.Folder) else ()


def stamp(source: Source) -> str:
    """Return what changes when files are replaced under the same names; "" where none can be.

    The fingerprint of every other source covers its pixels, or the version of its data set.
    """
    if not isinstance(source, folder.Folder):
        return ""
    check = 0
    for path in source.paths:
        found = "no file"
        with contextlib.suppress(OSError):
            status = (source.root / path).stat()
            found = f"{status.st_size} {status.st_mtime_ns}"
        check = zlib.crc32(f"{path}\0{found}\0".encode(errors="surrogateescape"), check)
    return f"{check:08x}"
