"""What is there: versions, devices, disk and memory."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable
from importlib import metadata, util
from pathlib import Path

import jax

from simclr_jax import archives, extras, files, processes
from simclr_jax.checking.findings import NOTE, SOUND, WRONG, Finding
from simclr_jax.errors import printable

NEEDED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# What each extra is for, and one module of it.
OPTIONAL = {"images": ("photographs (placements split and canvas)", ("simplejpeg", "cv2"))}
GIB = 2**30
LEAST_DISK, LEAST_MEMORY = 2 * GIB, 2 * GIB  # where no recipe tells how much is needed
# Files that the drivers of accelerators make, and what makes JAX use these.
DRIVERS = {
    "/dev/nvidia0": ("an NVIDIA GPU", ("gpu", "cuda"), "cuda"),
    "/dev/accel0": ("a TPU", ("tpu",), "tpu"),
}


def versions() -> list[Finding]:
    """Return the versions of what runs, which must be those of all processes."""
    found = {name: _version(name) for name in NEEDED}
    here = {"Python": platform.python_version(), **found}
    said = ", ".join(f"{name} {version}" for name, version in here.items())
    others = [each for each in processes.everyone(here) if each != here]
    findings = [Finding(SOUND, "versions", said)]
    if others:
        differ = sorted(name for name in here if any(o[name] != here[name] for o in others))
        findings = [
            Finding(
                WRONG,
                "versions",
                f"processes do not have the same {', '.join(differ)}",
                "install the same versions on all machines",
            )
        ]
    for extra, (what, _) in OPTIONAL.items():
        if lacking := missing(extra):
            said = f"{', '.join(lacking)} not installed, which {what} need"
            findings.append(Finding(NOTE, "packages", said, extras.install(extra)))
    return findings


def missing(extra: str) -> list[str]:
    """Return the modules of an extra that are not installed."""
    return [name for name in OPTIONAL[extra][1] if not _is_there(name)]


def _is_there(module: str) -> bool:
    try:
        return util.find_spec(module) is not None
    except ValueError:  # it is blocked
        return False


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(unknown)"


def devices() -> list[Finding]:
    """Return which devices JAX sees, and accelerators of this machine that it does not."""
    seen, here = jax.devices(), jax.local_devices()
    kinds = sorted({device.device_kind for device in seen})
    said = f"{len(seen)} x {', '.join(kinds)}"
    if processes.count() > 1:
        said += f" in {processes.count()} processes, {len(here)} of them in this one"
    each = [len(each) for each in processes.everyone([device.id for device in here])]
    if len({*each}) > 1:
        return [
            Finding(
                WRONG,
                "devices",
                f"{said}; processes have {', '.join(map(str, each))}",
                "give every process as many devices as the others",
            )
        ]
    return [Finding(SOUND, "devices", said), *_unused(seen[0].platform)]


def _unused(used: str) -> list[Finding]:
    asked = os.environ.get("JAX_PLATFORMS", "")
    found = []
    for file, (what, platforms, extra) in DRIVERS.items():
        if not Path(file).exists() or used in platforms:
            continue
        said = f"there is {what} ({file}), and JAX computes on {used}"
        if asked:
            advice = f"JAX_PLATFORMS={asked} says so: unset it to use {what}"
            found.append(Finding(NOTE, "devices", said, advice))
        else:
            found.append(Finding(WRONG, "devices", said, extras.install(extra)))
    return found


def disk(workdir: str, needed: int | None = None) -> list[Finding]:
    """Return whether runs have room: `needed` bytes, or `LEAST_DISK` where nobody knows."""
    findings, least = [], LEAST_DISK if needed is None else needed
    places = {"workdir": Path(workdir), "compiled programs": files.cache_directory()}
    for name, place in places.items():
        if name == "workdir" and not files.is_local(workdir):
            findings.append(Finding(SOUND, "disk", f"{workdir} is a bucket, which has no end"))
            continue
        there = files.nearest(place)
        about = f"disk of {printable(str(place))}"
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            at_fault = WRONG if name == "workdir" else NOTE
            said = f"{printable(str(there))} cannot be written into ({name})"
            remedy = "--workdir" if name == "workdir" else "XDG_CACHE_HOME"
            findings.append(Finding(at_fault, about, said, f"name another directory by {remedy}"))
            continue
        free = shutil.disk_usage(there).free
        said = f"{amount(free)} free"
        wanted = least if name == "workdir" else GIB // 2
        if free >= wanted:
            findings.append(Finding(SOUND, about, said))
            continue
        short = needed is not None and name == "workdir"
        for_what = "its checkpoints need" if short else f"{name} should have"
        findings.append(
            Finding(
                WRONG if short else NOTE,
                about,
                f"{said}, and {for_what} {amount(wanted)}",
                "free space there, name another --workdir"
                + (", or lower checkpoint.keep" if short else ""),
            )
        )
    return findings


def memory() -> list[Finding]:
    """Return the free memory of the host, and what devices say of theirs."""
    free = archives.free_memory()
    found = Finding(SOUND, "memory", f"{amount(free)} free on the host")
    if free < LEAST_MEMORY:
        advice = "end other programs, or lower data.threads and train.batch_size"
        found = Finding(NOTE, "memory", f"{amount(free)} free on the host", advice)
    return [found, *_of_devices(jax.local_devices())]


def _of_devices(local: Iterable[jax.Device]) -> list[Finding]:
    findings = []
    for device in local:
        said = device.memory_stats() or {}
        limit, used = said.get("bytes_limit"), said.get("bytes_in_use", 0)
        if not limit:  # CPUs, which have the host's
            continue
        text = f"{amount(limit - used)} free of {amount(limit)}"
        findings.append(Finding(SOUND, f"memory of device {device.id}", text))
    return findings


def amount(size: float) -> str:
    """Return bytes as a person reads them."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"
