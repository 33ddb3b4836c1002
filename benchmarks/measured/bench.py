"""What is measured, and the process that holds our steps: what all sections share."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from measured.session import Session
from measured.worker import Failed, Worker

GIB = 2**30
# Memory is taken as it is needed, so that two processes can have some at the same time.
OURS = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
# Of that, what the plan of a step may say where PyTorch's is on the card too: JAX's allocator grows
# by doubling, and PyTorch keeps more of each view.
SHARED = 0.2
ALONE = 0.95  # of that, for one
# Views made elsewhere: the job that the PyTorch step does too.
GIVEN = {"augment.placement": "host", "augment.grid": "corner", "data.resident": False}
ON_DEVICE = {"augment.placement": "device", "augment.grid": "corner"}


@dataclasses.dataclass(frozen=True)
class Network:
    """A recipe to measure.

    Attributes:
      recipe: as --config takes it.
      fields: that differ from it, by dotted names.
      canvas: side in pixels of the images that the device crops.
      batches: images on a device, the candidates.
      build_s: seconds that building a step may take, before it is known.
    """

    recipe: str
    fields: dict[str, Any]
    canvas: int
    batches: tuple[int, ...]
    build_s: float = 0.0

    def asked(self, **fields: Any) -> dict[str, Any]:
        """Return it as `ours.build` takes it, with more fields, dots as double underscores."""
        more = {name.replace("__", "."): value for name, value in fields.items()}
        return {"recipe": self.recipe, "fields": self.fields | more, "canvas": self.canvas}

    def with_views(self, placed: Mapping[str, Any]) -> Network:
        """Return it with views made elsewhere (`GIVEN`) or on the device (`ON_DEVICE`)."""
        return dataclasses.replace(self, fields=self.fields | dict(placed))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What to measure, and for how long.

    Attributes:
      large: ResNet-50 on views of 224 pixels, or what stands for it.
      small: ResNet-18 on views of 32 pixels, likewise.
      scanned: steps in one call of the device, for the row of `small` that scans.
      rounds: turns that each step has.
      round_s: seconds of a turn.
      copied: bytes of the copy that shows the bandwidth.
      side: of the matrices that show the operations.
      whole_batch: images of the accumulated batch.
      parts: numbers of parts to try it in.
      torch_compile: whether PyTorch compiles.
      peer: whether PyTorch is asked at all.
    """

    large: Network
    small: Network
    scanned: int = 16
    rounds: int = 5
    round_s: float = 1.0
    copied: int = 2**31
    side: int = 8192
    whole_batch: int = 4096
    parts: tuple[int, ...] = (8, 16, 32)
    torch_compile: bool = True
    peer: bool = True


class Bench:
    """What sections share: the process that holds our steps, and what it has built."""

    def __init__(self, session: Session, sizes: Sizes):
        self.session, self.sizes = session, sizes
        self._ours: Worker | None = None
        self._machine: dict[str, Any] = {}
        self._peer: dict[str, Any] | None = None
        self._planned: dict[str, dict[int, int]] = {}
        self._took: dict[str, float] = {}  # seconds of the slowest build, by recipe
        self.built: dict[str, dict[str, Any]] = {}
        self.shared = 0  # the batch of `large`, once it is known

    def ours(self, call: str, **arguments: Any) -> Any:
        """Ask our process, starting it if there is none.

        Raises:
          Failed: see `Worker.receive`; what was built is lost if the process is.
        """
        if self._ours is None:
            self._ours, self.built = Worker("ours.py", self.session.log, OURS), {}
        try:
            return self._ours.ask(call, self.session.left, **arguments)
        except Failed:
            if self._ours.ended:
                self._ours, self.built = None, {}
            raise

    def build(self, name: str, network: Network, batch: int, **more: Any) -> dict[str, Any]:
        """Build a step of ours under a name, in the place of what had it before.

        Raises:
          Failed: see `ours`; also if less time is left than the recipe's slowest build took so far.
        """
        wanted = self._took.get(network.recipe, network.build_s)
        if self.session.left < wanted:
            raise Failed(
                f"not built: wants about {wanted:.0f} s, {self.session.left:.0f} s are left"
            )
        start = self.session.elapsed
        calls = more.pop("calls", 1)
        found = self.ours("build", name=name, batch=batch, calls=calls, **network.asked(**more))
        took = self.session.elapsed - start
        self._took[network.recipe] = max(took, self._took.get(network.recipe, 0.0))
        self.built[name] = found
        return found

    def drop(self, name: str) -> None:
        """Forget a step of ours."""
        if self.built.pop(name, None):
            self.ours("drop", name=name)

    def planned(self, network: Network) -> dict[int, int]:
        """Return the bytes that the plan expects for each batch of a network."""
        key = f"{network.recipe} {sorted(network.fields.items())}"
        if key not in self._planned:
            found = self.ours("planned", batches=list(network.batches), **network.asked())
            self._planned[key] = {int(batch): size for batch, size in found.items()}
        return self._planned[key]

    def machine(self) -> dict[str, Any]:
        """Return what our process sees."""
        self._machine = self._machine or self.ours("machine")
        return self._machine

    def peer(self) -> dict[str, Any]:
        """Return what PyTorch sees, or {} if there is none, which is then said once."""
        if self._peer is None:
            self._peer = {}
            if self.sizes.peer:
                with self.session.worker("theirs.py") as theirs:
                    try:
                        self._peer = theirs.ask("machine", self.session.left)
                    except Failed as error:
                        self.session.row(what="PyTorch", failed=str(error))
        return self._peer

    def run(self, name: str) -> Callable[[int], dict[str, float]]:
        """Return what takes steps of ours."""
        return lambda calls: self.ours("run", name=name, calls=calls)

    def large(self) -> dict[str, Any]:
        """Return what is known of the step `large`, of views made elsewhere; build it if needed."""
        if "large" not in self.built:
            found = fitting(self, "large", self.sizes.large.with_views(GIVEN), SHARED)
            self.shared = found["batch"]
        return self.built["large"]

    def on_device(self) -> dict[str, Any]:
        """Return what is known of the step `large_device`, whose views the device makes."""
        batch = self.large()["batch"]
        if "large_device" not in self.built:
            self.build("large_device", self.sizes.large.with_views(ON_DEVICE), batch)
        return self.built["large_device"]

    def end(self) -> None:
        """End our process."""
        if self._ours is not None:
            self._ours.end()
            self._ours, self.built = None, {}


