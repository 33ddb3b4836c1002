"""Operations and bytes of a compiled step beside what the device can do."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

# Instructions that move nothing: names for what others have made, or control of what is counted.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id",
}  # fmt: skip
CONTROL = {"while", "conditional", "call"}  # of instructions that are counted by themselves
SLICES = {"slice", "dynamic-slice", "gather"}  # read as much as they make
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # write this argument into the first
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
OPCODE = re.compile(r"^([a-z][\w\-]*)\(")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)"
)
TRIPS = re.compile(r'known_trip_count":\s*\{"n":"(\d+)"')


def of_compiled(compiled: Any, steps: int) -> dict[str, Any]:
    """Return what the compiler says of a program that takes so many steps, for one device.

    Returns:
      `cost_flops` and `cost_bytes`: of `cost_analysis`, a step; a compiler that calls libraries may
        leave out what these do. `moved_bytes`: what its instructions read and write, a step.
        `memory_bytes`: arguments, temporaries and results that take no argument's place.
    """
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "cost_flops": cost.get("flops", 0.0) / steps,
        "cost_bytes": cost.get("bytes accessed", 0.0) / steps,
        "moved_bytes": moved_bytes(compiled.as_text()) / steps,
        "memory_bytes": needed,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def moved_bytes(text: str) -> float:
    """Return the bytes that the instructions of a compiled program read and write.

    Inputs and outputs of every instruction that runs by itself: those inside a fusion move nothing.
    Where only a slice of an array is read or written, that is what counts. Bodies of loops count as
    often as they run, where the program says how often; compilers' own analyses count them once.
    """
    return sum(moved_by_instruction(text).values())


def moved_by_instruction(text: str) -> dict[str, float]:
    """Return what each instruction of a program reads and writes in a call; see `moved_bytes`."""
    return _Counting(text).by_instruction(_entry(text))


class _Instruction(NamedTuple):
    opcode: str
    size: int  # bytes of what it makes
    arguments: list[str]
    called: list[str]
    trips: int  # of a loop


class _Counting:
    """The instructions of a program by computation and name, and the bytes that they move."""

    def __init__(self, text: str):
        self._bodies: dict[str, dict[str, _Instruction]] = {}
        current: dict[str, _Instruction] = {}
        for line in text.splitlines():
            if head := COMPUTATION.match(line):
                current = self._bodies[head[2]] = {}
            elif found := INSTRUCTION.match(line):
                type_, opcode, arguments = _parts(found[2])
                trips = TRIPS.search(found[2])
                called = CALLED.findall(found[2])
                current[found[1]] = _Instruction(
                    opcode, _bytes(type_), arguments, called, int(trips[1]) if trips else 1
                )

    def by_instruction(self, name: str) -> dict[str, float]:
        """Return the bytes that each instruction of a computation, and of its loops, moves."""
        body, found = self._bodies.get(name, {}), dict[str, float]()
        for label, one in body.items():
            if one.opcode not in CONTROL:
                found[label] = found.get(label, 0) + self._moved(body, one)
                continue
            for called in one.called:
                for inner, size in self.by_instruction(called).items():
                    found[inner] = found.get(inner, 0) + one.trips * size
        return found

    def _moved(self, body: dict[str, _Instruction], one: _Instruction) -> float:
        if one.opcode in FREE or one.opcode.endswith("-done"):
            return 0
        sizes = [body[name].size if name in body else 0 for name in one.arguments]
        if one.opcode == "fusion":
            return self._of_fusion(one, sizes)
        if one.opcode in SLICES:
            return 2 * one.size
        if one.opcode in UPDATES:
            return 2 * sizes[UPDATES[one.opcode]]
        return one.size + sum(sizes)

    def _of_fusion(self, fusion: _Instruction, sizes: list[int]) -> float:
        """Return the bytes of a fusion, of whose arguments it may read slices."""
        body = self._bodies.get(fusion.called[0], {}) if fusion.called else {}
        inputs = [name for name, one in body.items() if one.opcode == "parameter"]
        numbers = {name: int(body[name].arguments[0]) for name in inputs}
        total = 0.0
        for name, number in numbers.items():
            users = [one for one in body.values() if name in one.arguments]
            total += min(sizes[number], sum(self._read(body, one, name) for one in users))
        last = next(reversed(body.values()), fusion)
        if last.opcode in UPDATES:  # in its place
            return total + self._size(body, last.arguments[UPDATES[last.opcode]])
        return total + fusion.size

    def _read(self, body: dict[str, _Instruction], user: _Instruction, name: str) -> float:
        """Return what an instruction in a fusion reads of an argument."""
        if user.opcode in SLICES and user.arguments[0] == name:
            return user.size
        if user.opcode in UPDATES and user.arguments[0] == name:
            return 0
        return self._size(body, name)

    def _size(self, body: dict[str, _Instruction], name: str) -> int:
        return body[name].size if name in body else 0


def _entry(text: str) -> str:
    found = re.search(r"^ENTRY %?([\w.\-]+) ", text, re.MULTILINE)
    return found[1] if found else ""


def _parts(rest: str) -> tuple[str, str, list[str]]:
    """Return type, opcode and names of arguments of `TYPE OPCODE(ARGUMENTS), ...`."""
    place = _end(rest) if rest.startswith("(") else rest.index(" ")  # a tuple's type has spaces
    type_, after = rest[:place], rest[place:].lstrip()
    opcode = OPCODE.match(after)
    if not opcode:
        return type_, "", []
    begin = opcode.end()
    inside = after[begin : begin - 1 + _end(after[begin - 1 :]) - 1]
    inside = re.sub(r"\[[\d,]*\](\{[^}]*\})?", "", inside)  # types, where they are written out
    return (
        type_,
        opcode[1],
        [part.split()[-1].lstrip("%") for part in inside.split(",") if part.strip()],
    )


def _end(text: str) -> int:
    """Return the place behind the bracket that closes the first sign of a text."""
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if not depth:
            return place + 1
    return len(text)


def _bytes(type_: str) -> int:
    return sum(
        math.prod(map(int, filter(None, shape.split(",")))) * max(1, int(bits or 8) // 8)
        for _, bits, shape in ARRAY.findall(type_)
    )


def shares(
    seconds: float, flops: float, moved: float, flops_per_s: float, bytes_per_s: float
) -> dict[str, float]:
    """Return how near a step is to the limits that a product and a copy show.

    Args:
      seconds: of a step.
      flops: operations of it on one device.
      moved: bytes of it on one device.
      flops_per_s: that the device reaches in a matrix product.
      bytes_per_s: that it reaches in a copy.

    Returns:
      `of_flops` and `of_bytes`: the time that each alone would take, as a share of the step's;
      `of_roofline`: the larger; `flops_per_byte`.
    """
    of_flops, of_bytes = flops / flops_per_s / seconds, moved / bytes_per_s / seconds
    return {
        "of_flops": of_flops,
        "of_bytes": of_bytes,
        "of_roofline": max(of_flops, of_bytes),
        "flops_per_byte": flops / moved if moved else math.inf,
    }
