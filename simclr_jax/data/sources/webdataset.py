"""Tar files in WebDataset's format, by random access.

    PATH/train-000000.tar ...     the splits train and val, each of many files
    PATH/val-000000.tar
    PATH/train/000000.tar         the split train
    PATH/000000.tar               without a word: the split train

A directory of nothing else may also be given where a directory of images is expected.

Beside each image lies its label, `KEY.cls` or the `label` of `KEY.json` (`tar_files.py`), a number
kept as it is if it is one of a class (`numbering.py`). The package webdataset is not needed: it
reads tars from beginning to end and shuffles what passes; here every image has a number, so that
the order is the one of any source, resume and several hosts included.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import buckets, files
from simclr_jax.data.decode import Decoder, Rules, suffixes
from simclr_jax.data.read_ahead import ReadAhead
from simclr_jax.data.sources.sharded import (
    Examples,
    Kind,
    as_it_is,
    check_complete,
    classed,
    find,
)
from simclr_jax.data.sources.tar_files import TarFiles, kept_in
from simclr_jax.errors import UserError

KIND = Kind(re.compile(r"\.tar$"), True, "train-000000.tar or train/000000.tar", "train")


def is_directory_of(path: str) -> bool:
    """Tell whether a directory holds tar files and neither images nor directories.

    An archive that lies beside what it was unpacked to does not make it one.
    """
    entries = buckets.listing(epath.Path(files.expand_home(path))) if path else []
    names = [entry.name for entry in entries if not entry.name.startswith(".")]
    if not any(name.endswith(".tar") for name in names):
        return False
    images = any(name.rpartition(".")[2].lower() in suffixes() for name in names)
    return not images and not any(entry.is_dir() for entry in entries)


def splits(data: ConfigDict, kept: epath.Path | None = None) -> dict[str, Callable[[], Examples]]:
    """Return the splits of the directory `data.path`, by the names of its files.

    Args:
      data: `config.data`.
      kept: not used; a run that is resumed notices files that were added or taken away.

    Raises:
      UserError: if there is no such directory, or no tar file in it. When called, a split raises it
        if its files are damaged or not all there, it has no image, or labels that make no classes.
    """
    found = find(data, KIND)
    opened = functools.cache(functools.partial(_open, data, found, Decoder(Rules.of(data))))
    return {split: functools.partial(opened, split) for split in found}


def _open(
    data: ConfigDict, found: dict[str, list[epath.Path]], decoder: Decoder, split: str
) -> Examples:
    check_complete(found[split], KIND)
    say = functools.partial(print, file=sys.stderr, flush=True)
    records = TarFiles(found[split], kept_in(data.index), data.labels, say)
    if not len(records):
        raise UserError(
            f"{os.fspath(found[split][0])} has no image that can be read here: choose another split"
        )
    note = f"{records.left_out} example(s) of {split} have no image that can be read here"
    source = Examples(
        split=split,
        paths=found[split],
        raw=ReadAhead(records, records.fetch),
        rows=np.arange(len(records)),
        labels=None,
        classes=0,
        image=as_it_is,
        called=records.names.__getitem__,
        notes=(f"{note}, and are left out",) * bool(records.left_out),
        decoder=decoder,
    )
    train = None
    if split != data.split and data.split in found:
        train = functools.partial(_open, data, found, decoder, data.split)
    return classed(source, records.labels if data.labels else None, data, train)
