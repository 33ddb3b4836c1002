"""The order of examples, as a pure function of (seed, position).

A run consumes examples at positions 0, 1, 2, ... without end. Position p is in epoch p // size, and
each epoch is another permutation of the data set. Nothing is remembered between calls: a run that
resumes at position p asks for p, on any number of hosts, after any number of restarts.

The permutation is a Feistel network on the smallest even number of bits that holds the data set;
values outside it are encrypted again until they fall inside (cycle walking). It is ours because a
resumed run must find the order it left, and NumPy promises no stable stream of permutations.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 6


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64-bit words (the finaliser of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _encrypt(x: np.ndarray, keys: np.ndarray, half: np.uint64) -> np.ndarray:
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & low
    for r in range(ROUNDS):
        left, right = right, left ^ (_mix(right ^ keys[r]) & low)
    return (left << half) | right


def examples(seed: int, positions: np.ndarray, size: int) -> np.ndarray:
    """Return which example stands at each position.

    Args:
      seed: of the run.
      positions: int64 `[n]`, each >= 0: how many examples were consumed before this one.
      size: examples in the data set.

    Returns:
      int64 `[n]` in [0, size); over the positions of one epoch each example once.
    """
    positions = np.asarray(positions, np.int64)
    epochs, places = (part.astype(np.uint64) for part in np.divmod(positions, size))
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    rounds = np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None]
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        stream = _mix(np.array([seed], np.int64).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        keys = _mix(_mix(stream + epochs)[None, :] + rounds * np.uint64(0xD1342543DE82EF95))
        found = _encrypt(places, keys, half)
        while (outside := np.flatnonzero(found >= size)).size:
            found[outside] = _encrypt(found[outside], keys[:, outside], half)
    return found.astype(np.int64)
