"""How much memory a step needs at its fullest moment, by which arrays must exist and how long.

A compiler that fuses well keeps an array only where something cannot be computed on the way:
convolutions and matrix products read and write memory, reductions write their result, and whatever
is elementwise in between is computed where it is read, again if need be. Arrays live from the
operation that makes them to the last that reads them, in the order in which the step is written;
layout, padding and a compiler's own buffers are not in it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from simclr_jax.planning.program import AGAIN, COLLECTIVES, Op, Program, nbytes

SUBLANES, LANES = 8, 128  # of a TPU's tile

PRODUCTS = frozenset({"conv_general_dilated", "dot_general"})
# Read and write memory: neither what they read nor what they make is computed on the way.
WHOLE = PRODUCTS | frozenset(
    {
        "sort",
        "gather",
        "scatter-add",
        "scatter-max",
        "reduce_window",
        "reduce_window_max",
        "reduce_window_sum",
        "select_and_scatter_add",
        "select_and_gather_add",
        "scan",
        "while",
        "cond",
    }
)
# Their result is in memory; what they read may be computed on the way.
REDUCTIONS = frozenset(
    {
        "reduce_sum",
        "reduce_max",
        "reduce_min",
        "reduce_or",
        "reduce_and",
        "argmax",
        "argmin",
        # Where gradients of two readers meet: else each block's would be a sum of all before it.
        "add_any",
    }
)
# The same bytes under another name.
VIEWS = frozenset({AGAIN, "reshape", "squeeze", "expand_dims", "transpose", "copy"})


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes on one device at the fullest moment of a step.

    Attributes:
      state: parameters, statistics and what the optimiser keeps; new ones take their place.
      batch: images, labels and whatever else a batch holds.
      temporary: activations kept for the backward pass, gradients, what is being worked on.
    """

    state: int
    batch: int
    temporary: int

    @property
    def peak(self) -> int:
        """Return the bytes of all three."""
        return self.state + self.batch + self.temporary


def tiled(aval: Any) -> int:
    """Return the bytes of an array on a TPU, which stores two of its axes in tiles of 8 x 128.

    For feature maps these are the first and the last axis, for kernels the last two, for batches
    of views any two; which is the long side of the tile is chosen so that least is wasted.
    """
    size, shape = nbytes(aval), aval.shape
    if len(shape) < 2 or not size:
        return size
    if len(shape) > 4:
        pairs = list(itertools.permutations(shape, 2))
    else:
        a, b = shape[0 if len(shape) == 4 and shape[0] >= SUBLANES else -2], shape[-1]
        pairs = [(a, b), (b, a)]
    return min(size // (a * b) * _tile(a, b) for a, b in pairs)


def _tile(short: int, long: int) -> int:
    few = min(SUBLANES, 1 << (short - 1).bit_length())  # tiles of short axes are lower
    return -(-short // few) * few * -(-long // LANES) * LANES


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a kind of device, with its compiler, does with arrays.

    Attributes:
      sizes: bytes that an array takes.
      reads_through: convolutions and matrix products compute on the way what is elementwise of one
        array; what joins several, such as the sum at the end of a block, is stored.
    """

    sizes: Callable[[Any], int]
    reads_through: bool


GPU = Rules(nbytes, reads_through=False)
TPU = Rules(tiled, reads_through=True)


def analyse(program: Program, state_arrays: int, rules: Rules = GPU) -> Footprint:
    """Return what a step needs.

    Args:
      program: of one device.
      state_arrays: how many of its first arguments are the state, whose place the results take.
      rules: of the kind of device.
    """
    state, batch = (
        sum(rules.sizes(program.shapes[array]) for array in arrays)
        for arrays in (program.inputs[:state_arrays], program.inputs[state_arrays:])
    )
    return Footprint(state, batch, _temporary(program, rules))


def _temporary(program: Program, rules: Rules) -> int:
    """Return the bytes at the fullest moment of a program, beside its arguments."""
    return max(itertools.accumulate(_changes(program, rules)), default=0)


def _turn(op: Op, rules: Rules) -> int:
    """Return the bytes that one turn of a loop needs: its slices of what it goes through, its work.

    What it hands on to the next and what it leaves are the loop's own arrays.
    """
    assert op.inside is not None
    first = op.params["num_consts"] + op.params["num_carry"]
    slices = [op.inside.shapes[array] for array in op.inside.inputs[first:]]
    return sum(map(rules.sizes, slices)) + _temporary(op.inside, rules)


def _changes(program: Program, rules: Rules) -> list[int]:
    """Return by how many bytes memory grows, or shrinks, at each moment: an operation has two.

    At its first its results come into being. What a convolution is the last to read is there beside
    them until the operation is over; other operations may write over what they are last to read.
    """
    sources = _sources(program, rules)
    born: dict[int, int] = {}
    last: dict[int, int] = {}
    for time, op in enumerate(program.ops):
        for source in {source for array in op.inputs for source in sources[array]}:
            # Convolutions read while they write; others may write over what they read.
            last[source] = 2 * time + 2 if op.name in WHOLE else 2 * time
        for array in op.outputs:
            if sources[array] == (array,):
                born[array] = last[array] = 2 * time + 1
    for array in born:
        last[array] = max(last[array], born[array])
    arguments, changes = set(program.inputs), [0] * (2 * len(program.ops) + 3)
    for time, op in enumerate(program.ops):
        if op.inside:
            turn = _turn(op, rules)
            changes[2 * time + 1] += turn
            changes[2 * time + 2] -= turn
    for array in born.keys() - arguments:
        size = rules.sizes(program.shapes[array])
        changes[born[array]] += size
        changes[last[array] + 1] -= size
    return changes


def _sources(program: Program, rules: Rules) -> dict[int, tuple[int, ...]]:
    """Return for each array those in memory that it is computed from: itself, if it is there."""
    made, read, products = _stored(program)
    sizes = {array: program.bytes(array) for array in program.shapes}  # asked for 100 times each
    sources: dict[int, tuple[int, ...]] = {array: (array,) for array in program.inputs}
    for op in program.ops:
        found = tuple(dict.fromkeys(s for array in op.inputs for s in sources[array]))
        for array in op.outputs:
            joined = sum(2 * sizes[source] >= sizes[array] for source in found) > 1
            stored = array in made or array in read
            stored |= array in products and (joined or not rules.reads_through)
            sources[array] = (array,) if stored else found
    return sources


def _stored(program: Program) -> tuple[set[int], set[int], set[int]]:
    """Return the arrays, by their first name, that operations write to memory and read from there.

    Last come those that are read by convolutions and matrix products.
    """
    first = {array: array for array in program.shapes}
    made: set[int] = set()
    read: set[int] = set()
    products: set[int] = set()
    for op in program.ops:
        if op.name in VIEWS and op.inputs:  # a literal has no name
            first[op.outputs[0]] = first[op.inputs[0]]
        if op.name in PRODUCTS:
            products |= {first[array] for array in op.inputs}
        elif op.name in WHOLE or op.name in COLLECTIVES:
            read |= {first[array] for array in op.inputs}
        if op.name in WHOLE or op.name in COLLECTIVES or op.name in REDUCTIONS:
            made |= set(op.outputs)
    return made, read, products
