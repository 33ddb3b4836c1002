"""Results of evaluations as files: what was measured, and everything that decides the number.

RUN/results/NAME.json   settings, what was chosen, scores with intervals, versions
RUN/results/NAME.npz    `labels`, `predictions` or `scores`, and `examples`, of each test image
"""

from __future__ import annotations

import io
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import files
from simclr_jax.errors import UserError

PACKAGES = ("simclr-jax", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")
NAME = re.compile(r"[\w.+-]+")


def write(workdir: epath.PathLike, result: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """Write a result under its `name`, in place of an older one, and return the JSON file's path.

    Args:
      workdir: of the run that was judged.
      result: `name`, `solver`, `tap`, `checkpoint`, `data`, `protocol`, `scores` and `seed`.
      arrays: `labels`, `examples`, and `predictions` `[m]` or `scores` `[m, classes]`.

    Raises:
      UserError: if the directory cannot be written.
    """
    assert NAME.fullmatch(result["name"]), result["name"]
    directory = epath.Path(workdir) / "results"
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path = directory / f"{result['name']}.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files.write_atomically(directory / f"{result['name']}.npz", buffer.getvalue())
        files.write_json(path, {**result, "versions": versions()})
    except OSError as error:
        raise UserError(
            f"results cannot be written to {directory} ({error.strerror or error}): "
            "free space and rights there"
        ) from error
    return str(path)


def read_all(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Return the results of a run that `write` has written, by name.

    Raises:
      UserError: if one of them is not JSON.
    """
    found = [
        files.read_json(path) for path in sorted((epath.Path(workdir) / "results").glob("*.json"))
    ]
    return [result for result in found if "solver" in result]


def read_arrays(workdir: epath.PathLike, name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a result."""
    path = epath.Path(workdir) / "results" / f"{name}.npz"
    with np.load(io.BytesIO(path.read_bytes())) as archive:
        return {key: archive[key] for key in archive.files}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a number."""
    return {"python": platform.python_version()} | {
        package: metadata.version(package) for package in PACKAGES
    }
