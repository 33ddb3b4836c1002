"""How many devices JAX makes of a machine's CPU cores, decided by `main` before JAX starts any.

XLA computes a batch on CPUs faster in several parts: it has few threads for the gradients of
kernels, and smaller arrays fit caches. Losses differ by rounding, so that a run keeps its number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import fields
from simclr_jax.errors import UserError

KEY = "cpu_devices"  # in `config.json`
MOST = 1024  # that a user may ask for
RULE = 8  # devices, at most, by the rule
LEAST_ROWS = 8  # images on a device, by the rule
MOST_ROWS = 128  # XLA ends the process where one device waits for another for a minute
STEM = "cifar"  # of the encoders that gain
FORCED = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def choose(
    config: ConfigDict,
    asked: int | None,
    before: Mapping[str, Any] | None,
    distributed: bool = False,
) -> int | None:
    """Return how many CPU devices a run is to have; None leaves it to JAX.

    What the environment says stands; then what was asked for; then what a run that is resumed has;
    then the rule.

    Args:
      config: a recipe, or that of a pipeline, whose runs have one number.
      asked: by --cpu_devices.
      before: the record of the run that is resumed.
      distributed: whether others train the same run; there is no rule then.

    Raises:
      UserError: if environment and flag contradict each other, or there are more devices than
        images in a batch.
    """
    recipes = [*config.runs.values()] if "runs" in config else [config]
    for recipe in recipes:
        fields.known(recipe)
    forced = in_environment()
    if forced is not None:
        if asked not in (None, forced):
            raise UserError(
                f"--cpu_devices is {asked}, but XLA_FLAGS or JAX_NUM_CPU_DEVICES says {forced}: "
                "leave one of them out"
            )
        return None
    if asked is not None:
        for recipe in recipes:
            _check(recipe, asked)
        return asked
    if before is not None:
        kept = before.get(KEY)
        return kept if type(kept) is int and 1 <= kept <= MOST else None
    if distributed:
        return None
    count = min(map(by_rule, recipes))
    batches = [recipe.train.batch_size or 0 for recipe in recipes]
    return count if all(batch <= count * MOST_ROWS for batch in batches) else 1


def in_environment() -> int | None:
    """Return how many CPU devices the environment asks JAX for, or None."""
    if found := FORCED.findall(os.environ.get("XLA_FLAGS", "")):
        return int(found[-1])  # as XLA has it
    number = os.environ.get("JAX_NUM_CPU_DEVICES", "")
    return int(number) if number.isdecimal() else None


def by_rule(config: ConfigDict) -> int:
    """Return how many CPU devices train fastest, as measured; see docs/performance.md.

    One where a recipe leaves encoder or batch open, and where results would be others: with
    `bn.groups=0` each device is a group of normalisation.
    """
    batch = config.train.batch_size
    if config.model.stem != STEM or batch is None or config.bn.groups == 0:
        return 1
    count, unit = RULE, max(1, config.train.accumulate)  # what it may be is looked at later
    while count > 1 and (batch % (count * unit) or batch // (count * unit) < LEAST_ROWS):
        count //= 2
    return count if batch // count <= MOST_ROWS else 1


def _check(config: ConfigDict, count: int) -> None:
    """Raise `UserError` if there are more devices than images in a batch of a run."""
    batch = config.train.batch_size
    if batch is not None and count > batch:
        raise UserError(
            f"--cpu_devices is {count}, more than the {batch} images of a batch: give at most "
            f"{batch}, or set --config.train.batch_size={count}"
        )


def use(count: int | None) -> None:
    """Let JAX make so many devices of the CPU. It must not have made any yet."""
    if count is not None:
        jax.config.update("jax_num_cpu_devices", count)


def record(mesh: Mesh, before: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Return what a run keeps of its CPU devices, if these are what computes: how many it began on.

    Args:
      mesh: the devices that compute.
      before: the record of the run that is resumed.
    """
    if before is not None and KEY in before:
        return {KEY: before[KEY]}
    here = _here(mesh)
    return {KEY: here} if here else {}


def notes(mesh: Mesh, before: Mapping[str, Any] | None) -> list[str]:
    """Return what a user should know of the number of CPU devices.

    Args:
      mesh: the devices that compute.
      before: the record of the run that is resumed.
    """
    here, then = _here(mesh), (before or {}).get(KEY)
    if then is not None and then != here:
        now = f"{here} of them" if here else "others"
        same = "the same but for rounding, not to the bit"
        if (before or {}).get("bn", {}).get("groups") == 0:
            same = "another run, since with bn.groups=0 each device is normalised alone"
        return [f"note      this run began on {then} CPU device(s) and goes on on {now}: {same}"]
    if before is None and here > 1 and in_environment() is None:
        return [
            f"note      the CPU counts as {here} devices, which docs/performance.md found faster "
            "for such encoders; --cpu_devices=1 for one"
        ]
    return []


def _here(mesh: Mesh) -> int:
    """Return how many CPU devices this process computes on, 0 if on others."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return jax.local_device_count() if on_cpu else 0
