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

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import buckets, files
from simclr_jax.data.decode import Decoder, suffixes
from simclr_jax.data.read_ahead import ReadAhead
from simclr_jax.data.sources.sharded import (
    Examples,
    Kind,
    as_it_is,
    check_complete,
    classed,
    each,
    find,
)
from simclr_jax.data.sources.tar_files import TarFiles, kept_in
from simclr_jax.errors import UserError

KIND = Kind(re.compile(r"\.tar$"), True, "train-000000.tar or train/000000.tar", "train")


def is_directory_of(path: str) -> bool:
    """Tell whether a directory holds tar files and neither images nor directories.

    An archive that lies beside what it was unpacked to does not make it one.
    """
    root, images, tars = epath.Path(files.expand_home(path)), suffixes(), False
    if not path or not root.is_dir():
        return False
    local = buckets.is_local(root)
    with buckets.reaching(root), os.scandir(root) if local else _listed(root) as entries:
        for entry in entries:  # until the first that decides it: there may be a million images
            if entry.name.startswith("."):
                continue
            if entry.name.rpartition(".")[2].lower() in images or entry.is_dir():
                return False
            tars = tars or entry.name.endswith(".tar")
    return tars


@contextlib.contextmanager
def _listed(root: epath.Path) -> Iterator[list[epath.Path]]:
    yield buckets.listing(root)


def splits(data: ConfigDict, kept: epath.Path | None = None) -> dict[str, Callable[[], Examples]]:
    """Return the splits of the directory `data.path`, by the names of its files.

    Args:
      data: `config.data`.
      kept: not used; a run that is resumed notices files that were added or taken away.

    Raises:
      UserError: if there is no such directory, or no tar file in it. When called, a split raises it
        if its files are damaged or not all there, it has no image, or labels that make no classes.
    """
    return each(find(data, KIND), data, _open)


def _open(
    data: ConfigDict,
    paths: list[epath.Path],
    decoder: Decoder,
    split: str,
    train: Callable[[], Examples] | None,
) -> Examples:
    check_complete(paths, KIND)
    say = functools.partial(print, file=sys.stderr, flush=True)
    records = TarFiles(paths, kept_in(data.index), data.labels, say)
    if not len(records):
        raise UserError(
            f"{os.fspath(paths[0])} has no image that can be read here: choose another split"
        )
    note = f"{records.left_out} example(s) of {split} have no image that can be read here"
    source = Examples(
        split=split,
        paths=paths,
        raw=ReadAhead(records, records.fetch),
        rows=np.arange(len(records)),
        labels=None,
        classes=0,
        image=as_it_is,
        called=records.names.__getitem__,
        notes=(f"{note}, and are left out",) * bool(records.left_out),
        decoder=decoder,
    )
    return classed(source, records.labels if data.labels else None, data, train)
