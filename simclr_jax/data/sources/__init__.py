"""Where images come from. A source is one file here; `source.py` says what it must offer."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from simclr_jax import documents, files
from simclr_jax.data import gone
from simclr_jax.data.sources import (
    arrays,
    digits,
    folder,
    packed,
    packed_files,
    parquet,
    tfds,
    tfrecord,
    trained,
    webdataset,
)
from simclr_jax.data.sources.arrays import Images
from simclr_jax.data.sources.changes import by_threads, changed_records
from simclr_jax.data.sources.hidden import hide_labels
from simclr_jax.data.sources.layout import images
from simclr_jax.data.sources.packed import Packed, check_views
from simclr_jax.data.sources.sharded import Examples
from simclr_jax.data.sources.source import Source, Split
from simclr_jax.data.sources.tfds_records import Records
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
    "check_views",
    "find",
    "hide_labels",
    "noted",
    "notes",
    "open_all",
    "open_splits",
    "opener",
    "remember",
    "replaced",
    "stamp",
    "tell",
    "unused",
]

MOST_WITHOUT_LABELS = 1000  # held out: they only show whether embeddings collapse
STAMP_THREADS = 32  # many, for a bucket answers each of them slowly
# What it means that files are not those that a run began with.
MEANING = (
    "where their content differs, losses are not those of a run that was never interrupted "
    "(data.if_changed=refuse stops instead)"
)
RECORD_FILES = "files.json"  # of a run: sizes and times of the files that hold its records

Splits = Mapping[str, Callable[[], Source]]
InFiles = Records | Examples | Packed  # whose examples lie many to a file, which `files` names

# Each takes `config.data` and the directory in which the run keeps what must not change when it is
# resumed, and returns the splits the data set has; a split is read when it is called.
Opener = Callable[[ConfigDict, epath.Path | None], Splits]
OPENERS: dict[str, Opener] = {
    "digits": digits.splits,
    "folder": folder.splits,
    "memory": arrays.splits,
    "packed": packed.splits,
    "parquet": parquet.splits,
    "tfds": tfds.splits,
    "tfrecord": tfrecord.splits,
    "webdataset": webdataset.splits,
}


def opener(data: ConfigDict) -> Opener:
    """Return what opens the data set of `config.data`.

    A directory may be a packed store, or one of tar files.
    """
    if data.source == "folder" and packed_files.is_store(data.path):
        return OPENERS["packed"]
    if data.source == "folder" and webdataset.is_directory_of(data.path):
        return OPENERS["webdataset"]
    return OPENERS[data.source]


def find(data: ConfigDict, kept: epath.Path | None = None) -> Splits:
    """Return the splits of a data set, each opened when it is called.

    Opening a split of a run notes where files are not those that the run began with, or refuses
    them (`data.if_changed`).

    Args:
      data: `config.data`.
      kept: where a run keeps what must not change when it is resumed; None outside a run.

    Raises:
      UserError: if the data set cannot be opened; `Unreachable` where that of a run is gone.
    """
    if kept is None:
        return opener(data)(data, kept)
    gone.check(data.path)
    return {
        name: Split(functools.partial(_compared, open_it, data, kept, name), _images(open_it))
        for name, open_it in opener(data)(data, kept).items()
    }


def unused(found: Splits, used: Iterable[str]) -> list[str]:
    """Return a sentence about the splits, by `find`, that nobody uses; nothing if there are none.

    Args:
      found: all splits.
      used: names of some; slices and sums of TFDS (`train[:90%]+test`) use what they are of.
    """
    taken = {part.partition("[")[0].strip() for name in used for part in name.split("+")}
    left = {name: _images(open_it) for name, open_it in found.items() if name not in taken}
    words = [
        documents.shown(name) + (f" ({images(count)})" if count is not None else "")
        for name, count in left.items()
        if "[" not in name and "+" not in name
    ]
    if not words or "all" in taken:
        return []
    return [f"not used: {', '.join(words)}, which {'are splits' if words[1:] else 'is a split'}"]


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
    found: Splits | None = None,
    also: Iterable[str] = (),
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
      found: the splits, if `find` was asked before.
      also: splits that are used besides these two; the first source notes those that are not.

    Raises:
      UserError: if the data set cannot be opened, lacks the split or is too small to hold out, or
        if it cannot be known what has not been trained on.
    """
    unseen = unseen or Unseen()
    found = find(data, kept) if found is None else found
    choose("data.split", data.split, found)
    whole = noted(found[data.split](), unused(found, (data.split, data.eval_split, *also)))
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


