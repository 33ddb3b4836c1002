"""The sections of `gpu.py` that time steps: ours, PyTorch's, and what ours is made of."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from measured import roofline
from measured.session import Session
from measured.worker import Failed, Worker

GIB = 2**30
# Memory is taken as it is needed, so that two processes can have some at the same time.
OURS = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
SHARED = 0.42  # of that, for each of two processes with a step
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
    """

    recipe: str
    fields: dict[str, Any]
    canvas: int
    batches: tuple[int, ...]

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
      compile_s: what a program of `large` may take to compile, before one is known.
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
    compile_s: float = 100.0
    torch_compile: bool = True
    peer: bool = True


class Bench:
    """What sections share: the process that holds our steps, and what it has built."""

    def __init__(self, session: Session, sizes: Sizes):
        self.session, self.sizes = session, sizes
        self._ours: Worker | None = None
        self._machine: dict[str, Any] = {}
        self._peer: dict[str, Any] | None = None
        self.built: dict[str, dict[str, Any]] = {}

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
          Failed: see `ours`; also if less time is left than the slowest build took so far.
        """
        took = [found["build_s"] for found in self.built.values()]
        wanted = max(took, default=self.sizes.compile_s)
        if self.session.left < wanted:
            raise Failed(
                f"not built: wants about {wanted:.0f} s, {self.session.left:.0f} s are left"
            )
        start = self.session.elapsed
        calls = more.pop("calls", 1)
        found = self.ours("build", name=name, batch=batch, calls=calls, **network.asked(**more))
        self.built[name] = found | {"build_s": self.session.elapsed - start}
        return self.built[name]

    def drop(self, name: str) -> None:
        """Forget a step of ours."""
        if self.built.pop(name, None):
            self.ours("drop", name=name)

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
            given = self.sizes.large.with_views(GIVEN)
            fitting(self, "large", given, list(self.sizes.large.batches), SHARED)
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
    bench: Bench, name: str, network: Network, batches: list[int], share: float
) -> dict[str, Any]:
    """Build the step with the largest of `batches` that fits in a share of the memory.

    The plan says where to begin; where it is wrong, the next smaller one is tried.

    Raises:
      Failed: if none fits.
    """
    room = share * bench.machine()["memory"]
    found = bench.ours("largest", batches=batches, room=room, **network.asked())
    planned = {int(batch): size for batch, size in found["planned"].items()}
    tried = [batch for batch in sorted(batches, reverse=True) if batch <= found["largest"]]
    for batch in tried or [min(batches)]:
        try:
            built = bench.build(name, network, batch)
        except Failed as error:
            if not error.memory:
                raise
            bench.session.row(what="ours", batch=batch, failed=str(error))
            continue
        built["planned_bytes"] = planned[batch]
        return built
    raise Failed(f"none of the batches {sorted(batches)} fits")


def machine(bench: Bench) -> None:
    """Say what the card is, and the versions and flags of the programs."""
    bench.session.row(**bench.machine())
    if peer := bench.peer():
        bench.session.row(**peer)


def against_torch(bench: Bench, name: str, network: Network) -> None:
    """Time a step of ours that is built beside PyTorch's of the same network, in turns."""
    ours, session = bench.built[name], bench.session
    job = bench.ours("job", **network.asked())
    gpu = bench.peer().get("device") == "cuda"
    job |= {"batch": ours["views"] // 2, "device": "cuda" if gpu else "cpu"}
    job |= {"channels_last": True, "compile": bench.sizes.torch_compile}
    steps = {"ours": bench.run(name)}
    with session.worker("theirs.py") as theirs:
        peer = None
        if bench.peer():
            try:
                peer = theirs.ask("build", session.left, name=name, job=job)
                steps["PyTorch"] = lambda calls: theirs.ask(
                    "run", session.left, name=name, calls=calls
                )
            except Failed as error:
                session.row(what="PyTorch", batch=ours["batch"], failed=str(error))
        took = timed(bench.sizes, steps)
    row = {"what": "ours, views given", "batch": ours["batch"]}
    session.row(**row, **rates(ours["views"], took["ours"]), **about(ours))
    if peer is None:
        return
    row = {"what": "PyTorch, views given", "batch": ours["batch"]}
    session.row(**row, **rates(peer["views"], took["PyTorch"]), **about(peer))
    ratio = took["PyTorch"]["seconds"] / took["ours"]["seconds"]
    session.row(what="ours over PyTorch", batch=ours["batch"], ratio=ratio)


def about(built: Mapping[str, Any]) -> dict[str, float]:
    """Return the columns of a row that say what a program needs."""
    row = {"compile_s": built["compile_s"], "memory_gib": built["memory_bytes"] / GIB}
    if "planned_bytes" in built:
        row["planned_gib"] = built["planned_bytes"] / GIB
    return row


def resnet50(bench: Bench) -> None:
    """Time ResNet-50: beside PyTorch, with views made on the device, and at the largest batch."""
    given = bench.sizes.large.with_views(GIVEN)
    bench.large()
    against_torch(bench, "large", given)
    batch = bench.built["large"]["batch"]
    alone(bench, "on device", bench.sizes.large.with_views(ON_DEVICE), "large_device", batch)
    larger = [size for size in bench.sizes.large.batches if size > batch]
    if larger:
        built = fitting(bench, "largest", given, larger, ALONE)
        took = timed_alone(bench, "largest")
        row = {"what": "ours alone, views given", "batch": built["batch"]}
        bench.session.row(**row, **rates(built["views"], took), **about(built))
        bench.drop("largest")


def timed_alone(bench: Bench, name: str) -> dict[str, float]:
    """Return the seconds of a step of ours with no other beside it."""
    return timed(bench.sizes, {name: bench.run(name)})[name]


def alone(
    bench: Bench, what: str, network: Network, name: str, batch: int, **more: Any
) -> dict[str, float]:
    """Build a step of ours, time it, write its row and return what it took."""
    built = bench.build(name, network, batch, **more)
    took = timed_alone(bench, name)
    row = {"what": f"ours, views {what}", "batch": batch}
    bench.session.row(**row, **rates(built["views"], took), **about(built))
    return took


def limits(bench: Bench) -> None:
    """Measure what a copy and a matrix product reach here, and how near the step comes."""
    built, sizes = bench.large(), bench.sizes
    found = bench.ours("ceilings", copied=sizes.copied, side=sizes.side, calls=10)
    row = {"copy_gb_per_s": found["bytes_per_s"] / 1e9}
    bench.session.row(**row, product_tflop_per_s=found["flops_per_s"] / 1e12)
    seconds = timed_alone(bench, "large")["seconds"]
    for source in ("moved_bytes", "cost_bytes"):
        if not built[source]:  # XLA says nothing of programs for GPUs
            bench.session.row(bytes=source, missing="the compiler does not say")
            continue
        shares = roofline.shares(
            seconds, built["flops"], built[source], found["flops_per_s"], found["bytes_per_s"]
        )
        row = {"bytes": source, "gb_a_step": built[source] / 1e9}
        bench.session.row(**row, tflop_a_step=built["flops"] / 1e12, **shares)
    if peak := bench.machine()["peak_flops"]:
        share = built["flops"] / peak / seconds
        bench.session.row(known=bench.machine()["known"], of_the_maker_s_flops=share)


def resnet18(bench: Bench) -> None:
    """Time ResNet-18 over batch sizes, several steps in one call, and beside PyTorch."""
    small = bench.sizes.small
    for batch in small.batches:
        alone(bench, "on device", small.with_views(ON_DEVICE), "small", batch)
    bench.drop("small")
    middle = small.batches[len(small.batches) // 2]
    bench.build("small_given", small.with_views(GIVEN), middle)
    against_torch(bench, "small_given", small.with_views(GIVEN))
    bench.drop("small_given")
    scanned = bench.sizes.scanned
    least = min(small.batches)
    alone(
        bench, f"on device, {scanned} steps a call", small.with_views(ON_DEVICE), "scanned", least,
        calls=scanned,
    )  # fmt: skip
    bench.drop("scanned")


def shares(bench: Bench) -> None:
    """Time the views alone and the loss alone, and say which share of the step they would be."""
    batch = bench.on_device()["batch"]
    step = timed_alone(bench, "large_device")["seconds"]
    calls = max(1, round(bench.sizes.round_s / step))
    for piece, seconds in bench.ours("parts", name="large_device", calls=calls).items():
        bench.session.row(piece=piece, batch=batch, ms=1e3 * seconds, of_the_step=seconds / step)


def profile(bench: Bench) -> None:
    """Record some steps of ResNet-50 and say which kinds of kernels take the time."""
    bench.on_device()
    found = bench.ours("profile", name="large_device", calls=3)
    for column in ("kinds", "parts"):
        for kind, values in found[column].items():
            bench.session.row(**{column.removesuffix("s"): kind}, **values)
    for row in found["longest"]:
        bench.session.row(**row)
    bench.session.row(busy=found["busy"])
