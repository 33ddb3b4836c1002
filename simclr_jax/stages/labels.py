"""Which labels may be used: of the training images of an evaluation, or of a stage that learns."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.data import sources
from simclr_jax.data.sources import Source
from simclr_jax.errors import UserError
from simclr_jax.evaluate import subsets
from simclr_jax.unlabelled import counted

ALL = "all"


def allowed(
    wanted: str, labels: np.ndarray, examples: np.ndarray, source: Source, seed: int
) -> np.ndarray:
    """Return the rows of labelled images whose labels may be used, rising.

    Args:
      wanted: "all"; a share of each class, such as "10%"; a number of each class; or a file of
        image names, one a line, such as the official `1percent.txt`.
      labels: int `[m]`, or `[m, classes]` where an image may have several.
      examples: int `[m]`, which images of `source` these are.
      source: of the images.
      seed: of the draw.

    Raises:
      UserError: if `wanted` is none of these, or asks for more than there is.
    """
    return _rows("--labels", wanted, labels, examples, source, seed)


def restrict(config: ConfigDict, train: Source) -> Source:
    """Return the training images of a stage that learns from labels, and no label it may not use.

    Raises:
      UserError: if the labels it needs are missing.
    """
    if not needed(config):
        return train
    check(config, train, "training")
    labels = train.labels
    assert labels is not None  # `check` has seen to it
    known = counted(labels)
    c = config.labels
    rows = known[_rows("labels.use", c.use, labels[known], known, train, c.seed)]
    if config.stage == "distill" and config.distill.images == "all":
        return sources.hide_labels(train, np.setdiff1d(np.arange(len(train)), rows))
    return train.take(rows)


def needed(config: ConfigDict) -> bool:
    """Tell whether a stage cannot do without labels."""
    d = config.distill
    return config.stage != "distill" or d.alpha < 1 or d.images == "labelled"


def count(config: ConfigDict, train: Source) -> int:
    """Return how many labels a stage that needs some learns from, of what `restrict` returns."""
    if config.stage == "distill" and config.distill.images == "all":
        assert train.labels is not None  # they were hidden one by one
        return len(counted(train.labels))
    return len(train)


def check(config: ConfigDict, source: Source, which: str) -> None:
    """Raise `UserError` unless the `which` images have labels that a stage is made for."""
    if not source.classes or not len(counted(source.labels)):
        raise UserError(
            f"the {which} images have no labels, which stage {config.stage} needs: give a data set "
            "that has, and data.labels=True"
        )
    if source.multi_label and config.stage == "distill":
        raise UserError(
            f"the {which} images may have several labels, stage distill is made for one each: give "
            "a data set of such labels or --config.data.labels=False"
        )
    assert source.labels is not None  # or none of them would count
    if source.multi_label:
        return
    if which == "training" and len(np.unique(source.labels[counted(source.labels)])) == 1:
        raise UserError(
            f"all labelled training images are of one class, of which stage {config.stage} can "
            "learn nothing: give images of two classes or more"
        )


def _rows(
    field: str,
    wanted: str,
    labels: np.ndarray,
    examples: np.ndarray,
    source: Source,
    seed: int,
) -> np.ndarray:
    """Choose among `labels` `[m]`, those of `examples` `[m]` in `source`; see `allowed`."""
    if wanted == ALL:
        return np.arange(len(labels))
    if is_file(wanted):
        return _listed(field, Path(wanted).expanduser(), examples, source)
    if labels.ndim == 2:
        raise UserError(f"{field}={wanted} draws by class, but an image has several: use all")
    try:
        share = float(wanted[:-1]) / 100 if wanted.endswith("%") else None
        number = 0 if share is not None else int(wanted)
    except ValueError:
        raise UserError(
            f"{field}={wanted} is neither all, a share such as 10%, a number for each class, "
            "nor a file of names"
        ) from None
    if share is None:
        return subsets.few_labels(labels, number, seed)
    classes = len(np.unique(labels))
    if 0 < share * len(labels) < classes:
        raise UserError(
            f"{field}={wanted} of {len(labels)} images is less than one for each of {classes} "
            f"classes: ask for {_enough(classes / len(labels))} or more, or for a number of each"
        )
    return subsets.share_of_labels(labels, share, seed)


def _enough(share: float) -> str:
    """Write a share in per cent, rounded up to two digits."""
    digits = 10.0 ** (math.floor(math.log10(100 * share)) - 1)
    return f"{math.ceil(100 * share / digits) * digits:.2g}%"


def describe(wanted: str) -> str:
    """Return what decides which labels are used; of a file, with a checksum of its content."""
    if wanted != ALL and is_file(wanted):
        return f"{wanted}, crc32 {zlib.crc32(Path(wanted).expanduser().read_bytes()):08x}"
    return wanted


def in_words(config: ConfigDict) -> str:
    """Say which labels a stage learns from."""
    c = config.labels
    if not needed(config):
        return "none"
    return f"{describe(c.use)} of {config.data.split}, draw {c.seed}"


def tag(wanted: str, seed: int) -> str:
    """Return a word for the names of results, "" for all labels."""
    if wanted == ALL:
        return ""
    text = Path(wanted).stem if is_file(wanted) else wanted.replace("%", "pct")
    word = "".join(c if c.isalnum() or c == "." else "_" for c in text)
    return f"{word}_labels-seed{seed}"


def is_file(wanted: str) -> bool:
    """Tell whether `wanted` is a list of names."""
    return Path(wanted).expanduser().is_file()


def _listed(field: str, path: Path, examples: np.ndarray, source: Source) -> np.ndarray:
    """Find the images that a file names, by their whole name or else by its last part."""
    names = set(path.read_text(errors="backslashreplace").splitlines()) - {""}
    if not names:
        raise UserError(f"{field}={path} names no image: write one name a line")
    own = [source.name(int(example)) for example in examples]
    rows = [i for i, name in enumerate(own) if name in names]
    if not rows:
        rows = [i for i, name in enumerate(own) if name.split("/")[-1] in names]
    if len(rows) < len(names):
        raise UserError(
            f"{field}={path} names {len(names)} images, of which {len(rows)} are among those to "
            f"learn from, such as {own[0]}: leave the others out"
        )
    if len(rows) > len(names):
        raise UserError(
            f"{field}={path} names {len(names)} images, but {len(rows)} have such a name: write "
            f"names with their directories, such as {own[0]}"
        )
    return np.array(rows)