def timed(
    sizes: Sizes, steps: Mapping[str, Callable[[int], dict[str, float]]]
) -> dict[str, dict[str, float]]:
    """Let steps have turns of about the same length, and return the seconds of one of each.

    Returns:
      For each the median of its turns, their `spread` (largest less smallest, as a share of the
      median) and the last loss.
    """
    calls = {}
    for name, run in steps.items():
        one = run(1)["seconds"]
        calls[name] = max(1, round(sizes.round_s / max(one, 1e-6)))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for _ in range(sizes.rounds):
        for name, run in steps.items():
            found[name].append(run(calls[name]))
    results = {}
    for name, turns in found.items():
        seconds = [turn["seconds"] for turn in turns]
        median = statistics.median(seconds)
        spread = (max(seconds) - min(seconds)) / median
        results[name] = {"seconds": median, "spread": spread, "loss": turns[-1]["loss"]}
    return results


def rates(views: int, took: Mapping[str, float]) -> dict[str, float]:
    """Return the columns of a row that say how fast a step of so many views is."""
    return {
        "views_per_s": views / took["seconds"],
        "ms": 1e3 * took["seconds"],
        "spread": took["spread"],
        "loss": took["loss"],
    }


def fitting(
    bench: Bench, name: str, network: Network, share: float, above: int = 0
) -> dict[str, Any]:
    """Build the step with the largest of its batches that fits in a share of the memory.

    The plan says where to begin; where it is wrong, the next smaller one is tried.

    Args:
      bench: builds.
      name: of the step.
      network: to build.
      share: of the memory; where that is not known, the smallest batch is taken.
      above: only batches larger than this are wanted.

    Raises:
      Failed: if none fits.
    """
    room = share * bench.machine()["memory"]
    planned = bench.planned(network)
    tried = [batch for batch in sorted(planned, reverse=True) if batch > above]
    if not tried:
        raise Failed(f"no batch above {above} is among those to try")
    likely = [batch for batch in tried if planned[batch] <= room]
    for batch in likely or tried[-1:]:
        try:
            built = bench.build(name, network, batch)
        except Failed as error:
            if not error.memory:
                raise
            bench.session.row(what="ours", batch=batch, failed=str(error))
            continue
        built["planned_bytes"] = planned[batch]
        return built
    raise Failed(f"none of the batches {sorted(tried)} fits")


def timed_alone(bench: Bench, name: str) -> dict[str, float]:
    """Return the seconds of a step of ours with no other beside it."""
    return timed(bench.sizes, {name: bench.run(name)})[name]


def about(built: Mapping[str, Any]) -> dict[str, float]:
    """Return the columns of a row that say what a program needs."""
    row = {"compile_s": built["compile_s"], "memory_gib": built["memory_bytes"] / GIB}
    if "planned_bytes" in built:
        row["planned_gib"] = built["planned_bytes"] / GIB
    return row
