"""What stands in the place of a label where an image has none, and who counts for that reason.

Data sets write it and losses read it, and neither may import the other (a loss works alone, on
arrays), so it stands below both.
"""

from __future__ import annotations

import numpy as np

NO_LABEL = -1


def counted(labels: np.ndarray | None, readable: np.ndarray | None = None) -> np.ndarray:
    """Return the rows of images that are scored, or may teach: readable, with a label.

    Everything that scores features or learns from them asks here, so that all numbers are of the
    same images.

    Args:
      labels: int `[m]`, `NO_LABEL` where there is none; or `[m, classes]` where an image may have
        several, of which `NO_LABEL` alone is no label; None without labels.
      readable: int, rows of the images that could be read; None: all of them.

    Returns:
      Rising rows, int64.
    """
    if labels is None:
        return np.zeros(0, np.int64)
    known = labels != NO_LABEL
    if labels.ndim == 2:
        known = known.any(axis=1)
    if readable is not None:
        seen = np.zeros(len(labels), bool)
        seen[readable] = True
        known = known & seen
    return np.flatnonzero(known)
