"""Which of the training labels an evaluation may use."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from simclr_jax.data.sources import Source
from simclr_jax.errors import UserError
from simclr_jax.evaluate import subsets
from simclr_jax.stages.feature_bank import Features

ALL = "all"


def allowed(wanted: str, fit: Features, source: Source, seed: int) -> np.ndarray:
    """Return the rows of `fit` whose labels may be used, rising.

    Args:
      wanted: "all"; a share of each class, such as "10%"; a number of each class; or a file of
        image names, one a line, such as the official `1percent.txt`.
      fit: labelled examples.
      source: of their images.
      seed: of the draw.

    Raises:
      UserError: if `wanted` is none of these, or asks for more than there is.
    """
    if wanted == ALL:
        return np.arange(len(fit))
    if _is_file(wanted):
        return _listed(Path(wanted).expanduser(), fit, source)
    if fit.known.ndim == 2:
        raise UserError(f"--labels={wanted} draws by class, but an image has several: use all")
    try:
        if wanted.endswith("%"):
            return subsets.share_of_labels(fit.known, float(wanted[:-1]) / 100, seed)
        return subsets.few_labels(fit.known, int(wanted), seed)
    except ValueError:
        raise UserError(
            f"--labels={wanted} is neither all, a share such as 10%, a number for each class, "
            "nor a file of names"
        ) from None


def describe(wanted: str) -> str:
    """Return what decides which labels are used; of a file, with a checksum of its content."""
    if wanted != ALL and _is_file(wanted):
        return f"{wanted}, crc32 {zlib.crc32(Path(wanted).expanduser().read_bytes()):08x}"
    return wanted


def tag(wanted: str, seed: int) -> str:
    """Return a word for the names of results, "" for all labels."""
    if wanted == ALL:
        return ""
    text = Path(wanted).stem if _is_file(wanted) else wanted.replace("%", "pct")
    word = "".join(c if c.isalnum() or c == "." else "_" for c in text)
    return f"{word}_labels-seed{seed}"


def _is_file(wanted: str) -> bool:
    return Path(wanted).expanduser().is_file()


def _listed(path: Path, fit: Features, source: Source) -> np.ndarray:
    """Find the images that a file names, by their whole name or else by its last part."""
    names = set(path.read_text().splitlines()) - {""}
    own = [source.name(int(example)) for example in fit.examples]
    rows = [i for i, name in enumerate(own) if name in names]
    if not rows:
        rows = [i for i, name in enumerate(own) if name.split("/")[-1] in names]
    if len(rows) < len(names):
        raise UserError(
            f"--labels={path} names {len(names)} images, of which {len(rows)} are among those to "
            f"learn from, such as {own[0]}: leave the others out"
        )
    if len(rows) > len(names):
        raise UserError(
            f"--labels={path} names {len(names)} images, but {len(rows)} have such a name: write "
            f"names with their directories, such as {own[0]}"
        )
    return np.array(rows)
