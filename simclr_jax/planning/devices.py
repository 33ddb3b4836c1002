"""Accelerators by name: what their makers say of memory, speed and links; how TPUs are wired."""

from __future__ import annotations

import dataclasses
import re

from simclr_jax.errors import UserError, choose

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Device:
    """One device as JAX counts them: a TPU chip, a GPU.

    Attributes:
      memory: bytes.
      flops: peak operations a second in bfloat16, dense (GPUs: of tensor cores).
      link: bytes a second that it can send to its neighbours, all links together, one way.
      family: how libtpu calls it, empty for GPUs.
      axes: of its torus; 0 for GPUs.
      options: that libtpu wants besides.
    """

    memory: float
    flops: float
    link: float
    family: str = ""
    axes: int = 0
    options: tuple[tuple[str, str], ...] = ()


# Cloud TPU documentation ("TPU v5e", "v5p", "v6e": HBM, peak compute, half the bidirectional
# interconnect bandwidth; "TPU v4": its 2400 Gbps, which are of one direction as v5p's 4800 Gbps
# there once were) and NVIDIA's data sheets (SXM where there is a choice, half of NVLink).
MEGACORE = (("chip_config_name", "megacore"),)  # two cores that act as one device
DEVICES: dict[str, Device] = {
    "tpu_v4": Device(32 * GIB, 275e12, 300e9, "v4", 3, MEGACORE),
    "tpu_v5e": Device(16 * GIB, 197e12, 200e9, "v5e", 2),
    "tpu_v5p": Device(95 * GIB, 459e12, 600e9, "v5p", 3),
    "tpu_v6e": Device(32 * GIB, 918e12, 400e9, "v6e", 2),
    "a100_40": Device(40 * GIB, 312e12, 300e9),
    "a100": Device(80 * GIB, 312e12, 300e9),
    "h100": Device(80 * GIB, 989e12, 450e9),
    "h200": Device(141 * GIB, 989e12, 450e9),
    "l4": Device(24 * GIB, 121e12, 32e9),
}
# What is left for a program. The TPU compiler names its limit: 30.75 of 32 GiB on v4. GPUs need
# room for the driver's context, workspaces of convolutions and fragments.
USABLE = {"tpu": 0.96, "gpu": 0.90}

UNITS = {"": 1, "M": 2**20, "G": 2**30, "T": 2**40}


def usable(name: str, memory: float) -> float:
    """Return the bytes that a program may use on a device with so many."""
    return memory * USABLE["tpu" if DEVICES[name].family else "gpu"]


def find(name: str) -> Device:
    """Return a device by name, or raise `UserError`."""
    choose("--device", name, DEVICES)
    return DEVICES[name]


def parse_bytes(text: str) -> int:
    """Return the bytes that `32GB`, `32GiB`, `0.5T` or a plain number say, in powers of 1024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found or not 0 < float(found[1]) < 1e15:
        raise UserError(f'--device_memory is "{text}": write 32GB, say')
    return int(float(found[1]) * UNITS[found[2].upper()])


def topology(name: str, chips: int) -> tuple[str, dict[str, object]]:
    """Return name and options of a slice of so many chips, as libtpu wants them.

    Raises:
      UserError: if slices of this kind do not come with so many.
    """
    device = DEVICES[name]
    sides = _sides(chips, device.axes)
    if sides is None:
        sizes = ", ".join(str(n) for n in (1, *(4 * 2**i for i in range(8))))
        raise UserError(f"--devices is {chips}: {name} is planned for {sizes}")
    options: dict[str, object] = dict(device.options)
    if chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    return f"{device.family}:{'x'.join(map(str, sides))}", options


def _sides(chips: int, axes: int) -> tuple[int, ...] | None:
    """Return the sides of the most cubic torus, smallest first: 2x2x1 is one host of TPU v4."""
    if chips == 1:
        return (1,) * axes
    if chips < 4 or chips > 512 or chips & (chips - 1):
        return None
    if chips == 4:
        return (2, 2, 1)[:axes]
    power = chips.bit_length() - 1
    return tuple(sorted(2 ** ((power + i) // axes) for i in range(axes)))
