"""The program of a step at any batch size, worked out from the programs at two batch sizes.

Above some size a loss goes by tiles (`losses/tiles.py`), which is another program: that is read as
it is, at each size that is asked about. So is any program where tiles begin below the larger of the
two sizes, as they do where an image is compared with very many rows.
"""

from __future__ import annotations

import dataclasses
import functools
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

    Without tiles the length of every axis of every array is a + b * images, with constants a and b,
    which two programs suffice to find.

    Attributes:
      read: from images on a device to the program.
      small: the program for `SMALL * parts` images.
      large: that for `LARGE * parts`.
      state_arrays: how many of the first arguments are the state.
      parts: of a batch, one after the other: a device has a multiple of so many images.
    """

    read: Callable[[int], Program]
    small: Program
    large: Program
    state_arrays: int
    parts: int = 1

    @classmethod
    def of(cls, read: Callable[[int], Program], state_arrays: int, parts: int = 1) -> AnyBatch:
        """Read the two programs; `read` takes the images on a device."""
        read = functools.cache(read)
        return cls(read, read(SMALL * parts), read(LARGE * parts), state_arrays, parts)

    @functools.cached_property
    def alike(self) -> bool:
        """Tell whether the two programs are one, but for the lengths of axes."""
        return _form(self.small) == _form(self.large)

    def at(self, images: int) -> Program:
        """Return the program for so many images on a device."""
        return self._between(images) if self._plain(images) else self.read(images)

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

        def needs(program: Program) -> int:
            found = footprint.analyse(program, self.state_arrays, rules)
            return found.peak + waiting * found.batch

        if self.alike:
            most = largest(lambda n: needs(self._between(n * self.parts)) <= room)
            if not most or self._plain(most * self.parts):
                return most * self.parts
        elif needs(self.large) > room:  # few are tried one by one
            few = largest(lambda n: n < LARGE and needs(self.read(n * self.parts)) <= room)
            return few * self.parts
        else:
            most = LARGE
        # Tiles take less, so more may fit. What is needed grows in proportion, from some state on:
        # each step falls short of the largest, and the last is within 1 % of it.
        more = most
        while (ratio := room / needs(self.read(more * self.parts))) >= 1:
            most, more = more, int(more * ratio)
            if more <= 1.01 * most:
                break
        return most * self.parts

    def _plain(self, images: int) -> bool:
        """Tell whether at this size there are no loops but those of a small batch."""
        return self.alike and _loops(self.read(images)) == _loops(self.small)

    def _between(self, images: int) -> Program:
        return _between(self.small, self.large, images // self.parts)


def _loops(program: Program) -> list:
    """Return how many turns each loop takes, and the loops in it."""
    return [(op.times, _loops(op.inside)) for op in program.ops if op.inside]


def _form(program: Program) -> tuple:
    """Return what must be equal of programs for their axes to be compared one by one."""
    ops = [(op.name, op.times, op.inside and _form(op.inside)) for op in program.ops]
    return ops, [len(array.shape) for array in program.shapes.values()]


def _between(small: Program, large: Program, images: int) -> Program:
    """Return the program for so many images of those for `SMALL` and `LARGE`."""
    shapes: dict[int, Any] = {}
    for array, one in small.shapes.items():
        sides = zip(one.shape, large.shapes[array].shape, strict=True)
        shape = [a + (b - a) * (images - SMALL) // (LARGE - SMALL) for a, b in sides]
        shapes[array] = jax.ShapeDtypeStruct(tuple(shape), one.dtype)
    ops = [
        dataclasses.replace(op, inside=_between(op.inside, other.inside, images))
        if op.inside and other.inside
        else op
        for op, other in zip(small.ops, large.ops, strict=True)
    ]
    assert [op.name for op in small.ops] == [op.name for op in large.ops]
    return dataclasses.replace(small, ops=ops, shapes=shapes)


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