def remember(kept: epath.Path, *opened: Source) -> None:
    """Keep what the splits of a run must find again when it is resumed.

    Of a folder its index, of records the sizes and times of their files.

    Raises:
      UserError: if it cannot be written.
    """
    folders = [source for source in opened if isinstance(source, folder.Folder)]
    records = {
        source.split: _sizes_and_times(source) for source in opened if isinstance(source, InFiles)
    }
    with files.explaining(kept):
        if folders:  # all of one data set, and so of one index
            folders[0].remember(kept)
        if records:
            kept.mkdir(parents=True, exist_ok=True)
            documents.write(kept / RECORD_FILES, {"splits": records})


def notes(source: Source) -> tuple[str, ...]:
    """Return what a user should know about a source, such as why it has no labels."""
    return getattr(source, "notes", ())


def tell(source: Source, say: Callable[[str], object]) -> None:
    """Let a source say a line when it meets what a user should know, such as images of 16 bits."""
    decoder = getattr(source, "decoder", None)
    if decoder is not None:
        decoder.say = say


def stamp(source: Source) -> str:
    """Return what changes when files are replaced under the same names; "" where none can be.

    It is made of the sizes and times of images, or of the files that hold their records, which may
    be prepared again under the same names. Fingerprints of images in memory cover the pixels.
    """
    if isinstance(source, folder.Folder):
        looked = by_threads(lambda path: files.size_and_time(source.root / path), source.paths)
        found = dict(zip(source.paths, looked, strict=True))
    elif isinstance(source, InFiles):
        found = _sizes_and_times(source)
    else:
        return ""
    check = 0
    for name, said in found.items():
        check = zlib.crc32(f"{name}\0{said}\0".encode(errors="surrogateescape"), check)
    return f"{check:08x}"


def _sizes_and_times(source: InFiles) -> dict[str, str]:
    with ThreadPoolExecutor(STAMP_THREADS) as pool:
        names = [path.name for path in source.files]
        return dict(zip(names, pool.map(files.size_and_time, source.files), strict=True))


def _images(open_it: Callable[[], Source]) -> int | None:
    return open_it.images if isinstance(open_it, Split) else None


def replaced(source: Source, kept: epath.Path, name: str, thorough: bool) -> str:
    """Say which files of a split are not those that `remember` was told of; "" if all are.

    Args:
      source: the split; a folder was opened by the index that is kept.
      kept: the directory that keeps sizes and times.
      name: of the split.
      thorough: look at each image of a folder, however many there are.
    """
    if isinstance(source, folder.Folder):
        return source.changes(thorough)
    if isinstance(source, InFiles) and (kept / RECORD_FILES).exists():
        schema = dict[str, dict[str, dict[str, str]]]
        before = documents.read(kept / RECORD_FILES, schema).get("splits", {})
        if name in before:
            return changed_records(before[name], _sizes_and_times(source))
    return ""


def _compared(
    open_it: Callable[[], Source], data: ConfigDict, kept: epath.Path, name: str
) -> Source:
    """Open a split of a run and compare its files with those that the run began with."""
    source = open_it()
    said = replaced(source, kept, name, thorough=data.if_changed == "refuse")
    if said and data.if_changed == "refuse":
        raise UserError(
            f"{said}: bring back those that were there, or set data.if_changed=say to go on with "
            "these"
        )
    return noted(source, [f"{said}: {MEANING}"] if said else [])


def noted(source: Any, lines: list[str]) -> Any:
    """Return a source with more that a user should know about it."""
    if not lines:
        return source
    return dataclasses.replace(source, notes=(*source.notes, *lines))
