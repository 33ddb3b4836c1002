"""Where images come from. A source is one file here; `source.py` says what it must offer."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from etils import epath
from ml_collections import ConfigDict

from simclr_jax import files
from simclr_jax.data.sources import arrays, digits, folder, tfds, tfrecord, trained
from simclr_jax.data.sources.arrays import Images
from simclr_jax.data.sources.hidden import hide_labels
from simclr_jax.data.sources.source import Source
from simclr_jax.data.sources.tfds_records import Records
from simclr_jax.data.sources.tfrecord import Examples
from simclr_jax.data.sources.trained import Trained, Unseen
from simclr_jax.errors import UserError, choose
from simclr_jax.unlabelled import NO_LABEL

__all__ = [
    "NO_LABEL",
    "OPENERS",
    "Images",
    "Opened",
    "Source",
    "Splits",
    "Trained",
    "Unseen",
    "hide_labels",
    "notes",
    "open_all",
    "open_splits",
    "remember",
    "stamp",
]

MOST_WITHOUT_LABELS = 1000  # held out: they only show whether embeddings collapse
STAMP_THREADS = 32  # many, for a bucket answers each of them slowly

Splits = Mapping[str, Callable[[], Source]]

# Each takes `config.data` and the directory in which the run keeps what must not change when it is
# resumed, and returns the splits the data set has; a split is read when it is called.
OPENERS: dict[str, Callable[[ConfigDict, epath.Path | None], Splits]] = {
    "digits": digits.splits,
    "folder": folder.splits,
    "memory": arrays.splits,
    "tfds": tfds.splits,
    "tfrecord": tfrecord.splits,
}


@dataclasses.dataclass(frozen=True)
class Opened:
    """The images of a run.

    Attributes:
      train: to learn from.
      test: to be scored.
      whole: the split of which `train` is all but what is held out.
      held_out: how many images of it are held out; None: there is another split to be scored.
      notes: what a user should know of it.
    """

    train: Source
    test: Source
    whole: Source
    held_out: int | None = None
    notes: tuple[str, ...] = ()


def open_splits(data: ConfigDict, kept: epath.Path | None = None) -> tuple[Source, Source]:
    """Open the splits to train on and to evaluate on, see `open_all`."""
    opened = open_all(data, kept)
    return opened.train, opened.test


def open_all(
    data: ConfigDict,
    kept: epath.Path | None = None,
    unseen: Unseen | None = None,
    held_out: int | None = None,
) -> Opened:
    """Open the splits to train on and to evaluate on.

    Where the data set has no `data.eval_split`, `data.holdout_fraction` of the training split is
    held out for it (without labels `MOST_WITHOUT_LABELS` at most), the same examples every time;
    fewer, where runs that this one comes from have trained on some of them.

    Args:
      data: `config.data`.
      kept: where a run keeps what must not change when it is resumed; None outside a run.
      unseen: what must not be scored.
      held_out: how many to hold out, of a run that is resumed.

    Raises:
      UserError: if the data set cannot be opened, lacks the split or is too small to hold out, or
        if it cannot be known what has not been trained on.
    """
    unseen = unseen or Unseen()
    found = OPENERS[data.source](data, kept)
    choose("data.split", data.split, found)
    whole = found[data.split]()
    if data.eval_split in found:
        test = found[data.eval_split]()
        name = trained.called(data, data.eval_split)
        said = trained.check(test, name, unseen, data, data.eval_split)
        return Opened(whole, test, whole, None, said)
    count, notes = len(whole), tuple[str, ...]()
    if held_out is None:
        held_out = max(1, round(data.holdout_fraction * count))
        if not whole.classes:
            held_out = min(held_out, MOST_WITHOUT_LABELS)
        held_out, notes = trained.at_most(data, whole, held_out, unseen)
    if held_out >= count:
        raise UserError(
            f"{data.path or data.name} has {count} image(s), too few to hold out "
            f"data.holdout_fraction={data.holdout_fraction} for evaluation"
        )
    learned, scored = trained.rows(count, held_out)
    return Opened(whole.take(learned), whole.take(scored), whole, held_out, notes)


def remember(source: Source, kept: epath.Path) -> None:
    """Keep what the source of a run must find again when it is resumed: a folder's index."""
    if isinstance(source, folder.Folder):
        source.remember(kept)


def notes(source: Source) -> tuple[str, ...]:
    """Return what a user should know about a source, such as why it has no labels."""
    return getattr(source, "notes", ())


def stamp(source: Source) -> str:
    """Return what changes when files are replaced under the same names; "" where none can be.

    It is made of the sizes and times of images, or of the files that hold their records, which may
    be prepared again under the same names. Fingerprints of images in memory cover the pixels.
    """
    if isinstance(source, folder.Folder):
        found = {path: files.size_and_time(source.root / path) for path in source.paths}
    elif isinstance(source, Records | Examples):
        with ThreadPoolExecutor(STAMP_THREADS) as pool:
            names = [path.name for path in source.files]
            found = dict(zip(names, pool.map(files.size_and_time, source.files), strict=True))
    else:
        return ""
    check = 0
    for name, said in found.items():
        check = zlib.crc32(f"{name}\0{said}\0".encode(errors="surrogateescape"), check)
    return f"{check:08x}"
