"""Start from the weights of another run."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax.errors import UserError, choose
from simclr_jax.train import manifest
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.stage import TrainState

PARTS = ("encoder", "head", "probe")


def load_parts(init: ConfigDict, state: TrainState) -> TrainState:
    """Replace parameters and batch statistics of `init.parts` by those of `init.run`.

    Args:
      init: `run`, a workdir or `WORKDIR@STEP` (the newest whole checkpoint without a step), and
        `parts`, names with commas. An empty `run` changes nothing.
      state: the first state of this run; the rest of it stays (optimiser, step 0).

    Raises:
      UserError: if there is no such checkpoint, or a part has other leaves or shapes there, naming
        what is missing, extra or different.
    """
    if not init.run:
        return state
    parts = [part.strip() for part in init.parts.split(",")]
    for part in parts:
        choose("init.parts", part, PARTS)
    where, saved = _read(init.run)
    if "probe" in parts and not any(name.startswith("params/probe/") for name in saved):
        # Classifiers of fine-tuned and converted runs are linear probes of another name.
        saved = {_renamed(name): value for name, value in saved.items()}
    wanted = manifest.named_leaves(state)
    prefixes = tuple(f"{kind}/{part}/" for kind in ("params", "batch_stats") for part in parts)
    _compare(where, prefixes, wanted, saved)
    leaves = [
        jax.device_put(saved[name], leaf.sharding) if name.startswith(prefixes) else leaf
        for name, leaf in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _read(run: str) -> tuple[str, dict[str, np.ndarray]]:
    """Return the checkpoint a run is known by, and its arrays by path."""
    workdir, _, at = run.rpartition("@")
    if not at.isdecimal():  # the directory itself may have an @ in its name
        workdir, at = run, ""
    directory = epath.Path(workdir).expanduser() / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"init.run={run} holds no checkpoints: give the workdir of a run")
    checkpoints = Checkpoints(directory, read_only=True)
    try:
        step, saved = checkpoints.leaves(int(at) if at else None)
    finally:
        checkpoints.close()
    return f"checkpoint {directory}/{step}", saved


def _renamed(name: str) -> str:
    rest = name.removeprefix("params/classifier/")
    return name if rest == name else f"params/probe/{rest}"


def _compare(where: str, prefixes: tuple[str, ...], wanted: Any, saved: Any) -> None:
    here = {name for name in wanted if name.startswith(prefixes)}
    there = {name for name in saved if name.startswith(prefixes)}
    kernel = "params/probe/dense/kernel"
    if kernel in here & there and saved[kernel].shape[-1] != wanted[kernel].shape[-1]:
        raise UserError(
            f"{where} tells {saved[kernel].shape[-1]} classes apart, this data set has "
            f"{wanted[kernel].shape[-1]}: leave probe out of init.parts"
        )
    found = [f"{name} is missing there" for name in sorted(here - there)]
    found += [f"{name} is extra there" for name in sorted(there - here)]
    found += [
        f"{name} is {saved[name].dtype}{saved[name].shape} there and "
        f"{wanted[name].dtype}{wanted[name].shape} here"
        for name in sorted(here & there)
        if (saved[name].shape, saved[name].dtype) != (wanted[name].shape, wanted[name].dtype)
    ]
    if found:
        more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
        raise UserError(
            f"{where} does not fit this recipe ({'; '.join(found[:4])}{more}): use the same model "
            "and head, or leave a part out of init.parts"
        )
