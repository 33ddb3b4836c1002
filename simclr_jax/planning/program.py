"""The train step as one device runs it: a flat list of operations, read from its jaxpr.

Nothing is compiled and no device is needed, so this knows what must be computed, kept and sent, and
not how a compiler orders or pads it. The same operation on the same arrays counts once, however
often it is written, because compilers do it once.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.sharding import AbstractMesh, AxisType

from simclr_jax.parallel import AXIS

# Operations that are nothing but a program inside.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
# `jax.checkpoint`: its operations are computed again, however equal they are to earlier ones.
REMAT = ("remat2", "checkpoint", "remat")
AGAIN = "again"  # an array under a name that no earlier operation knows
NO_WORK = {"pvary", "copy_p", "stop_gradient"}  # the same array under another name
COLLECTIVES = {
    "psum": "all-reduce",
    "psum_invariant": "all-reduce",
    "pmax": "all-reduce",
    "pmin": "all-reduce",
    "all_gather": "all-gather",
    "all_gather_invariant": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all",
    "ppermute": "collective-permute",
}


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
      name: of the primitive.
      inputs: numbers of the arrays it reads.
      outputs: numbers of the arrays it makes.
      params: of the primitive.
      inside: of a loop, what one turn does.
      times: of a loop, its turns.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: dict[str, Any]
    inside: Program | None = None
    times: int = 1


@dataclasses.dataclass(frozen=True)
class Program:
    """Operations in the order in which they are written.

    Attributes:
      ops: the operations.
      shapes: of each array, by its number, with a `shape` and a `dtype`.
      inputs: numbers of the arguments, in their order.
      outputs: numbers of the results.
    """

    ops: list[Op]
    shapes: dict[int, Any]
    inputs: list[int]
    outputs: list[int]

    def bytes(self, array: int) -> int:
        """Return the size of an array."""
        return nbytes(self.shapes[array])


def nbytes(aval: Any) -> int:
    """Return the bytes of a described array; a key of random numbers has none worth counting."""
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
        return 0
    return math.prod(aval.shape) * aval.dtype.itemsize


def abstract_mesh(devices: int) -> AbstractMesh:
    """Return the mesh of `parallel.make_mesh` over devices that need not exist."""
    return AbstractMesh((devices,), (AXIS,), axis_types=(AxisType.Auto,))


def read(step: Any, *arguments: Any) -> Program:
    """Return what one device does in a jitted step that is one `shard_map`.

    Args:
      step: from `train.step.make_step`.
      *arguments: of the step, arrays or their descriptions, of the whole mesh.
    """
    (sharded,) = _find(step.trace(*arguments).jaxpr.jaxpr, "shard_map")
    program = flatten(sharded.params["jaxpr"])
    # Constants come before the arguments; here they are last.
    constants = len(program.inputs) - len(jax.tree.leaves(arguments))
    inputs = program.inputs[constants:] + program.inputs[:constants]
    return dataclasses.replace(program, inputs=inputs)


def _find(jaxpr: Any, name: str) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == name:
            yield eqn
        elif eqn.primitive.name in CALLS:
            yield from _find(_inside(eqn), name)


def _inside(eqn: Any) -> Any:
    inside = eqn.params[CALLS.get(eqn.primitive.name, "jaxpr")]
    return getattr(inside, "jaxpr", inside)


def flatten(jaxpr: Any) -> Program:
    """Return the operations of a jaxpr and of all that it calls, equal ones merged."""
    return _Flattening().run(jaxpr)


class _Flattening:
    def __init__(self):
        self.ops: list[Op] = []
        self.shapes: dict[int, Any] = {}
        self._known: dict[Any, tuple[int, ...]] = {}

    def run(self, jaxpr: Any) -> Program:
        inputs = [self._array(v.aval) for v in jaxpr.invars]
        outputs = self._inline(jaxpr, inputs)
        return Program(self.ops, self.shapes, inputs, [o for o in outputs if isinstance(o, int)])

    def _array(self, aval: Any) -> int:
        self.shapes[len(self.shapes)] = aval
        return len(self.shapes) - 1

    def _inline(self, jaxpr: Any, arguments: Sequence[Any], consts: Sequence[Any] = ()) -> list:
        """Add the operations of `jaxpr`; arguments and results are arrays or literal values."""
        env = dict(zip(jaxpr.invars, arguments, strict=True))
        env |= {v: self._array(v.aval) for v in jaxpr.constvars}

        def read(v: Any) -> Any:
            return ("literal", str(v.val), str(v.aval)) if isinstance(v, core.Literal) else env[v]

        for eqn in jaxpr.eqns:
            found = self._equation(eqn, [read(v) for v in eqn.invars])
            env |= zip(eqn.outvars, found, strict=True)
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, values: list[Any]) -> Sequence[Any]:
        name = eqn.primitive.name
        if name in CALLS:
            return self._inline(_inside(eqn), values)
        if name in REMAT:
            return self._inline(_inside(eqn), [self._again(value) for value in values])
        if name in NO_WORK:
            return values
        return self._op(name, values, [v.aval for v in eqn.outvars], eqn.params)

    def _again(self, value: Any) -> Any:
        """Return a new name for an array, so that what is done to it again counts again."""
        if not isinstance(value, int):
            return value
        (fresh,) = self._op(AGAIN, [value], [self.shapes[value]], {"of": len(self.ops)})
        return fresh

    def _op(self, name: str, values: list, avals: list, params: dict) -> tuple[int, ...]:
        key = (name, tuple(values), _key(params), tuple(map(str, avals)))
        if key not in self._known:
            outputs = tuple(map(self._array, avals))
            inputs = tuple(value for value in values if isinstance(value, int))
            loop = (flatten(params["jaxpr"].jaxpr), params["length"]) if name == "scan" else ()
            self.ops.append(Op(name, inputs, outputs, params, *loop))
            self._known[key] = outputs
        return self._known[key]


def _key(params: dict[str, Any]) -> tuple:
    """Return the parameters of a primitive in a form that can be compared.

    Programs among them are equal only if they are the same object.
    """

    def plain(value: Any) -> Any:
        inside = getattr(value, "jaxpr", value)
        return id(inside) if hasattr(inside, "eqns") else str(value)

    return tuple((name, plain(value)) for name, value in sorted(params.items()))


def flops(program: Program) -> int:
    """Return the operations of all convolutions and matrix products, 2 for each multiply-add."""
    return sum(_flops_of(program, op) for op in program.ops)


def _flops_of(program: Program, op: Op) -> int:
    if op.inside:
        return op.times * flops(op.inside)
    shapes = [program.shapes[array].shape for array in (*op.inputs, *op.outputs)]
    if op.name == "dot_general":
        (contracted, _), _ = op.params["dimension_numbers"]
        return 2 * math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in contracted)
    if op.name == "conv_general_dilated":
        return convolution_flops(shapes[0], shapes[1], shapes[2], op.params)
    return 0


def convolution_flops(
    inputs: tuple[int, ...], kernel: tuple[int, ...], outputs: tuple[int, ...], params: dict
) -> int:
    """Return 2 for each product of a number of the input and a weight: none where padding is."""
    lhs, rhs, out = params["dimension_numbers"]
    pairs = 1
    for axis, (stride, (before, _), input_dilation, kernel_dilation) in enumerate(
        zip(
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    ):
        place = stride * np.arange(outputs[out[2 + axis]])[:, None] - before
        place = place + kernel_dilation * np.arange(kernel[rhs[2 + axis]])  # [outputs, taps]
        inside = (place >= 0) & (place <= input_dilation * (inputs[lhs[2 + axis]] - 1))
        pairs *= int(np.sum(inside & (place % input_dilation == 0)))
    # A kernel's second feature axis is already that of one group; batch groups share the batch.
    images = outputs[out[0]] * outputs[out[1]]
    return 2 * images * kernel[rhs[1]] * pairs


def collectives(program: Program) -> dict[str, int]:
    """Return the bytes each device receives in a step, by kind of collective."""
    found: collections.Counter[str] = collections.Counter()
    for op in program.ops:
        if op.inside:
            inside = collectives(op.inside)
            found.update({kind: op.times * size for kind, size in inside.items()})
        elif kind := COLLECTIVES.get(op.name):
            found[kind] += sum(map(program.bytes, op.outputs))
    return dict(found)
