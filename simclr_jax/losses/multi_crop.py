"""Multi-crop: small, local crops of an image look for its two global ones (SwAV, 2006.09882).

A crop asks, another one is its target. Targets are global crops only, and so are the negatives of a
batch: a local crop asks for both global ones and is asked for by none, a global one asks for the
other. A loss is the mean over all pairs of an asking crop and a target, 2 + 2V of them with V local
crops. So it has the scale that it has without, and what it is by chance does not change.

As SwAV's and DINO's losses run over their pairs (facebookresearch/swav `main_swav.py: train`,
facebookresearch/dino `main_dino.py: DINOLoss`). SwAV's SimCLR (its appendix A.8) is another: there
local crops are targets and negatives as well, in a matrix of all crops with all crops.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import jax


def pairs(asking: int, targets: int = 2) -> list[tuple[int, int]]:
    """Return which crop asks for which target, no crop for itself.

    Args:
      asking: crops that ask, global ones first, in the order of the targets.
      targets: of them all, global crops.
    """
    return [(crop, target) for crop in range(asking) for target in range(targets) if crop != target]


def both(terms: Sequence[jax.Array]) -> jax.Array:
    """Return twice the mean of the terms of all pairs: without local crops, the sum of the two.

    That is what losses that add up both directions are with local crops.
    """
    total = functools.reduce(operator.add, terms)
    return total if len(terms) == 2 else total * (2 / len(terms))


def mean(terms: Sequence[jax.Array]) -> jax.Array:
    """Return the mean of the terms of all crops that ask for one target."""
    total = functools.reduce(operator.add, terms)
    return total if len(terms) == 1 else total / len(terms)
