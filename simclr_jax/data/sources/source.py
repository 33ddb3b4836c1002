"""What every data set opens to: random access to examples by number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np

T = TypeVar("T", covariant=True)


class Source(Protocol):
    """One split of a data set.

    Attributes:
      classes: number of classes, 0 without labels.
      class_names: by label; empty where they have none.
      multi_label: whether an image may have several labels, or none of them.
      channels: of its images.
    """

    @property
    def classes(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def multi_label(self) -> bool: ...

    @property
    def channels(self) -> int: ...

    @property
    def labels(self) -> np.ndarray | None:
        """Return all labels, int32 `[m]`, or None; may take a pass over the data.

        With `multi_label`, int8 `[m, classes]`: 1 for a class that the image has, 0 for one that
        it has not, -1 for one that is to be ignored in this image.
        """

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Return what tells this split from any other, whatever directory it lies in."""

    def name(self, example: int) -> str:
        """Return by what a person finds this example again: its file, or its number.

        It is on one line, see `errors.printable`.
        """

    def example(self, example: int) -> tuple[np.ndarray, int]:
        """Return pixels, uint8 `[h, w, channels]`, and label of an example.

        The label is `NO_LABEL` where there is none, and with `multi_label`. Threads call this at
        the same time.

        Raises:
          BadImage: if it cannot be read or decoded.
        """

    def take(self, rows: np.ndarray) -> Source:
        """Return the split that holds only the examples `rows`, in that order."""


@dataclasses.dataclass(frozen=True)
class Split(Generic[T]):
    """A split that is opened when it is called.

    Attributes:
      open: opens it.
      images: how many it has, where that is known before.
    """

    open: Callable[[], T]
    images: int | None = None

    def __call__(self) -> T:
        return self.open()
