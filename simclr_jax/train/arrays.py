"""The arrays of a state as Orbax is given them, and as they come back onto the devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from simclr_jax import parallel
from simclr_jax.train import manifest


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return leaves by path as the nested dictionaries that every Orbax tool reads."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def dtype(leaf: Any) -> np.dtype:
    """Return the dtype of an array, of a description of one, or of a number."""
    return np.dtype(leaf.dtype) if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def place(values: np.ndarray, leaf: Any) -> Any:
    """Return a restored array as its target wants it."""
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return values
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return parallel.place(values, leaf.sharding or here)


def for_orbax(leaves: Mapping[str, Any], host: Mapping[str, manifest.HostLeaf]) -> dict[str, Any]:
    """Return leaves that one process can write without the others.

    Raises:
      ValueError: if it does not hold the whole of an array.
    """
    found: dict[str, Any] = {}
    for name, leaf in leaves.items():
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            found[name] = leaf
            continue
        if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated:
            raise ValueError(f"{name} is spread over processes: only whole arrays are saved")
        ((_, found[name]),) = host[name].blocks
    return found
