"""The order of examples for data that are read in large parts, again a pure function.

Random access asks a bucket for one image at a time. Here consecutive examples form blocks, read by
one request each; a block is the whole unit of what is fetched, and all else is arithmetic:

* In each epoch the blocks are permuted, and laid out one after the other: the places 0 to size - 1.
* The rows of a global batch are cut into `lanes` equal parts. A lane has a run of places of its
  own, as many as positions of the epoch fall to it, so that a host which supplies some rows of
  every batch reads the blocks of its lanes and no others.
* A lane's run is cut into windows of at most `window` places, within which places are permuted.

An epoch sees every example once, and nothing depends on how many hosts there are. A run that
resumes reads at most the windows it stopped in once more, whatever its step.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from simclr_jax.data import order

WITHIN = 0x57494E444F57  # sets the permutations of windows apart from that of the blocks


class _Windows(NamedTuple):
    """The window of each position, int64 `[n]` all; see `Stream._windows`.

    Attributes:
      epoch: of the position.
      first: place at which its window begins.
      size: places in the window.
      at: which of them, from 0, is the position's before the window is shuffled.
    """

    epoch: np.ndarray
    first: np.ndarray
    size: np.ndarray
    at: np.ndarray


class Stream:
    """An order, to be called like `order.examples`.

    Args:
      seed: of the run.
      size: examples in the data set.
      batch_size: global; it decides which rows are a lane.
      block: consecutive examples that are read together.
      window: places among which a lane is shuffled; with the lanes this is the shuffle buffer.
      lanes: parts of a batch; hosts whose number divides it share no block but at the seams.
    """

    def __init__(
        self, seed: int, size: int, *, batch_size: int, block: int, window: int, lanes: int
    ):
        self._seed, self._size, self._batch_size = seed, size, batch_size
        self._block, self._window, self._lanes = block, window, lanes
        self._layout = functools.lru_cache(maxsize=4)(self._lay_out)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Return which example stands at each of the positions, both int64 `[n]`."""
        windows = self._windows(np.asarray(positions, np.int64))
        places = windows.first + _shuffled(self._seed ^ WITHIN, self._size, windows)
        found = np.empty_like(places)
        for epoch in np.unique(windows.epoch):
            rows = windows.epoch == epoch
            blocks, starts = self._layout(int(epoch))
            of = np.searchsorted(starts, places[rows], side="right") - 1
            found[rows] = blocks[of] * self._block + places[rows] - starts[of]
        return found

    def blocks(self, positions: np.ndarray) -> list[np.ndarray]:
        """Return the blocks, each as its examples, of the windows in which positions stand."""
        windows = self._windows(np.asarray(positions, np.int64))
        spans = np.unique(np.stack([windows.epoch, windows.first, windows.size]), axis=1)
        found: dict[int, None] = {}
        for epoch, first, size in spans.T:
            blocks, starts = self._layout(int(epoch))
            ends = np.searchsorted(starts, [first, first + size - 1], side="right")
            found |= dict.fromkeys(blocks[ends[0] - 1 : ends[1]].tolist())
        return [self._members(block) for block in found]

    def a_window_later(self, positions: np.ndarray) -> np.ndarray:
        """Return the positions that have the same rows, as many batches later as a window has."""
        rows = max(self._batch_size // self._lanes, 1)
        return np.asarray(positions, np.int64) + -(-self._window // rows) * self._batch_size

    def _members(self, block: int) -> np.ndarray:
        return np.arange(block * self._block, min(self._size, (block + 1) * self._block))

    def _lay_out(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the blocks of an epoch in their order, and the place at which each starts."""
        count = -(-self._size // self._block)
        blocks = order.examples(self._seed, epoch * count + np.arange(count), count)
        sizes = np.minimum(self._block, self._size - blocks * self._block)  # the last is shorter
        return blocks, np.cumsum(sizes) - sizes

    def _windows(self, positions: np.ndarray) -> _Windows:
        """Find the window of each position, and the place there before any shuffling.

        Position p is row p % batch_size of batch p // batch_size. A lane is some rows of every
        batch, next to one another. Take the positions of an epoch that lie in a lane's rows, in
        their order: they get a run of places next to one another, which begins where the run of
        the lane before ends. A run is as long as such positions are many, so together the runs are
        the places 0 to size - 1, each once. How many positions lie in certain rows is counted in
        closed form (`passed`), so nothing is ever listed.

        An example: 12 examples, batches of 4, two lanes. In epoch 0 the rows 0 and 1 are lane 0,
        the rows 2 and 3 are lane 1:

            position   0  1  2  3    4  5  6  7    8  9 10 11
            lane       0  0  1  1    0  0  1  1    0  0  1  1
            place      0  1  6  7    2  3  8  9    4  5 10 11

        With `window` 4 each run of 6 places is cut into two windows of 3: places 0 to 2, 3 to 5,
        6 to 8 and 9 to 11. Position 6 has epoch 0, a window that begins at place 6 and has 3
        places, and the last of these: `_Windows(epoch=0, first=6, size=3, at=2)`.

        An epoch need not begin with a batch, so runs may differ in length, from epoch to epoch too.
        """
        rows, lanes = self._batch_size, self._lanes
        lane = positions % rows * lanes // rows
        low, high = -(-lane * rows // lanes), -(-(lane + 1) * rows // lanes)  # rows of the lane

        def passed(position: np.ndarray, row: np.ndarray) -> np.ndarray:
            """Count the positions before `position` that are in rows before `row`."""
            return position // rows * row + np.minimum(position % rows, row)

        epoch = positions // self._size
        begin, end = epoch * self._size, (epoch + 1) * self._size
        # Of this epoch, the positions in rows of lanes before this one: their runs come first.
        start = passed(begin, low)
        run = passed(end, low) - start
        # Of this lane: positions before the epoch, in the epoch, and in the epoch before this one.
        before = passed(begin, high) - start
        length = passed(end, high) - passed(end, low) - before
        at = passed(positions, high) - passed(positions, low) - before
        # As few windows as `window` allows, and as equal as whole places can be.
        count = -(-length // self._window)
        window = ((at + 1) * count - 1) // length
        first, last = window * length // count, (window + 1) * length // count
        return _Windows(epoch, run + first, last - first, at - first)


def _shuffled(seed: int, examples: int, windows: _Windows) -> np.ndarray:
    """Return the place of each position within its window, permuted for each window apart."""
    found = np.empty_like(windows.at)
    for size in np.unique(windows.size):
        rows = windows.size == size
        number = windows.epoch[rows] * examples + windows.first[rows]  # no two have the same
        found[rows] = order.examples(seed, number * size + windows.at[rows], int(size))
    return found
