"""A labelled split of which some labels are hidden, because they may not be used."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import numpy as np

from simclr_jax.data.sources.arrays import Images
from simclr_jax.data.sources.source import Source
from simclr_jax.unlabelled import NO_LABEL


def hide_labels(source: Source, rows: np.ndarray) -> Source:
    """Return a labelled source in which the examples `rows` have no label.

    It has the same images under the same numbers, and another fingerprint.
    """
    labels = source.labels
    assert labels is not None and labels.ndim == 1, "hides one label an image"
    seen = labels.copy()
    seen[rows] = NO_LABEL
    if isinstance(source, Images):
        return dataclasses.replace(source, labels=seen)
    return HiddenLabels(source, seen)


class HiddenLabels:
    """A source with other labels.

    Args:
      source: of the images.
      labels: int32 `[m]`, some of them `NO_LABEL`.
    """

    def __init__(self, source: Source, labels: np.ndarray):
        self._source, self.labels = source, labels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def fingerprint(self) -> str:
        """Return the fingerprint of the images, and how many labels are seen."""
        seen = np.packbits(self.labels != NO_LABEL)
        return f"{self._source.fingerprint()}, labels of {_crc(seen)}"

    def example(self, example: int) -> tuple[np.ndarray, int]:
        """Return pixels and the label, or `NO_LABEL`; see `Source.example`."""
        return self._source.example(example)[0], int(self.labels[example])

    def take(self, rows: np.ndarray) -> Source:
        """Return the split that holds only the examples `rows`."""
        return HiddenLabels(self._source.take(rows), self.labels[rows])


def _crc(array: np.ndarray) -> str:
    return f"crc32 {zlib.crc32(array.tobytes()):08x}"
