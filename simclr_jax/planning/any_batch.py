"""The program of a step at any batch size, worked out from the programs at two batch sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from simclr_jax.planning import footprint
from simclr_jax.planning.footprint import Footprint, Rules
from simclr_jax.planning.program import Program, collectives, flops

# Images on a device, of the two programs that are looked at. Not the side of any feature map, for
# operations that are equal by chance would be merged.
SMALL, LARGE = 13, 29
MOST = 1 << 20  # images on a device


@dataclasses.dataclass(frozen=True)
class AnyBatch:
    """A step on one device as a function of its images.

    The length of every axis of every array is a + b * images, with constants a and b, which two
    programs suffice to find.

    Attributes:
      small: the program for `SMALL` images.
      large: that for `LARGE`.
      state_arrays: how many of the first arguments are the state.
    """

    small: Program
    large: Program
    state_arrays: int

    @classmethod
    def of(cls, read: Callable[[int], Program], state_arrays: int) -> AnyBatch:
        """Read the two programs; `read` takes the images on a device."""
        small, large = read(SMALL), read(LARGE)
        assert [op.name for op in small.ops] == [op.name for op in large.ops]
        return cls(small, large, state_arrays)

    def at(self, images: int) -> Program:
        """Return the program for so many images on a device."""
        shapes: dict[int, Any] = {}
        for array, small in self.small.shapes.items():
            sides = zip(small.shape, self.large.shapes[array].shape, strict=True)
            shape = [a + (b - a) * (images - SMALL) // (LARGE - SMALL) for a, b in sides]
            shapes[array] = jax.ShapeDtypeStruct(tuple(shape), small.dtype)
        return dataclasses.replace(self.small, shapes=shapes)

    def footprint(self, images: int, rules: Rules) -> Footprint:
        """Return the memory for so many images on a device."""
        return footprint.analyse(self.at(images), self.state_arrays, rules)

    def flops(self, images: int) -> int:
        """Return the operations of one device in a step."""
        return flops(self.at(images))

    def collectives(self, images: int) -> dict[str, int]:
        """Return the bytes each device receives, by kind."""
        return collectives(self.at(images))

    def most_images(self, room: float, rules: Rules, waiting: int = 0) -> int:
        """Return the most images on a device whose step needs at most `room` bytes; 0: not one.

        Beside the batch of the step there are `waiting` more.
        """

        def fits(images: int) -> bool:
            found = self.footprint(images, rules)
            return found.peak + waiting * found.batch <= room

        return largest(fits)


def largest(fits: Callable[[int], bool]) -> int:
    """Return the largest number up to `MOST` that fits, if whatever is smaller than one that fits,
    fits too.
    """
    low, high = 0, 1
    while high <= MOST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
