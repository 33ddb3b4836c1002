"""The sections of `gpu.py` that time steps: ours, PyTorch's, and what ours is made of."""

from __future__ import annotations

from typing import Any

from measured import roofline
from measured.bench import (
    ALONE,
    GIVEN,
    ON_DEVICE,
    Bench,
    Network,
    about,
    fitting,
    rates,
    timed,
    timed_alone,
)
from measured.worker import Failed

FOR_OURS = 20  # seconds that PyTorch's compiler must leave


def machine(bench: Bench) -> None:
    """Say what the card is, and the versions and flags of the programs."""
    bench.session.row(**bench.machine())
    if peer := bench.peer():
        bench.session.row(**peer)


def against_torch(bench: Bench, name: str, network: Network) -> None:
    """Time a step of ours that is built beside PyTorch's of the same network, in turns."""
    ours, session = bench.built[name], bench.session
    row = {"what": "ours alone, views given", "batch": ours["batch"]}
    session.row(**row, **rates(ours["views"], timed_alone(bench, name)), **about(ours))
    job = bench.ours("job", **network.asked())
    gpu = bench.peer().get("device") == "cuda"
    job |= {"batch": ours["views"] // 2, "device": "cuda" if gpu else "cpu"}
    job |= {"channels_last": True, "compile": bench.sizes.torch_compile}
    steps = {"ours": bench.run(name)}
    with session.worker("theirs.py") as theirs:
        peer = None
        if bench.peer():
            try:
                peer = theirs.ask("build", session.left - FOR_OURS, name=name, job=job)
                steps["PyTorch"] = lambda calls: theirs.ask(
                    "run", session.left, name=name, calls=calls
                )
            except Failed as error:
                session.row(what="PyTorch", batch=ours["batch"], failed=str(error))
        if peer is None:
            return
        took = timed(bench.sizes, steps)
    row = {"what": "ours, views given", "batch": ours["batch"]}
    session.row(**row, **rates(ours["views"], took["ours"]), **about(ours))
    row = {"what": "PyTorch, views given", "batch": ours["batch"]}
    session.row(**row, **rates(peer["views"], took["PyTorch"]), **about(peer))
    ratio = took["PyTorch"]["seconds"] / took["ours"]["seconds"]
    session.row(what="ours over PyTorch", batch=ours["batch"], ratio=ratio)


def resnet50(bench: Bench) -> None:
    """Time ResNet-50 beside PyTorch, in turns, and with views made on the device."""
    batch = bench.large()["batch"]
    against_torch(bench, "large", bench.sizes.large.with_views(GIVEN))
    alone(bench, "on device", bench.sizes.large.with_views(ON_DEVICE), "large_device", batch)


def largest(bench: Bench) -> None:
    """Time ResNet-50 at the largest batch that fits on the card alone."""
    # What its steps have taken stays with a process, in pieces that no larger step could use.
    bench.end()
    built = fitting(bench, "largest", bench.sizes.large.with_views(GIVEN), ALONE, bench.shared)
    row = {"what": "ours alone, views given", "batch": built["batch"]}
    took = timed_alone(bench, "largest")
    bench.session.row(**row, **rates(built["views"], took), **about(built))
    bench.end()


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
        try:
            alone(bench, "on device", small.with_views(ON_DEVICE), "small", batch)
        except Failed as error:  # which need not be so of the others
            bench.session.row(batch=batch, failed=str(error))
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
